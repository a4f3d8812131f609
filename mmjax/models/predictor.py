"""The narrow predictor of a joint-embedding predictive architecture (I-JEPA, arXiv:2301.08243)."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.linear import KERNEL_INITS, Linear, logical
from mmjax.nn.mlp import default_mlp_dim
from mmjax.nn.norm import layer_norm
from mmjax.nn.positions import sincos_2d
from mmjax.nn.transformer import Transformer, check_trunk
from mmjax.parallel import mesh as mesh_lib


class Predictor(nn.Module):
  """A transformer that fills in blocks of tokens from a context, each block without the others.

  The context's tokens are projected to the predictor's width; a mask token stands for each token of
  the block; both have sine-cosine positions. What comes out for the mask tokens is projected back.

  Attributes: as in `ViT`.
  """
  width: int = 384
  depth: int = 12
  heads: int = 12
  mlp_dim: int | None = None
  activation: str = "gelu"
  drop_path: float = 0.0
  dropout: float = 0.0
  norm_eps: float = 1e-6
  scan: bool = True
  remat: str = "none"
  attention: str = "auto"
  kernel_init: str = "truncated_normal"
  dtype: str = "float32"

  def __post_init__(self):
    check_trunk("Predictor", self)
    super().__post_init__()

  @nn.compact
  def __call__(self, tokens, context, targets, grid, keys=None, train=False):
    """Predicts the encoder's tokens at `targets`.

    Args:
      tokens: [B, K, D], of the encoder.
      context: int32 [B, K], their places in the grid, numbered row by row.
      targets: int32 [B, T, M], the places of T blocks.
      grid: (rows, columns).
      keys: one PRNG key a row, [B]; needed in training with drop-path or dropout; the same for all
        blocks of a row.
      train: drop-path and dropout are active.

    Returns:
      [B, T, M, D].
    """
    batch, blocks, size = targets.shape
    linear = dict(kernel_init=KERNEL_INITS[self.kernel_init], dtype=self.dtype)
    positions = sincos_2d(grid, self.width).astype(self.dtype)
    seen = Linear((self.width,), ("embed", "joint"), name="embed", **linear)(tokens)
    seen = seen + positions[context]
    init = logical(nn.initializers.truncated_normal(0.02), "embed")
    mask_token = self.param("mask_token", init, (self.width,), jnp.float32)
    hidden = mask_token.astype(self.dtype) + positions[targets]  # [B, T, M, width]

    seen = jnp.broadcast_to(seen[:, None], (batch, blocks, *seen.shape[1:]))
    x = jnp.concatenate([seen, hidden], axis=2).reshape(batch * blocks, -1, self.width)
    x = mesh_lib.constrain(x, ("batch", "length", "embed"))
    keys = None if keys is None else jnp.repeat(keys, blocks)
    mlp_dim = self.mlp_dim or default_mlp_dim(self.width, self.activation)
    x, _ = Transformer(
        self.depth, self.heads, mlp_dim, self.activation, drop_path=self.drop_path,
        dropout=self.dropout, norm_eps=self.norm_eps, scan=self.scan, remat=self.remat,
        attention=self.attention, kernel_init=self.kernel_init, dtype=self.dtype, name="trunk")(
            x, keys=keys, train=train)
    x = x[:, -size:].reshape(batch, blocks, size, self.width)
    x = layer_norm(self.norm_eps, "final_norm", settled=True)(x).astype(self.dtype)
    return Linear((tokens.shape[-1],), ("joint", "embed"), name="projection", **linear)(x)


build = Predictor
