"""Decoder of SparK (Tian et al. 2023, arXiv:2301.03580, sec. 3.2): from a CNN's maps to pixels."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.models.convnext import seen_cells
from mmjax.nn.conv import Conv, GroupNorm, upsample
from mmjax.nn.linear import logical
from mmjax.nn.norm import layer_norm
from mmjax.nn.patch import patchify


class UNetDecoder(nn.Module):
  """From the coarsest map to pixels, each step twice as fine, the encoder's maps added on the way.

  The holes of each map are first filled with a learned token of that map. Norms are group norms
  (the paper: batch norms), so that rows stay independent.

  Attributes:
    stages: maps of the encoder.
    patch: pixels a side of a cell of the coarsest.
    width: channels at the coarsest map; half of them at each step.
    channels: of the result.
    dtype: of the convolutions.
  """
  stages: int = 4
  patch: int = 32
  width: int = 768
  channels: int = 3
  dtype: str = "float32"

  def __post_init__(self):
    steps = self.patch.bit_length() - 1
    if self.patch != 2 ** steps or steps < self.stages - 1:
      raise ValueError(f"UNetDecoder.patch: {self.patch} is not a power of two of {self.stages} "
                       "stages at least")
    if self.width % self.patch:
      raise ValueError(f"UNetDecoder.width: {self.width} cannot be halved down to {self.patch} "
                       "times finer; take a multiple of patch")
    super().__post_init__()

  @property
  def want(self) -> tuple[str, ...]:
    """Features of the encoder that it reads."""
    return tuple(f"stage/{i}" for i in range(self.stages))

  @nn.compact
  def __call__(self, features, mask, grid, *, keys=None, train=False):
    """Predicts all cells; nothing in it is random.

    Args:
      features: {"stage/i": [B, rows_i, columns_i, C_i]}.
      mask: a `masking.Mask` of the coarsest map's cells.
      grid: (rows, columns) of that map.

    Returns:
      float32 [B, N, patch * patch * channels], cells row by row.
    """
    del keys, train
    seen = seen_cells(mask.keep, grid)
    x = None
    for step in range(self.patch.bit_length() - 1):
      width = self.width >> step
      if step < self.stages:
        stage = self.stages - 1 - step
        filled = self._filled(features[f"stage/{stage}"], seen, stage)
        skip = Conv(width, dtype=self.dtype, name=f"skip_{step}")(filled)
        x = skip if x is None else x + skip
      x = self._finer(x, width, step)
      seen = upsample(seen)
    x = Conv(self.channels, 1, axis="channels", dtype="float32", name="out")(x)
    cells = patchify(x.astype(jnp.float32), (self.patch, self.patch))
    return cells.reshape(*cells.shape[:2], -1)

  def _filled(self, x, seen, stage):
    """A map of the encoder with its token in all holes."""
    x = layer_norm(1e-6, f"norm_{stage}")(x).astype(self.dtype)
    token = self.param(f"mask_token_{stage}", logical(nn.initializers.normal(0.02), "embed"),
                       x.shape[-1:], jnp.float32)
    return jnp.where(seen, x, token.astype(x.dtype))

  def _finer(self, x, width, step):
    """[B, H, W, width] -> [B, 2 H, 2 W, width / 2]."""
    x = upsample(x)
    x = nn.relu(GroupNorm(name=f"norm_{step}_0")(
        Conv(width, dtype=self.dtype, name=f"conv_{step}_0")(x)))
    return GroupNorm(name=f"norm_{step}_1")(
        Conv(width // 2, dtype=self.dtype, name=f"conv_{step}_1")(x))


build = UNetDecoder
