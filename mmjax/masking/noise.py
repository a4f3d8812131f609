"""Masks from colour noise (ColorMAE, Hinojosa et al. 2024, arXiv:2407.13036, sec. 3)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.masking import dropped, highest

COLOURS = ("red", "blue", "green", "purple")


@dataclasses.dataclass(frozen=True)
class Noise:
  """Masks where filtered white noise is highest; with G the Gaussian blur and W the noise:

    red     low-pass    G_coarse W                 large connected regions
    blue    high-pass   W - G_fine W               evenly spread
    green   band-pass   G_fine W - G_coarse W      patches of some tokens, evenly spread
    purple  band-stop   W - (G_fine W - G_coarse W)

  The paper prepares larger patterns and takes random crops of them; here each row filters its own,
  twice as large a side so that its edges do not meet. Any number of sides.

  Attributes:
    colour: a name of `COLOURS`.
    ratio: share of the tokens that is masked.
    fine, coarse: standard deviations of the blurs, in tokens.
  """

  colour: str = "green"
  ratio: float = 0.75
  fine: float = 0.5
  coarse: float = 2.0
  guided: ClassVar[str | None] = None

  def __post_init__(self):
    if self.colour not in COLOURS:
      raise ValueError(f"colour={self.colour!r}: must be one of {', '.join(COLOURS)}")
    if not 0 < self.fine < self.coarse:
      raise ValueError(f"fine={self.fine}: must be above 0 and below coarse={self.coarse}")

  def __call__(self, keys, grid, guide=None):
    size = math.prod(grid)
    sides = tuple(2 * side for side in grid)
    gain = self._gain(sides)

    def scores(key):
      white = jnp.fft.rfftn(jax.random.normal(key, sides))
      noise = jnp.fft.irfftn(white * gain, sides)
      return noise[tuple(slice(side) for side in grid)].reshape(size)

    return highest(jax.vmap(scores)(keys), dropped(size, self.ratio))

  def _gain(self, sides):
    """The filter at the frequencies of `rfftn`; of a Gaussian it is a Gaussian."""
    axes = [np.fft.fftfreq(side) for side in sides[:-1]] + [np.fft.rfftfreq(sides[-1])]
    squared = sum(axis ** 2 for axis in np.meshgrid(*axes, indexing="ij"))  # cycles a token
    fine, coarse = (np.exp(-2 * (math.pi * deviation) ** 2 * squared)
                    for deviation in (self.fine, self.coarse))
    gain = {"red": coarse, "blue": 1 - fine, "green": fine - coarse,
            "purple": 1 - (fine - coarse)}[self.colour]
    return jnp.asarray(gain, jnp.float32)


build = Noise
