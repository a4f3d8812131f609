"""MultiMAE's input projections and decoders (Bachmann et al. 2022, arXiv:2204.01678).

Its encoder is a ViT.

Tokens of the three tasks stand in one pool, [image, depth, semantic], each a grid row by row.
"""

import math

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.attention import MultiHeadAttention
from mmjax.nn.linear import Linear, logical
from mmjax.nn.mlp import Mlp, default_mlp_dim
from mmjax.nn.names import check_heads
from mmjax.nn.norm import layer_norm
from mmjax.nn.positions import sincos_2d
from mmjax.nn.transformer import Transformer

TASKS = ("image", "depth", "semantic")


class TaskDecoder(nn.Module):
  """One task's decoder: cross-attention to all the encoder's tokens, an MLP, and a few blocks.

  Queries are the task's own tokens where the encoder saw them, and mask tokens elsewhere.

  Attributes:
    task: its number in `TASKS`.
    outputs: numbers predicted for a patch.
    grid: (rows, columns) of each task's patches.
    width, depth, heads, activation, norm_eps, scan, remat, attention, kernel_init, dtype: as in
      `Transformer`.
  """
  task: int
  outputs: int
  grid: tuple[int, int]
  width: int
  depth: int
  heads: int
  activation: str
  norm_eps: float
  scan: bool
  remat: str
  attention: str
  kernel_init: str
  dtype: str

  @nn.compact
  def __call__(self, tokens, index):
    """[B, P + K, D] of the encoder, of which the last K are `index` int32 [B, K] of the pool, to
    float32 [B, N, outputs]."""
    normal = nn.initializers.normal(0.02)
    init = dict(kernel_init=self.kernel_init, dtype=self.dtype)
    of_task = self.param("task", logical(normal, "task", "embed"), (len(TASKS), self.width),
                         jnp.float32)
    mask_token = self.param("mask_token", logical(normal, "embed"), (self.width,), jnp.float32)
    place = (of_task[:, None] + sincos_2d(self.grid, self.width)).reshape(-1, self.width)
    place = place.astype(self.dtype)

    context = Linear((self.width,), ("joint", "embed"), dtype=self.dtype, name="context")(tokens)
    prefix = context.shape[1] - index.shape[1]
    shown = context[:, prefix:] + place[index]
    context = jnp.concatenate([context[:, :prefix], shown], axis=1)
    pool = jnp.broadcast_to(mask_token.astype(self.dtype) + place, (len(index), *place.shape))
    pool = pool.at[jnp.arange(len(index))[:, None], index].set(shown)
    size = math.prod(self.grid)
    x = pool[:, self.task * size:(self.task + 1) * size]

    y = layer_norm(self.norm_eps, "query_norm")(x).astype(self.dtype)
    context = layer_norm(self.norm_eps, "context_norm")(context).astype(self.dtype)
    x = x + MultiHeadAttention(self.heads, norm_eps=self.norm_eps, backend=self.attention,
                               name="cross", **init)(y, context)
    y = layer_norm(self.norm_eps, "mlp_norm")(x)
    hidden = default_mlp_dim(self.width, self.activation)
    x = x + Mlp(hidden, self.activation, name="mlp", **init)(y)
    x, _ = Transformer(
        self.depth, self.heads, hidden, self.activation, norm_eps=self.norm_eps, scan=self.scan,
        remat=self.remat, attention=self.attention, name="trunk", **init)(x)
    x = layer_norm(self.norm_eps, "final_norm", settled=True)(x)
    return Linear((self.outputs,), ("embed", "prediction"), dtype=self.dtype,
                  name="head")(x).astype(jnp.float32)


class MultiMAE(nn.Module):
  """Everything of MultiMAE but the encoder.

  Attributes:
    grid: (rows, columns) of patches, the same for all tasks.
    encoder_width: width of the encoder.
    outputs: {task: numbers predicted for a patch}.
    classes: of the segmentation; class_width: of its class embeddings.
    width, depth, heads and what follows: of the decoders, as in `TaskDecoder`.
  """
  grid: tuple[int, int]
  encoder_width: int
  outputs: dict
  classes: int
  class_width: int
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
    super().__post_init__()

  def setup(self):
    project = lambda: Linear((self.encoder_width,), ("patch", "embed"), dtype=self.dtype)
    self.depth_embed, self.semantic_embed = project(), project()
    init = logical(nn.initializers.normal(0.02), "classes", "embed")
    self.class_embed = self.param("class_embed", init, (self.classes, self.class_width),
                                  jnp.float32)
    self.decoder = {task: TaskDecoder(
        number, self.outputs[task], self.grid, self.width, self.depth, self.heads, self.activation,
        self.norm_eps, self.scan, self.remat, self.attention, self.kernel_init, self.dtype)
                    for number, task in enumerate(TASKS)}

  def read(self, patches, depth, semantic):
    """The pool [B, 3 N, D]: the encoder's own patches [B, N, D], depth patches float [B, N, p] and
    class patches int32 [B, N, cells^2], whose class embeddings are projected. What is no class is
    embedded as zero."""
    known = (semantic >= 0) & (semantic < self.classes)
    classes = jnp.where(known[..., None], self.class_embed[jnp.where(known, semantic, 0)], 0)
    position = sincos_2d(self.grid, self.encoder_width)
    others = [self.depth_embed(depth), self.semantic_embed(classes.reshape(*classes.shape[:2], -1))]
    others = [(x + position).astype(patches.dtype) for x in others]
    return jnp.concatenate([patches, *others], axis=1)

  def predict(self, tokens, index):
    """{task: float32 [B, N, outputs]} from the encoder's tokens, see `TaskDecoder`."""
    return {task: self.decoder[task](tokens, index) for task in TASKS}

  def __call__(self, depth, semantic):
    """Makes all parameters; arguments as of `read`."""
    patches = jnp.zeros((*depth.shape[:2], self.encoder_width), self.dtype)
    pool = self.read(patches, depth, semantic)
    return self.predict(pool[:, :1], jnp.zeros((len(pool), 1), jnp.int32))
