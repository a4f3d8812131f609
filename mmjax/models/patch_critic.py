"""PatchGAN discriminator, which judges patches one by one (Isola et al. 2017, arXiv:1611.07004)."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.conv import Conv, GroupNorm
from mmjax.nn.names import check_choice

SLOPE = 0.2  # of the leaky rectifiers, app. 6.1.2


class PatchCritic(nn.Module):
  """Convolutions of size 4; group norm where the paper has batch norm, so that rows stay apart.

  Attributes:
    width: channels of the first layer; they double up to 8 times that.
    layers: how many layers halve the sides; 3 gives the paper's fields of 70x70 pixels.
    dtype: of the convolutions, "float32" or "bfloat16". Parameters and norms are float32.
  """
  width: int = 64
  layers: int = 3
  dtype: str = "float32"

  def __post_init__(self):
    check_choice("PatchCritic.dtype", self.dtype, ("float32", "bfloat16"))
    super().__post_init__()

  @nn.compact
  def __call__(self, image):
    """[B, H, W, C] -> float32 [B, h, w], large where a patch looks real."""
    x = nn.leaky_relu(Conv(self.width, 4, 2, dtype=self.dtype, name="in")(image), SLOPE)
    for layer in range(1, self.layers + 1):
      width, stride = self.width * min(2 ** layer, 8), 2 if layer < self.layers else 1
      x = Conv(width, 4, stride, dtype=self.dtype, name=f"conv_{layer}")(x)
      x = nn.leaky_relu(GroupNorm(name=f"norm_{layer}")(x), SLOPE)
    return Conv(1, 4, axis="logit", dtype=self.dtype, name="out")(x)[..., 0].astype(jnp.float32)


build = PatchCritic
