"""Masks guided by attention.

  MaskAlign, MILAN  drop="low", sample=True     arXiv:2211.08887, arXiv:2208.06049
  AttMask-High      drop="high", sample=False   arXiv:2203.12719
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.masking import check_guide, choose, dropped

TINY = 1e-30  # attention of zero: the last to be drawn, in random order


@dataclasses.dataclass(frozen=True)
class Attentive:
  """Keeps or drops the tokens to which a teacher's class token attends most.

  `guide` is that attention, averaged over the heads: not negative, on any scale.

  Attributes:
    ratio: share of the tokens that is masked.
    drop: "low": the attended tokens are kept; "high": they are masked.
    sample: tokens are drawn without replacement, each in proportion to its attention, rather than
      the most attended taken.
  """

  ratio: float = 0.7
  drop: str = "low"
  sample: bool = True
  guided: ClassVar[str | None] = "attention"

  def __post_init__(self):
    if self.drop not in ("low", "high"):
      raise ValueError(f"drop={self.drop!r}: must be 'low' or 'high'")

  def __call__(self, keys, grid, guide=None):
    size = math.prod(grid)
    check_guide("attentive", "attention", guide, size)
    scores = guide.astype(jnp.float32)
    if self.sample:  # the Gumbel top-k trick (Kool et al. 2019, arXiv:1903.06059, sec. 2.3)
      gumbel = jax.vmap(lambda key: jax.random.gumbel(key, (size,)))(keys)
      scores = jnp.log(jnp.maximum(scores, TINY)) + gumbel
    return choose(scores, dropped(size, self.ratio), self.drop)


build = Attentive
