"""Convolutional image encoder of VQGAN (Esser et al. 2021, arXiv:2012.09841, table 7).

Without the attention that the paper has at the lowest resolution.
"""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.conv import Conv, GroupNorm, ResidualBlock
from mmjax.nn.linear import Linear
from mmjax.nn.names import check_choice
from mmjax.nn.patch import patch_grid
from mmjax.parallel import mesh as mesh_lib


class ConvEncoder(nn.Module):
  """Image to a grid of tokens, each stage but the last halving its sides.

  Attributes:
    width: channels of the first stage.
    multipliers: of the width, one a stage.
    blocks: residual blocks a stage.
    out_dim: width of a linear projection of the result; None for none.
    out_bias: that projection has a bias.
    classes: number of outputs of a classifier, zero at the start; None for none.
    dtype: of the convolutions, "float32" or "bfloat16". Parameters and norms are float32.
  """
  width: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  blocks: int = 2
  out_dim: int | None = None
  out_bias: bool = False
  classes: int | None = None
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
      The mean of the tokens, float32 [B, D] (projected with `out_dim`), and a dict of
        "tokens" [B, N, D], row by row, if wanted;
        "logits" float32 [B, classes], if there is a classifier.

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
    return self._head(jnp.mean(tokens, axis=1), {"tokens": tokens} if "tokens" in want else {})

  def _head(self, y, features):
    if self.out_dim:
      y = Linear((self.out_dim,), ("embed", "joint"), self.out_bias, dtype=self.dtype,
                 name="projection")(y)
    if self.classes:
      head = Linear((self.classes,), ("embed", "classes"), kernel_init=nn.initializers.zeros,
                    dtype=self.dtype, name="classifier")
      features["logits"] = head(y).astype(jnp.float32)
    return mesh_lib.constrain(y, ("batch", "embed")), features


build = ConvEncoder
