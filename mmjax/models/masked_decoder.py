"""The light decoder of masked autoencoders (MAE, He et al. 2022, arXiv:2111.06377, sec. 3)."""

import math

from flax import linen as nn
import jax.numpy as jnp

from mmjax import masking
from mmjax.nn.linear import KERNEL_INITS, Linear, logical
from mmjax.nn.mlp import default_mlp_dim
from mmjax.nn.norm import layer_norm
from mmjax.nn.positions import sincos
from mmjax.nn.transformer import Transformer, check_trunk
from mmjax.parallel import mesh as mesh_lib


class MaskedDecoder(nn.Module):
  """A transformer over all tokens: those the encoder saw, and mask tokens in the others' places.

  The encoder's tokens are projected to the decoder's width; all patches have sine-cosine positions,
  what stands before them (class token) has none. The prediction itself is a linear layer of the
  objective.

  Attributes: as in `ViT`.
  """
  width: int = 512
  depth: int = 8
  heads: int = 16
  mlp_dim: int | None = None
  activation: str = "gelu"
  drop_path: float = 0.0
  dropout: float = 0.0
  norm_eps: float = 1e-6
  scan: bool = True
  remat: str = "none"
  attention: str = "auto"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"

  def __post_init__(self):
    check_trunk("MaskedDecoder", self)
    super().__post_init__()

  @nn.compact
  def __call__(self, features, mask, grid, keys=None, train=False):
    """Decodes.

    Args:
      features: of the encoder: "tokens" [B, K, D] of `mask.keep`, or of the whole grid [B, N, D];
        "prefix" [B, P, D].
      mask: a `masking.Mask` of the grid.
      grid: (rows, columns) or (frames, rows, columns).
      keys: one PRNG key a row, [B]; needed in training with drop-path or dropout.
      train: drop-path and dropout are active.

    Returns:
      [B, N, width], of all tokens of the grid.
    """
    prefix, tokens = features["prefix"], features["tokens"]
    count = prefix.shape[1]
    x = Linear((self.width,), ("embed", "joint"), kernel_init=KERNEL_INITS[self.kernel_init],
               dtype=self.dtype, name="embed")(jnp.concatenate([prefix, tokens], axis=1))
    prefix, tokens = x[:, :count], x[:, count:]
    if tokens.shape[1] != math.prod(grid):
      init = logical(nn.initializers.normal(0.02), "embed")
      mask_token = self.param("mask_token", init, (self.width,), jnp.float32)
      tokens = masking.restore(mask, tokens, mask_token)
    tokens = tokens + sincos(grid, self.width).astype(tokens.dtype)
    x = jnp.concatenate([prefix, tokens], axis=1)
    x = mesh_lib.constrain(x, ("batch", "length", "embed"))
    mlp_dim = self.mlp_dim or default_mlp_dim(self.width, self.activation)
    x, _ = Transformer(
        self.depth, self.heads, mlp_dim, self.activation, drop_path=self.drop_path,
        dropout=self.dropout, norm_eps=self.norm_eps, scan=self.scan, remat=self.remat,
        attention=self.attention, kernel_init=self.kernel_init, dtype=self.dtype, name="trunk")(
            x, keys=keys, train=train)
    return layer_norm(self.norm_eps, "final_norm", settled=True)(x).astype(self.dtype)[:, count:]


build = MaskedDecoder
