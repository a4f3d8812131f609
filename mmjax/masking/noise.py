"""Masks from colour noise (ColorMAE, Hinojosa et al. 2024, arXiv:2407.13036, sec. 3)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.masking import dropped, highest

COLOURS = ("red", "blue", "green", "purple")
REACH = 3  # standard deviations after which a blur ends


@dataclasses.dataclass(frozen=True)
class Noise:
  """Masks where filtered white noise is highest; with G the Gaussian blur and W the noise:

    red     low-pass    G_coarse W                 large connected regions
    blue    high-pass   W - G_fine W               evenly spread
    green   band-pass   G_fine W - G_coarse W      patches of some tokens, evenly spread
    purple  band-stop   W - (G_fine W - G_coarse W)

  The paper prepares large patterns and takes random crops of them; here each row filters its own
  noise, which is larger than the grid by the reach of the blur. The grid may have frames.

  Attributes:
    colour: a name of `COLOURS`.
    ratio: share of the tokens that is masked.
    fine, coarse: standard deviations of the blurs, in tokens.
  """

  colour: str = "green"
  ratio: float = 0.75
  fine: float = 0.75
  coarse: float = 2.0
  guided: ClassVar[str | None] = None

  def __post_init__(self):
    if self.colour not in COLOURS:
      raise ValueError(f"colour={self.colour!r}: must be one of {', '.join(COLOURS)}")
    if not 0 < self.fine < self.coarse:
      raise ValueError(f"fine={self.fine}: must be above 0 and below coarse={self.coarse}")

  def __call__(self, keys, grid, guide=None):
    size = math.prod(grid)
    margin = math.ceil(REACH * self.coarse)

    def scores(key):
      white = jax.random.normal(key, tuple(side + 2 * margin for side in grid))
      fine, coarse = blur(white, self.fine, margin), blur(white, self.coarse, margin)
      white = white[tuple(slice(margin, margin + side) for side in grid)]
      return {"red": coarse, "blue": white - fine, "green": fine - coarse,
              "purple": white - (fine - coarse)}[self.colour].reshape(size)

    return highest(jax.vmap(scores)(keys), dropped(size, self.ratio))


def blur(x: jax.Array, deviation: float, margin: int) -> jax.Array:
  """`x` under a Gaussian of standard deviation `deviation`, smaller by `margin` on all sides."""
  for axis, side in enumerate(x.shape):
    offset = np.arange(side) - np.arange(margin, side - margin)[:, None]
    kernel = np.exp(-0.5 * (offset / deviation) ** 2)
    kernel = jnp.asarray(kernel / kernel.sum(axis=1, keepdims=True), x.dtype)
    x = jnp.moveaxis(jnp.tensordot(kernel, x, (1, axis), precision="highest"), 0, axis)
  return x


build = Noise
