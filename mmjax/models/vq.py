"""Tokenizer of images by vector quantisation: VQ-VAE, VQGAN, ViT-VQGAN or VQ-KD.

It is trained by the objective `tokenizer`; afterwards it makes the ids that others predict
(`mmjax/targets/tokens.py`, `mmjax/objectives/mage.py`). Every tokenizer of images has

  codes                                 how many ids there are
  init(rng, image) -> weights           random weights, boxed with logical axis names
  grid_of(shape) -> (rows, columns)     of the tokens of images [B, H, W, C]
  ids(weights, image) -> int32 [B, N]   row by row
  picture(weights, ids, grid)           float32 [B, H, W, C]; ValueError where it makes no pictures
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn import quantize
from mmjax.nn.linear import Linear
from mmjax.parallel import mesh as mesh_lib

Tree = Any


@dataclasses.dataclass(frozen=True)
class VQ:
  """An encoder, a codebook and a decoder.

  Weights: {"encoder": exactly the encoder's parameters, "to_code": a linear layer on its tokens,
  "decoder", "codes" float32 [K, d]}. All but the codes are learned by gradients.

  Attributes:
    encoder: a module called as `ViT` is.
    decoder: a module from codes [B, rows, columns, d] to pictures [B, H, W, C] (`conv_decoder`), or
      to a vector a token [B, N, D] (`token_decoder`).
    codes: how many, K.
    dim: of a code, d.
    normalise: codes and what is compared with them have unit norm (ViT-VQGAN, arXiv:2110.04627,
      sec. 3.2; BEiT v2, arXiv:2208.06366, eq. 2).
  """

  encoder: nn.Module
  decoder: nn.Module
  codes: int = 1024
  dim: int = 32
  normalise: bool = False

  def __post_init__(self):
    for name, least in (("codes", 2), ("dim", 1)):
      if getattr(self, name) < least:
        raise ValueError(f"{name}: must be at least {least}, not {getattr(self, name)}")

  def grid_of(self, shape: tuple) -> tuple[int, int]:
    return self.encoder.grid_of(shape)

  def init(self, rng: jax.Array, image: jax.Array) -> Tree:
    """Random weights for images [B, H, W, C]."""
    keys = jax.random.split(rng, 4)
    encoder = self.encoder.init(keys[0], image)["params"]
    tokens = self._tokens(mesh_lib.unbox(encoder), image, None, False)[1]["tokens"]
    grid = jnp.zeros((len(image), *self.grid_of(image.shape), self.dim))
    return {"encoder": encoder,
            "to_code": self._to_code(tokens.dtype).init(keys[1], tokens)["params"],
            "decoder": self.decoder.init(keys[2], grid)["params"],
            "codes": quantize.start(keys[3], self.codes, self.dim).codes}

  def encode(self, weights: Tree, image: jax.Array, keys: jax.Array | None = None,
             train: bool = False) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The pooled image [B, D], its tokens [B, N, D], and what is quantised, float32 [B, N, d]."""
    pooled, features = self._tokens(weights["encoder"], image, keys, train)
    tokens = features["tokens"]
    vectors = self._to_code(tokens.dtype).apply({"params": weights["to_code"]}, tokens)
    vectors = quantize.unit(vectors) if self.normalise else vectors.astype(jnp.float32)
    return pooled, tokens, vectors

  def decode(self, weights: Tree, codes: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """What the decoder makes of codes [B, N, d]."""
    codes = codes.reshape(len(codes), *grid, self.dim)
    return self.decoder.apply({"params": weights["decoder"]}, codes)

  def ids(self, weights: Tree, image: jax.Array) -> jax.Array:
    """The codes of images [B, H, W, C], int32 [B, N]."""
    return quantize.nearest(self.encode(weights, image)[2], weights["codes"])

  def picture(self, weights: Tree, ids: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Pictures float32 [B, H, W, C] of ids [B, N].

    Raises:
      ValueError: the decoder makes no pictures.
    """
    picture = self.decode(weights, weights["codes"][ids], grid)
    if picture.ndim != 4:
      raise ValueError("this tokenizer's decoder makes features and no pictures; generate with one "
                       "that was trained on pixels")
    return picture

  def _tokens(self, params, image, keys, train):
    return self.encoder.apply({"params": params}, image, keys=keys, train=train, want=("tokens",))

  def _to_code(self, dtype):
    # Part of no other module, not even of one that asks for ids while it computes (`ViT.tokenizer`).
    return Linear((self.dim,), ("embed", "code"), dtype=str(dtype), parent=None)


build = VQ
