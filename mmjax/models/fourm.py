"""4M's embeddings, decoder and heads (Mizrahi et al. 2023, arXiv:2312.06647); its encoder is a ViT.

Tokens of all modalities stand in two pools, one after the other in the order of the modalities'
names: the input pool has all that can be seen, the target pool all that can be predicted. What a
row uses is an index into a pool, so that shapes are static though rows differ in how many tokens of
a modality they use.
"""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.masking import spans
from mmjax.nn.attention import MultiHeadAttention
from mmjax.nn.linear import KERNEL_INITS, Linear, logical
from mmjax.nn.mlp import Mlp, default_mlp_dim
from mmjax.nn.names import check_choice, check_heads
from mmjax.nn.norm import layer_norm
from mmjax.nn.positions import sincos_2d
from mmjax.nn.transformer import REMAT_POLICIES
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel.lookup import lookup


def take(pool, index):
  """[B or 1, N, D] at int32 [B, K]: [B, K, D]."""
  pool = jnp.broadcast_to(pool, (len(index), *pool.shape[1:]))
  return jnp.take_along_axis(pool, index[:, :, None], axis=1)


class Embedding(nn.Module):
  """A table of `size` learned vectors of `width`, normal with `deviation` at the start."""
  size: int
  width: int
  deviation: float

  def setup(self):
    init = logical(nn.initializers.normal(self.deviation), "vocab", "embed")
    self.embedding = self.param("embedding", init, (self.size, self.width), jnp.float32)

  def __call__(self, ids):
    """int32 [B, N] -> float32 [B, N, width]; an id outside the table gives NaN."""
    return lookup(self.embedding, ids)


class Place(nn.Module):
  """Which modality a token is of, and where in it: a learned vector and a position.

  Attributes:
    width: of the vectors.
    grid: (rows, columns) of fixed sine-cosine positions; None for `length` learned ones.
  """
  width: int
  grid: tuple[int, int] | None = None
  length: int | None = None

  @nn.compact
  def __call__(self):
    """float32 [N, width]."""
    normal = nn.initializers.normal(self.width ** -0.5)
    modality = self.param("modality", logical(normal, "embed"), (self.width,), jnp.float32)
    if self.grid is not None:
      return modality + sincos_2d(self.grid, self.width)
    return modality + self.param("position", logical(normal, "position", "embed"),
                                 (self.length, self.width), jnp.float32)


