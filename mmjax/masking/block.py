"""Blockwise masks (BEiT, Bao et al. 2022, arXiv:2106.08254, alg. 1)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.masking import dropped, highest, inside

NONE = jnp.iinfo(jnp.int32).max


@dataclasses.dataclass(frozen=True)
class Block:
  """Rectangles of random size, aspect and place, until enough is masked.

  Of the last one, tokens are masked row by row up to the exact count, where the paper goes over it.

  Attributes:
    ratio: share of the tokens that is masked.
    least: fewest tokens of a rectangle; the most are those still missing.
    aspect: least rows / columns of a rectangle, the inverse being the greatest; drawn evenly on a
      logarithmic scale as in the released code.
  """

  ratio: float = 0.4
  least: int = 16
  aspect: float = 0.3
  guided: ClassVar[str | None] = None

  def __post_init__(self):
    if self.least < 1:
      raise ValueError(f"least={self.least}: a block has at least one token")
    if not 0 < self.aspect <= 1:
      raise ValueError(f"aspect={self.aspect}: must be above 0 and at most 1, a square")

  def __call__(self, keys, grid, guide=None):
    if len(grid) != 2:
      raise ValueError(f"name='block': needs a grid of rows and columns, not {grid}")
    size = math.prod(grid)
    count = dropped(size, self.ratio)
    if count < self.least:
      raise ValueError(f"least={self.least}: a block has more tokens than the {count} of {size} "
                       f"that ratio={self.ratio} masks")
    order = jax.vmap(lambda key: cover(key, grid, count, self.least, self.aspect))(keys)
    return highest(-order, count)


def cover(key: jax.Array, grid: tuple, count: int | jax.Array, least: int,
          aspect: float) -> jax.Array:
  """Draws blocks until they cover `count` tokens of a row, which may be traced.

  Returns:
    int32 [N]: the number of the first block that covers a token, `NONE` where there is none.
  """
  sides = jnp.asarray(grid)

  def missing(order):
    return count - jnp.sum(order < NONE)

  def draw(carry):
    order, number = carry
    for_area, for_aspect, for_corner = jax.random.split(jax.random.fold_in(key, number), 3)
    area = jax.random.uniform(for_area, (), minval=least, maxval=jnp.maximum(least, missing(order)))
    log = jax.random.uniform(for_aspect, (), minval=math.log(aspect), maxval=-math.log(aspect))
    size = jnp.round(jnp.sqrt(area * jnp.exp(jnp.stack([log, -log])))).astype(jnp.int32)
    size = jnp.clip(size, 1, sides)
    block = inside(jax.random.randint(for_corner, (2,), 0, sides - size + 1), size, grid)
    return jnp.where(block & (order == NONE), number, order), number + 1

  start = jnp.full(math.prod(grid), NONE, jnp.int32), jnp.int32(0)
  return jax.lax.while_loop(lambda carry: missing(carry[0]) > 0, draw, start)[0]


build = Block
