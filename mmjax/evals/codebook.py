"""Use of a tokenizer's codes over a stream: how many are used, and how evenly."""

import dataclasses
from typing import Any

import numpy as np

IDS, VOCABULARY = "image/ids", "image/vocabulary"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Codebook:
  """Which codes stand for the pictures of a stream (VQGAN's code logs the same two).

  Metrics: "used", the share of all codes that stands for something; "perplexity", exp of the
  entropy of their frequencies, and "perplexity/ceiling", that of equal use, which is K.

  Attributes:
    data: the stream, or None for the run's own evaluation stream.
    batch_size: global batch size.
    max_records: of the stream use about the first so many; None uses all.
  """

  data: Any = None
  batch_size: int = 256
  max_records: int | None = None

  def __post_init__(self):
    if self.max_records is not None and self.max_records < 1:
      raise ValueError(f"max_records: must be at least 1, or None for all, not {self.max_records}")

  def run(self, session) -> dict[str, float]:
    """See the class.

    Raises:
      ValueError: the objective has no ids, or no record of the stream is valid.
    """
    uses, seen = None, 0
    for batch in session.batches(self.data, self.batch_size):
      features = session.features(batch, (IDS, VOCABULARY))
      if IDS not in features:
        raise session.error("name", f"the objective gives no {IDS!r}; it has no tokenizer")
      found, size, valid = session.fetch((features[IDS], features[VOCABULARY], batch["valid"]))
      counted = np.bincount(found[valid].reshape(-1), minlength=int(size))
      uses, seen = counted if uses is None else uses + counted, seen + int(valid.sum())
      if self.max_records is not None and seen >= self.max_records:
        break
    if not seen:
      raise ValueError("the evaluation stream has no valid record")
    share = uses[uses > 0] / uses.sum()
    return {"used": float(np.mean(uses > 0)),
            "perplexity": float(np.exp(-np.sum(share * np.log(share)))),
            "perplexity/ceiling": float(len(uses))}


build = Codebook