class TargetAttention(nn.Module):
  """Self-attention in which each query has its own list of keys, `visible` bool [B, T, T].

  Parameters as of `MultiHeadAttention`, whose kernels know no such lists; targets are few.
  """
  heads: int
  kernel_init: str
  dtype: str

  @nn.compact
  def __call__(self, x, visible):
    """[B, T, D] -> [B, T, D]."""
    width = x.shape[-1]
    init = dict(kernel_init=KERNEL_INITS[self.kernel_init], dtype=self.dtype)
    project = lambda name: Linear((self.heads, width // self.heads), ("embed", "heads", "kv"),
                                  name=name, **init)(x)
    q, k, v = project("query"), project("key"), project("value")
    y = jax.nn.dot_product_attention(q, k, v, mask=visible[:, None])
    return Linear((width,), ("heads", "kv", "embed"), name="out", **init)(y)


class DecoderBlock(nn.Module):
  """Pre-norm: x + attention(x), then x + attention over the encoder's tokens, then x + mlp(x)."""
  heads: int
  activation: str
  norm_eps: float
  attention: str
  kernel_init: str
  dtype: str

  @nn.compact
  def __call__(self, x, visible, context, there):
    """[B, T, D]; visible bool [B, T, T]; context [B, K, D]; there bool [B, K]."""
    init = dict(kernel_init=self.kernel_init, dtype=self.dtype)
    y = layer_norm(self.norm_eps, "attention_norm")(x)
    x = x + TargetAttention(self.heads, name="attention", **init)(y, visible)
    y = layer_norm(self.norm_eps, "cross_norm")(x)
    x = x + MultiHeadAttention(self.heads, norm_eps=self.norm_eps, backend=self.attention,
                               name="cross", **init)(y, context, padding=there)
    y = layer_norm(self.norm_eps, "mlp_norm")(x)
    hidden = default_mlp_dim(x.shape[-1], self.activation)
    x = x + Mlp(hidden, self.activation, name="mlp", **init)(y)
    return mesh_lib.constrain(x, ("batch", None, "embed"))


class FourM(nn.Module):
  """Everything of 4M but the encoder.

  Parameters: token_NAME, place_NAME of the encoder's inputs; decoder_token_NAME, head_NAME and
  decoder_place_NAME; context, context_norm, mask_token, layers (stacked) and final_norm.

  Attributes:
    table: {name: Modality}.
    patches: (rows, columns) of the encoder's own patches.
    encoder_width: width of the encoder.
    width, depth, heads, activation, norm_eps, scan, remat, attention, kernel_init, dtype: of the
      decoder, as in `Transformer`.
  """
  table: dict
  patches: tuple[int, int]
  encoder_width: int
  width: int
  depth: int
  heads: int
  activation: str = "gelu_tanh"
  norm_eps: float = 1e-6
  scan: bool = True
  remat: str = "none"
  attention: str = "auto"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"

  def __post_init__(self):
    check_heads("decoder_heads", self.width, self.heads)
    check_choice("remat", self.remat, REMAT_POLICIES)
    super().__post_init__()

  @property
  def inputs(self):
    """Names of the modalities of the input pool, in order."""
    return [name for name in sorted(self.table) if self.table[name].seen]

  @property
  def targets(self):
    """Names of the modalities of the target pool, in order."""
    return [name for name in sorted(self.table) if self.table[name].told]

  @property
  def input_sizes(self):
    """{name: tokens in the input pool}."""
    return {name: self.table[name].size(self.patches) for name in self.inputs}

  @property
  def target_sizes(self):
    """{name: tokens in the target pool}."""
    return {name: self.table[name].target_size for name in self.targets}

  def setup(self):
    place = lambda modality, width: (
        Place(width, length=spans.target_length(modality.length)) if modality.kind == "sequence"
        else Place(width, modality.grid or self.patches))
    own = {name: modality for name, modality in self.table.items() if modality.kind != "patches"}
    read = {name: modality for name, modality in own.items() if modality.seen}
    told = {name: modality for name, modality in own.items() if modality.told}
    self.token = {name: Embedding(m.ids, self.encoder_width, self.encoder_width ** -0.5)
                  for name, m in read.items()}
    self.place = {name: place(m, self.encoder_width) for name, m in read.items()}
    self.decoder_token = {name: Embedding(m.ids, self.width, self.width ** -0.5)
                          for name, m in told.items() if m.kind == "sequence"}
    self.decoder_place = {name: place(m, self.width) for name, m in self.table.items()}
    self.head = {name: Embedding(m.ids, self.width, 0.02) for name, m in told.items()}
    self.context = Linear((self.width,), ("joint", "embed"), dtype=self.dtype)
    self.context_norm = layer_norm(self.norm_eps, None)
    init = logical(nn.initializers.normal(0.02), "embed")
    self.mask_token = self.param("mask_token", init, (self.width,), jnp.float32)
    block = DecoderBlock
    if self.remat != "none":
      block = nn.remat(DecoderBlock, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan)
    self.layers = block(self.heads, self.activation, self.norm_eps, self.attention,
                        self.kernel_init, self.dtype)
    self.final_norm = layer_norm(self.norm_eps, None)

  def read(self, ids, patches):
    """The input pool.

    Args:
      ids: {name: int32 [B, N]} of all inputs but patches.
      patches: [B, N, D], the encoder's own, embedded.

    Returns:
      [B, all inputs, D].
    """
    pool = []
    for name in self.inputs:
      if name in self.token:
        place = self.place[name]()[:ids[name].shape[1]]
        pool.append((self.token[name](ids[name]) + place).astype(patches.dtype))
      else:
        pool.append(patches)
    return jnp.concatenate(pool, axis=1)

  def predict(self, tokens, index, there, ids, target_index, target_there):
    """The decoder.

    Args:
      tokens: [B, P + K, D], of the encoder: what stands before its patches, and the input tokens.
      index: int32 [B, K], which of the input pool these are; there: bool [B, K], False for padding.
      ids: {name: int32 [B, N]}, of each sequence among the targets the token before each place.
      target_index: int32 [B, T], ascending: what of the target pool is predicted; target_there:
        bool [B, T], False for padding.

    Returns:
      [B, T, width], the hidden states that `logits` are of.
    """
    places = {name: place() for name, place in self.decoder_place.items()}
    prefix = tokens.shape[1] - index.shape[1]
    own = jnp.concatenate([places[name][:n] for name, n in self.input_sizes.items()])
    own = jnp.pad(take(own[None], index), [(0, 0), (prefix, 0), (0, 0)])
    context = self.context_norm(self.context(tokens) + own.astype(self.dtype)).astype(self.dtype)
    there = jnp.pad(there, [(0, 0), (prefix, 0)], constant_values=True)

    pool = []
    for name, size in self.target_sizes.items():
      token = (self.decoder_token[name](ids[name]) if name in self.decoder_token
               else jnp.broadcast_to(self.mask_token, (len(index), size, self.width)))
      pool.append(token + places[name][:size])
    x = take(jnp.concatenate(pool, axis=1), target_index).astype(self.dtype)
    x = mesh_lib.constrain(x, ("batch", None, "embed"))
    visible = self.visible(target_index, target_there)
    # The parameters' names and axes are those of a stack, as in `Transformer`.
    scan = nn.scan(lambda block, x, _: (block(x, visible, context, there), None),
                   variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth,
                   unroll=1 if self.scan else self.depth,
                   metadata_params={nn.PARTITION_NAME: "layers"})
    x, _ = scan(self.layers, x, None)
    return self.final_norm(x).astype(self.dtype)

  def visible(self, index, there):
    """Which targets each sees, bool [B, T, T]: those of its modality, in a sequence the earlier."""
    modality = self.modality(index)
    causal = jnp.array([self.table[name].kind == "sequence" for name in self.targets])[modality]
    same = modality[:, :, None] == modality[:, None, :]
    later = index[:, :, None] < index[:, None, :]
    seen = same & ~(later & causal[:, :, None]) & there[:, None, :]
    return seen | jnp.eye(index.shape[1], dtype=bool)

  def modality(self, index):
    """The number, in `targets`, of the modality at each place of the target pool, int32."""
    ends = np.cumsum(list(self.target_sizes.values()))
    return jnp.searchsorted(ends, index, side="right").astype(jnp.int32)

  def logits(self, hidden, name):
    """float32 [B, T, ids] of a modality, from hidden states [B, T, width]."""
    weight = self.head[name].embedding.astype(hidden.dtype)
    return jnp.einsum("btd,vd->btv", hidden, weight, preferred_element_type=jnp.float32)

  def __call__(self):
    """Makes all parameters."""
    zeros = lambda count: jnp.zeros((1, count), jnp.int32)
    patches = jnp.zeros((1, math.prod(self.patches), self.encoder_width), self.dtype)
    pool = self.read({name: zeros(size) for name, size in self.input_sizes.items()}, patches)
    given = {name: zeros(size) for name, size in self.target_sizes.items()}
    one, there = zeros(1), jnp.ones((1, 1), bool)
    hidden = self.predict(pool[:, :1], one, there, given, one, there)
    return [self.logits(hidden, name) for name in self.targets]
