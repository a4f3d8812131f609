"""Random masks of squares of tokens (SimMIM, Xie et al. 2022, arXiv:2111.09886, sec. 3.2)."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from mmjax.masking import highest
from mmjax.masking.random import Random


@dataclasses.dataclass(frozen=True)
class Squares:
  """As `Random`, but squares of `side` x `side` tokens are masked or seen as a whole.

  Attributes:
    ratio: share of the squares that is masked.
    side: of a square in tokens; it divides both sides of the grid.
  """

  ratio: float = 0.6
  side: int = 2
  guided: ClassVar[str | None] = None

  def __post_init__(self):
    if self.side < 1:
      raise ValueError(f"side={self.side}: must be at least 1")

  def __call__(self, keys, grid, guide=None):
    if len(grid) != 2 or any(count % self.side for count in grid):
      raise ValueError(f"side={self.side}: does not divide a grid of {'x'.join(map(str, grid))} "
                       "tokens")
    rows, columns = (count // self.side for count in grid)
    coarse = Random(self.ratio)(keys, (rows, columns))
    masked = coarse.masked.reshape(-1, rows, columns)
    masked = jnp.repeat(jnp.repeat(masked, self.side, axis=1), self.side, axis=2)
    return highest(masked.reshape(len(masked), -1).astype(jnp.float32),
                   coarse.drop.shape[1] * self.side ** 2)


build = Squares
