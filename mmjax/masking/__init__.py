"""Which tokens a model does not get to see: a name in a config is a file here.

A mask is a frozen dataclass of numbers, called with one PRNG key a row and the token grid:

    mask(keys [B], grid, guide=None) -> Mask      grid = (rows, columns) or (frames, rows, columns)

Its counts follow from its numbers and the grid alone, so that shapes are static. `guide` float
[B, N] says per token what a guided mask goes by (`guided` names it: "attention", "loss" or "text").
"""

import math
from typing import ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp


class Mask(NamedTuple):
  """The tokens of each row in two parts, numbered row by row (frame by frame).

  Attributes:
    keep: int32 [B, K], ascending: what is seen.
    drop: int32 [B, N - K], ascending: what is not.
  """

  keep: jax.Array
  drop: jax.Array

  @property
  def masked(self) -> jax.Array:
    """bool [B, N], True where a token is not seen."""
    rows = jnp.arange(len(self.drop))[:, None]
    size = self.keep.shape[1] + self.drop.shape[1]
    return jnp.zeros((len(self.drop), size), bool).at[rows, self.drop].set(True)


class Masking(Protocol):
  """What stands behind `mask` in the config of an objective."""

  guided: ClassVar[str | None]

  def __call__(self, keys: jax.Array, grid: tuple, guide: jax.Array | None = None) -> Mask: ...


def dropped(size: int, ratio: float, key: str = "ratio") -> int:
  """How many of `size` tokens are masked: size - floor(size * (1 - ratio)), as in MAE.

  Args:
    key: what the config calls the ratio, for errors.

  Raises:
    ValueError: none would be seen, or none masked.
  """
  count = size - math.floor(round(size * (1 - ratio), 9))  # 0.1 + 0.2 is a little more than 0.3
  if not 0 < count < size:
    raise ValueError(f"{key}={ratio}: masks {count} of {size} tokens; at least one must be masked "
                     "and one seen")
  return count


def highest(scores: jax.Array, count: int) -> Mask:
  """Masks the `count` tokens of the highest score in each row [B, N]; of equals the later ones."""
  size = scores.shape[1]
  order = jnp.argsort(scores, axis=1, stable=True).astype(jnp.int32)
  keep, drop = jnp.split(order, [size - count], axis=1)
  return Mask(jnp.sort(keep, axis=1), jnp.sort(drop, axis=1))


def choose(scores: jax.Array, count: int, drop: str) -> Mask:
  """Masks `count` tokens of the highest (`drop` "high") or lowest ("low") scores in each row."""
  return highest(scores if drop == "high" else -scores, count)


def inside(corner: jax.Array, size: jax.Array, grid: tuple) -> jax.Array:
  """bool [N]: the tokens of a block of `size` [2] with its upper left one at `corner` [2]."""
  row, column = jnp.divmod(jnp.arange(math.prod(grid)), grid[1])
  row, column = row - corner[0], column - corner[1]
  return (row >= 0) & (row < size[0]) & (column >= 0) & (column < size[1])


def check_kind(mask: tuple, *kinds: type) -> None:
  """Raises ValueError unless what a mask gave is of one of these kinds, all of which its user honours."""
  if not isinstance(mask, kinds):
    raise ValueError(f"name: gives {type(mask).__name__}, of which this objective knows nothing; take one that gives "
                     f"{' or '.join(kind.__name__ for kind in kinds)}, such as 'random' or 'block'")


def check_guide(name: str, what: str, guide: jax.Array | None, size: int) -> None:
  """Raises ValueError unless `guide` is [B, size]; `what` the mask `name` needs it to be."""
  if guide is None:
    raise ValueError(f"name={name!r}: goes by {what}, which nothing in this objective gives; "
                     "take a target that does, or a mask that is not guided")
  if guide.ndim != 2 or guide.shape[1] != size:
    raise ValueError(f"name={name!r}: {what} of shape {list(guide.shape)} for {size} tokens; "
                     "it must be one number a token")


def restore(mask: Mask, seen: jax.Array, filling: jax.Array) -> jax.Array:
  """Tokens back in their places: [B, N, D].

  Args:
    seen: [B, K, D], of `mask.keep`.
    filling: of `mask.drop`, [B, N - K, D] or anything that broadcasts to it, such as a mask token.
  """
  filling = jnp.broadcast_to(filling, (*mask.drop.shape, seen.shape[-1])).astype(seen.dtype)
  place = jnp.argsort(jnp.concatenate([mask.keep, mask.drop], axis=1), axis=1)
  return jnp.take_along_axis(jnp.concatenate([seen, filling], axis=1), place[:, :, None], axis=1)
