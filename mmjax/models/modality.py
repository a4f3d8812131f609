"""One row of the table of modalities that 4M is configured by."""

import dataclasses
import math
from typing import Any

from mmjax.masking import spans
from mmjax.nn.names import check_choice

KINDS = ("patches", "tokens", "sequence")


@dataclasses.dataclass(frozen=True)
class Modality:
  """What a modality is, and from it its tokenizer, embeddings, positions, budgets and head.

  Attributes:
    kind: "patches": pixels, which the encoder embeds itself, and which are never predicted;
      "tokens": a grid of ids, which `target` makes; "sequence": ids of the batch, such as a text.
    source: key of the batch, of patches and sequences: "image", "text". A sequence may have a mask
      beside it there, `source`_mask. Of a grid, the tokenizer knows.
    vocab: ids there are; of a sequence, the sentinels of masked spans come after them.
    grid: (rows, columns) of tokens.
    length: of a sequence.
    target: the tokenizer: a file of `mmjax/targets` that gives ids.
    input_alpha, target_alpha: concentration of the Dirichlet distributions from which the budgets
      are drawn, see `masking.budgets`; 0: never part of input or target. Several numbers, as many
      for each modality, are a mixture: a row draws which of them holds.
    weight: of its loss.
  """

  kind: str
  source: str | None = None
  vocab: int | None = None
  grid: tuple[int, int] | None = None
  length: int | None = None
  target: Any = None
  input_alpha: float | tuple = 1.0
  target_alpha: float | tuple = 1.0
  weight: float = 1.0

  def __post_init__(self):
    check_choice("kind", self.kind, KINDS)
    needed = {"patches": ("source",), "tokens": ("vocab", "grid", "target"),
              "sequence": ("source", "vocab", "length")}
    for key in ("source", "vocab", "grid", "length", "target"):
      wanted = key in needed[self.kind]
      if (getattr(self, key) is not None) != wanted:
        raise ValueError(f"{key}: kind={self.kind!r} {'needs it' if wanted else 'has none'}")
    for key in ("input_alpha", "target_alpha"):
      if min(self.alphas(key)) < 0:
        raise ValueError(f"{key}: must not be negative, got {getattr(self, key)}")
    if self.kind == "patches" and self.told:
      raise ValueError("target_alpha: patches have no ids to be predicted as; set it to 0")

  def alphas(self, key):
    """`input_alpha` or `target_alpha` as a tuple."""
    value = getattr(self, key)
    return tuple(value) if isinstance(value, (tuple, list)) else (value,)

  @property
  def seen(self):
    """Whether it may be part of the input."""
    return max(self.alphas("input_alpha")) > 0

  @property
  def told(self):
    """Whether it may be part of the target."""
    return max(self.alphas("target_alpha")) > 0

  @property
  def ids(self):
    """Size of its vocabulary, with the sentinels of a sequence."""
    return self.vocab + (spans.sentinels(self.length) if self.kind == "sequence" else 0)

  def size(self, of_patches):
    """Tokens of the input; (rows, columns) `of_patches` are those of the encoder."""
    if self.kind == "sequence":
      return self.length
    return math.prod(self.grid or of_patches)

  @property
  def target_size(self):
    """Places that may be predicted; of a sequence all but the first, which is given."""
    if self.kind == "sequence":
      return spans.target_length(self.length) - 1
    return math.prod(self.grid)


build = Modality
