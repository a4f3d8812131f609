"""Convolutional image encoder of VQGAN (Esser et al. 2021, arXiv:2012.09841, table 7).

Without the attention that the paper has at the lowest resolution.
"""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.conv import Conv, GroupNorm, ResidualBlock
from mmjax.nn.names import check_choice
from mmjax.nn.patch import patch_grid
from mmjax.parallel import mesh as mesh_lib


class ConvEncoder(nn.Module):
  """Image to a grid of tokens, each stage but the last halving its sides.

  Attributes:
    width: channels of the first stage.
    multipliers: of the width, one a stage.
    blocks: residual blocks a stage.
    dtype: of the convolutions, "float32" or "bfloat16". Parameters and norms are float32.
  """
  width: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  dtype: str = "float32"

  def __post_init__(self):
    check_choice("ConvEncoder.dtype", self.dtype, ("float32", "bfloat16"))
    super().__post_init__()

  @property
  def patch(self) -> int:
    """Pixels a side that one token stands for."""
    return 2 ** (len(self.multipliers) - 1)

  def grid_of(self, shape):
    """(rows, columns) of the tokens of images [B, H, W, C]."""
    return patch_grid(shape, (self.patch, self.patch))

  @nn.compact
  def __call__(self, image, *, keys=None, train=False, want=()):
    """Encodes images; nothing in it is random.

    Args:
      image: float [B, H, W, C].
      want: "tokens" is wanted too.

    Returns:
      The mean of the tokens, float32 [B, D], and {"tokens": [B, N, D]}, row by row, if wanted.

    Raises:
      ValueError: the sides are no multiples of `patch`, or `want` has another name.
    """
    del keys, train
    for name in want:
      check_choice("ConvEncoder want", name, ("tokens",))
    self.grid_of(image.shape)  # raises where the sides do not fit
    x = Conv(self.width, dtype=self.dtype, name="in")(image)
    for stage, multiplier in enumerate(self.multipliers):
      for block in range(self.blocks):
        x = ResidualBlock(self.width * multiplier, self.dtype, name=f"stage_{stage}_{block}")(x)
      if stage + 1 < len(self.multipliers):
        x = Conv(x.shape[-1], stride=2, dtype=self.dtype, name=f"down_{stage}")(x)
    x = nn.silu(GroupNorm(name="norm")(x))
    tokens = x.reshape(x.shape[0], -1, x.shape[-1])
    tokens = mesh_lib.constrain(tokens, ("batch", "length", "embed"))
    return jnp.mean(tokens, axis=1), {"tokens": tokens} if "tokens" in want else {}


build = ConvEncoder
