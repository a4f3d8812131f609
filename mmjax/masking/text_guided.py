"""Masks guided by the text that goes with an image.

  Text-Guided Video MAE   drop="high", by a frozen CLIP   arXiv:2408.00759
  SyCoCa                  drop="high" to reconstruct the image, "low" to caption it   arXiv:2401.02137
"""

import dataclasses
import math
from typing import ClassVar

from mmjax.masking import check_guide, choose, dropped


@dataclasses.dataclass(frozen=True)
class TextGuided:
  """Masks the patches that say most, or least, of what the text says.

  `guide` is each patch's similarity to the text, on any scale. No randomness is left.

  Attributes:
    ratio: share of the tokens that is masked.
    drop: "high": the patches most similar to the text are masked, so that it is needed to
      reconstruct them; "low": the least similar are, so that what describes the text is seen.
  """

  ratio: float = 0.5
  drop: str = "high"
  guided: ClassVar[str | None] = "text"

  def __post_init__(self):
    if self.drop not in ("low", "high"):
      raise ValueError(f"drop={self.drop!r}: must be 'low' or 'high'")

  def __call__(self, keys, grid, guide=None):
    size = math.prod(grid)
    check_guide("text_guided", "similarity to the text", guide, size)
    return choose(guide, dropped(size, self.ratio), self.drop)


build = TextGuided
