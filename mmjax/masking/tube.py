"""Tube masks (VideoMAE, Tong et al. 2022, arXiv:2203.12602, sec. 3.3).

What is hidden stays hidden: a patch that another frame shows unmasked could be copied from there.
"""

import dataclasses
import math
from typing import ClassVar

import jax.numpy as jnp

from mmjax.masking import Mask
from mmjax.masking.random import Random


@dataclasses.dataclass(frozen=True)
class Tube:
  """One random mask of the picture for all frames of a clip.

  Attributes:
    ratio: share of the places in the picture, and so of the tokens, that is masked.
  """

  ratio: float = 0.9
  guided: ClassVar[str | None] = None

  def __call__(self, keys, grid, guide=None):
    if len(grid) != 3:
      raise ValueError(f"name='tube': needs a grid of frames, rows and columns, not {grid}")
    frames, *picture = grid
    first = jnp.arange(frames, dtype=jnp.int32)[:, None] * math.prod(picture)

    def in_all_frames(places):
      return (first + places[:, None, :]).reshape(len(places), -1)

    mask = Random(self.ratio)(keys, tuple(picture))
    return Mask(in_all_frames(mask.keep), in_all_frames(mask.drop))


build = Tube
