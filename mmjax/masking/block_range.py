"""Blockwise masks of a ratio that each row draws (iBOT, arXiv:2111.07832, sec. 4.1)."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.masking import dropped
from mmjax.masking.block import cover


class RangeMask(NamedTuple):
  """A `Mask` of which only a part of `drop` is masked.

  Attributes:
    keep: int32 [B, N - M], ascending: tokens that are seen.
    drop: int32 [B, M], ascending: M is the most that a row masks.
    used: bool [B, M]: which of `drop` are masked; the others are seen.
  """

  keep: jax.Array
  drop: jax.Array
  used: jax.Array

  @property
  def masked(self) -> jax.Array:
    """bool [B, N], True where a token is not seen."""
    rows = jnp.arange(len(self.drop))[:, None]
    size = self.keep.shape[1] + self.drop.shape[1]
    return jnp.zeros((len(self.drop), size), bool).at[rows, self.drop].set(self.used)


@dataclasses.dataclass(frozen=True)
class BlockRange:
  """Nothing, or rectangles until a random share of the tokens is masked.

  For objectives that put mask tokens: no token can be left out of rows that mask different numbers.

  Attributes:
    low, high: least and greatest ratio; a row draws its own evenly between them.
    probability: that a row is masked at all.
    least: fewest tokens of a rectangle, 4 in the code that DINOv2 released.
    aspect: as in `Block`.
  """

  low: float = 0.1
  high: float = 0.5
  probability: float = 0.5
  least: int = 4
  aspect: float = 0.3
  guided: ClassVar[str | None] = None

  def __post_init__(self):
    if not 0 <= self.low <= self.high <= 1:
      raise ValueError(f"low={self.low}: must be at least 0 and at most high={self.high}, which is "
                       "at most 1")
    if not 0 < self.probability <= 1:
      raise ValueError(f"probability={self.probability}: must be above 0 and at most 1")
    if self.least < 1:
      raise ValueError(f"least={self.least}: a block has at least one token")
    if not 0 < self.aspect <= 1:
      raise ValueError(f"aspect={self.aspect}: must be above 0 and at most 1, a square")

  def __call__(self, keys, grid, guide=None):
    if len(grid) != 2:
      raise ValueError(f"name='block_range': needs a grid of rows and columns, not {grid}")
    size = math.prod(grid)
    most = dropped(size, self.high, "high")

    def of_row(key):
      for_choice, for_ratio, for_blocks = jax.random.split(key, 3)
      ratio = jax.random.uniform(for_ratio, (), minval=self.low, maxval=self.high)
      count = jnp.minimum(jnp.ceil(ratio * size), most).astype(jnp.int32)
      count *= jax.random.bernoulli(for_choice, self.probability)
      # The first `count` by block, and row by row in the last block, which may cover too many.
      order = cover(for_blocks, grid, count, self.least, self.aspect)
      drop, keep = jnp.split(jnp.argsort(order, stable=True).astype(jnp.int32), [most])
      place = jnp.argsort(drop)
      return RangeMask(jnp.sort(keep), drop[place], (jnp.arange(most) < count)[place])

    return jax.vmap(of_row)(keys)


build = BlockRange
