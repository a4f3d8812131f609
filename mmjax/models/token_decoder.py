"""Transformer decoder of visual codes: to features of a teacher (BEiT v2), or flat patches."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.linear import Linear
from mmjax.nn.mlp import default_mlp_dim
from mmjax.nn.norm import layer_norm
from mmjax.nn.positions import sincos_2d
from mmjax.nn.transformer import Transformer, check_trunk


class TokenDecoder(nn.Module):
  """A grid of codes to one vector a code (Peng et al. 2022, arXiv:2208.06366, sec. 2.2).

  Attributes:
    out_dim: numbers a token of the result.
    width, depth, heads: of the trunk.
    activation, scan, remat, attention, kernel_init, dtype: as in `Transformer`.
  """
  out_dim: int
  width: int = 768
  depth: int = 1
  heads: int = 12
  activation: str = "gelu_tanh"
  drop_path: float = 0.0
  dropout: float = 0.0
  scan: bool = True
  remat: str = "none"
  attention: str = "auto"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"

  def __post_init__(self):
    check_trunk("TokenDecoder", self)
    super().__post_init__()

  @nn.compact
  def __call__(self, codes):
    """[B, rows, columns, d] -> float32 [B, N, out_dim]."""
    grid = codes.shape[1:3]
    x = Linear((self.width,), ("code", "embed"), dtype=self.dtype, name="in")(codes)
    x = x.reshape(x.shape[0], -1, self.width)
    x = x + sincos_2d(grid, self.width).astype(x.dtype)
    x, _ = Transformer(
        self.depth, self.heads, default_mlp_dim(self.width, self.activation), self.activation,
        scan=self.scan, remat=self.remat, attention=self.attention, kernel_init=self.kernel_init,
        dtype=self.dtype, name="trunk")(x)
    x = layer_norm(1e-6, "final_norm")(x)
    return Linear((self.out_dim,), ("embed", "target"), dtype=self.dtype,
                  name="out")(x).astype(jnp.float32)


build = TokenDecoder
