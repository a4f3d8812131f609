"""Multi-block masks (I-JEPA, Assran et al. 2023, arXiv:2301.08243, sec. 3 and app. A.1).

Several target blocks, which may overlap each other, are predicted from one large block without the
targets' tokens. The geometry is that of the released collator: one uniform number gives a block
both its scale and its aspect, and a corner is drawn from `size of the grid - size of the block`
places a side, so that no block reaches the last row or column.

Where the collator cuts all sets to the shortest of the batch, the counts here are fixed: a target
keeps the first tokens of its block, as many as the smallest block has, and the context its first
`context * N`. Where less is left of the context's block, it takes tokens from around it, and only
if all that is no target is too little (dense targets on a small grid) tokens of targets; the
collator relaxes its context in the same case.
"""

import dataclasses
import math
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.masking import inside

SIZES = 1000  # steps in which the uniform number behind a block's size is drawn


class Blocks(NamedTuple):
  """Tokens numbered row by row.

  Attributes:
    context: int32 [B, K], ascending: what the context encoder sees.
    targets: int32 [B, T, M], each ascending: the blocks that are predicted from it.
  """

  context: jax.Array
  targets: jax.Array


def block_size(uniform: float, scale: tuple, aspect: tuple, grid: tuple) -> tuple[int, int]:
  """(rows, columns) of a block: `uniform` in [0, 1) goes through both ranges at once.

  Args:
    scale: (least, greatest) share of the grid's tokens.
    aspect: (least, greatest) rows / columns.
  """
  low, high = scale
  tokens = int(math.prod(grid) * (low + uniform * (high - low)))
  low, high = aspect
  ratio = low + uniform * (high - low)
  return (min(round(math.sqrt(tokens * ratio)), grid[0] - 1),
          min(round(math.sqrt(tokens / ratio)), grid[1] - 1))


@dataclasses.dataclass(frozen=True)
class MultiBlock:
  """Context and targets of a joint-embedding predictive architecture; the call gives `Blocks`.

  A row draws one size for its targets and one for its context (the collator: a batch).

  Attributes:
    targets: number T of target blocks.
    target_scale: (least, greatest) share of the grid that a target block takes.
    target_aspect: (least, greatest) rows / columns of a target block.
    context_scale: share of the grid of the context's block, which is as square as the grid allows.
    context: share of the grid that the context keeps. A quarter is about the shortest of 128 images
      of 16 x 16 tokens, to which the released code would cut them.
  """

  targets: int = 4
  target_scale: tuple = (0.15, 0.2)
  target_aspect: tuple = (0.75, 1.5)
  context_scale: tuple = (0.85, 1.0)
  context: float = 0.25
  guided: ClassVar[str | None] = None

  def __post_init__(self):
    if self.targets < 1:
      raise ValueError(f"targets={self.targets}: there must be at least one block to predict")
    for key in ("target_scale", "target_aspect", "context_scale"):
      span, limit = getattr(self, key), math.inf if key == "target_aspect" else 1
      if len(span) != 2 or not 0 < span[0] <= span[1] <= limit:
        raise ValueError(f"{key}={span}: must be (least, greatest), above 0"
                         + (" and at most 1" if limit == 1 else ""))
    if not 0 < self.context < 1:
      raise ValueError(f"context={self.context}: must be a share of the tokens between 0 and 1")

  def __call__(self, keys, grid, guide=None):
    sizes = self._sizes("target_scale", self.target_aspect, grid)
    context_sizes = self._sizes("context_scale", (1.0, 1.0), grid)
    per_target = int(sizes.prod(axis=1).min())
    count = math.floor(math.prod(grid) * self.context)
    if not count:
      raise ValueError(f"context={self.context}: leaves none of {grid[0]}x{grid[1]} tokens to see")

    def of_row(key):
      for_targets, for_context = jax.random.split(key)
      block = jax.vmap(inside, (0, None, None))
      target = block(*_draw(for_targets, sizes, self.targets, grid), grid)
      around = ~inside(*_draw(for_context, context_sizes, None, grid), grid)
      rank = jnp.where(target.any(axis=0), 2, around)
      return Blocks(jnp.sort(_first(rank, count)),
                    jax.vmap(lambda one: _first(~one, per_target))(target))

    return jax.vmap(of_row)(keys)

  def _sizes(self, key, aspect, grid):
    """All block sizes (rows, columns), as often as they are drawn: int [SIZES, 2]."""
    if len(grid) != 2:
      raise ValueError(f"name='multi_block': needs a grid of rows and columns, not {grid}")
    scale = getattr(self, key)
    sizes = np.array([block_size(i / SIZES, scale, aspect, grid) for i in range(SIZES)])
    if sizes.min() < 1:
      raise ValueError(f"{key}={scale}: a block may have no token on a grid of {grid[0]}x{grid[1]}"
                       "; it needs a larger share, or smaller patches")
    return sizes


def _draw(key, sizes, count, grid):
  """Corners ([count, 2], or [2] without count) and the size [2] that those blocks share."""
  for_size, for_corner = jax.random.split(key)
  size = jnp.asarray(sizes)[jax.random.randint(for_size, (), 0, len(sizes))]
  shape = (2,) if count is None else (count, 2)
  return jax.random.randint(for_corner, shape, 0, jnp.asarray(grid) - size), size


def _first(rank, count):
  """The first `count` places in the order of `rank` [N], the earlier first among equals."""
  return jnp.argsort(rank, stable=True)[:count].astype(jnp.int32)


build = MultiBlock
