"""Convolutional picture decoder of VQGAN (Esser et al. 2021, arXiv:2012.09841, table 7).

Without the attention that the paper has at the lowest resolution.
"""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.conv import Conv, GroupNorm, ResidualBlock, upsample
from mmjax.nn.names import check_choice


class ConvDecoder(nn.Module):
  """A grid of codes to a picture: `ConvEncoder` the other way round.

  Attributes:
    width: channels of the last stage.
    multipliers: of the width, one a stage, the last one's first: as those of the encoder.
    blocks: residual blocks a stage.
    channels: of the picture.
    dtype: of the convolutions, "float32" or "bfloat16". Parameters and norms are float32.
  """
  width: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 3
  channels: int = 3
  dtype: str = "float32"

  def __post_init__(self):
    check_choice("ConvDecoder.dtype", self.dtype, ("float32", "bfloat16"))
    super().__post_init__()

  @nn.compact
  def __call__(self, codes):
    """[B, rows, columns, d] -> float32 [B, H, W, channels]; a stage has twice the one before."""
    x = Conv(self.width * self.multipliers[-1], dtype=self.dtype, name="in")(codes)
    for stage, multiplier in reversed(list(enumerate(self.multipliers))):
      for block in range(self.blocks):
        x = ResidualBlock(self.width * multiplier, self.dtype, name=f"stage_{stage}_{block}")(x)
      if stage:
        x = Conv(x.shape[-1], dtype=self.dtype, name=f"up_{stage}")(upsample(x))
    x = nn.silu(GroupNorm(name="norm")(x))
    x = Conv(self.channels, axis="pixel_channels", dtype=self.dtype, name="out")(x)
    return x.astype(jnp.float32)


build = ConvDecoder
