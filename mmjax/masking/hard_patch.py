"""Hard patches mining (HPM, Wang et al. 2023, arXiv:2304.05919, sec. 3.3)."""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from mmjax.masking import check_guide, dropped, highest


@dataclasses.dataclass(frozen=True)
class HardPatch:
  """Masks a growing share of patches where the loss is predicted to be highest, others at random.

  From easy to hard: of the masked patches the share `start + (final - start) * step / ramp_steps`
  (at most `final`) are hard. `guide` is the predicted loss, on any scale.

  Attributes:
    ratio: share of the tokens that is masked.
    start, final: share of these that is hard, at the first step and after the ramp.
    ramp_steps: length of the ramp (in a config any unit, such as `ramp_percent`).
  """

  ratio: float = 0.75
  start: float = 0.0
  final: float = 0.5
  ramp_steps: int = 0
  guided: ClassVar[str | None] = "loss"

  def __post_init__(self):
    for key in ("start", "final"):
      if not 0 <= getattr(self, key) <= 1:
        raise ValueError(f"{key}={getattr(self, key)}: a share is from 0 to 1")
    if self.ramp_steps < 0:
      raise ValueError(f"ramp_steps={self.ramp_steps}: must be at least 0")

  def __call__(self, keys, grid, guide=None, step=None):
    """As all masks; `step` int32 [] is how far training is, None for the end of the ramp."""
    size = math.prod(grid)
    check_guide("hard_patch", "predicted loss", guide, size)
    count = dropped(size, self.ratio)
    hard = jnp.floor(self.share(step) * count)
    place = jnp.argsort(jnp.argsort(-guide, axis=1, stable=True), axis=1)  # 0 for the highest loss
    chance = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(keys)  # below 1
    return highest(jnp.where(place < hard, 1.0, chance), count)

  def share(self, step: jax.Array | None) -> float | jax.Array:
    """Share of the masked patches that is hard at `step`, float []."""
    if step is None or not self.ramp_steps:
      return self.final
    return self.start + (self.final - self.start) * jnp.minimum(step / self.ramp_steps, 1.0)


build = HardPatch
