"""What is kept of a data set, and how it is stored."""

import dataclasses
import re

DEDUP = ("none", "exact", "perceptual")


@dataclasses.dataclass(frozen=True)
class Settings:
  """The steps of a build, in their order. Every default keeps everything.

  Attributes:
    min_side: pixels of the shorter side, at least.
    max_aspect: longer by shorter side, at most; 0 is no limit.
    captions: columns that hold captions and their weights, as in alt=0.3,synthetic=0.7: one of those that a
      record has is drawn for it, under the names that the data give them. Without, `caption` is taken as it is.
    min_words: of a caption; one with fewer is left out.
    max_words: of a caption; one with more is left out. 0 is no limit.
    exclude: regular expressions; a caption in which one is found is left out.
    languages: ISO 639-1 codes; a caption in another language is left out (py3langid, extra `build`).
    dedup: "exact" leaves out pictures whose file has been seen, "perceptual" those that look like one
      that has been seen.
    distance: bits of 64 in which perceptual hashes of the same picture may differ.
    resize: pixels of the shorter side; pictures that are larger are made smaller and stored as JPEG.
      0 stores every file as it is.
    quality: of these JPEGs.
    shard_records: of a file.
    seed: of what is drawn.
  """

  min_side: int = 0
  max_aspect: float = 0.0
  captions: tuple[str, ...] = ()
  min_words: int = 0
  max_words: int = 0
  exclude: tuple[str, ...] = ()
  languages: tuple[str, ...] = ()
  dedup: str = "none"
  distance: int = 4
  resize: int = 0
  quality: int = 92
  shard_records: int = 10_000
  seed: int = 0

  def __post_init__(self):
    for name in ("min_side", "max_aspect", "min_words", "max_words", "resize"):
      self._require(name, getattr(self, name) >= 0, "expected 0 or more")
    self._require("max_aspect", not self.max_aspect or self.max_aspect >= 1, "expected 1 or more, or 0")
    self._require("max_words", not self.max_words or self.max_words >= self.min_words,
                  f"is below min_words = {self.min_words}")
    self._require("dedup", self.dedup in DEDUP, f"expected one of {', '.join(DEDUP)}")
    self._require("distance", 0 <= self.distance <= 15, "expected 0 to 15 bits")
    self._require("quality", 1 <= self.quality <= 100, "expected 1 to 100")
    self._require("shard_records", self.shard_records >= 1, "expected 1 or more")
    for pattern in self.exclude:
      try:
        re.compile(pattern)
      except re.error as error:
        raise ValueError(f"exclude: {pattern!r} is no regular expression: {error}") from error
    self._require("captions", len(self.caption_weights) <= 16, "expected 16 columns at most")

  def _require(self, name, good, want):
    if not good:
      raise ValueError(f"{name} = {getattr(self, name)!r}: {want}")

  @property
  def caption_weights(self) -> dict[str, float]:
    """{column: weight}."""
    weights = {}
    for text in self.captions:
      column, _, weight = text.partition("=")
      try:
        weights[column] = float(weight or 1)
      except ValueError as error:
        raise ValueError(f"captions: the weight of {column!r} is no number: {weight!r}") from error
      if not (column and weights[column] > 0):
        raise ValueError(f"captions: expected COLUMN=WEIGHT with a weight above 0, not {text!r}")
    return weights

  @property
  def filters_captions(self) -> bool:
    """Whether a record without a caption that passes is left out."""
    return bool(self.min_words or self.max_words or self.exclude or self.languages)
