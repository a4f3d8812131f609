"""Uniformly random masks (MAE, He et al. 2022, arXiv:2111.06377, sec. 3)."""

import dataclasses
import math
from typing import ClassVar

import jax

from mmjax.masking import dropped, highest


@dataclasses.dataclass(frozen=True)
class Random:
  """Each token is as likely to be masked as any other.

  Attributes:
    ratio: share of the tokens that is masked.
  """

  ratio: float = 0.75
  guided: ClassVar[str | None] = None

  def __call__(self, keys, grid, guide=None):
    size = math.prod(grid)
    scores = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys)
    return highest(scores, dropped(size, self.ratio))


build = Random
