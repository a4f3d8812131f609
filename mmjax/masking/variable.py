"""Masks of a variable ratio (MAGE, Li et al. 2023, arXiv:2211.09117, sec. 3.2)."""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from mmjax.masking import dropped


class VariableMask(NamedTuple):
  """A `Mask` that also hides some of the tokens that it keeps.

  Attributes:
    keep: int32 [B, K], ascending: what the encoder gets, hidden or not.
    drop: int32 [B, N - K], ascending: what it does not get.
    hidden: bool [B, K]: which of `keep` it gets as mask tokens.
  """

  keep: jax.Array
  drop: jax.Array
  hidden: jax.Array

  @property
  def masked(self) -> jax.Array:
    """bool [B, N], True where a token is not seen: dropped or hidden."""
    rows = jnp.arange(len(self.keep))[:, None]
    size = self.keep.shape[1] + self.drop.shape[1]
    return jnp.ones((len(self.keep), size), bool).at[rows, self.keep].set(self.hidden)


@dataclasses.dataclass(frozen=True)
class Variable:
  """Uniformly random masks whose ratio a row draws from a truncated normal distribution.

  The share `minimum` of the tokens is dropped in every row; what a row masks beyond that stays in
  the sequence as mask tokens, so that shapes are static. The paper draws one ratio a batch.

  Attributes:
    mean, std: of the normal distribution before it is cut.
    minimum, maximum: least and greatest ratio. A row with a ratio of 1 sees no token at all.
  """

  mean: float = 0.55
  std: float = 0.25
  minimum: float = 0.5
  maximum: float = 1.0
  guided: ClassVar[str | None] = None

  def __post_init__(self):
    if not 0 < self.minimum < self.maximum <= 1:
      raise ValueError(f"minimum={self.minimum}: must be above 0 and below maximum={self.maximum}, "
                       "which is at most 1")
    if self.std <= 0:
      raise ValueError(f"std={self.std}: must be above 0")

  def __call__(self, keys, grid, guide=None):
    size = math.prod(grid)
    fixed = dropped(size, self.minimum, "minimum")

    def of_row(key):
      for_ratio, for_order = jax.random.split(key)
      count = jnp.ceil(size * self.ratio(for_ratio)).astype(jnp.int32)
      order = jnp.argsort(jax.random.uniform(for_order, (size,))).astype(jnp.int32)
      drop, keep = jnp.split(order, [fixed])
      place = jnp.argsort(keep)
      hidden = jnp.arange(size - fixed) < count - fixed
      return VariableMask(keep[place], jnp.sort(drop), hidden[place])

    return jax.vmap(of_row)(keys)

  def ratio(self, key: jax.Array) -> jax.Array:
    """The ratio of one row, float32 []."""
    low, high = ((limit - self.mean) / self.std for limit in (self.minimum, self.maximum))
    return self.mean + self.std * jax.random.truncated_normal(key, low, high)


build = Variable
