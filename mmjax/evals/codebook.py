"""Use of a tokenizer's codes over a stream: how many are used, and how evenly."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from mmjax.evals import counts

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
    counts.check(self)

  def check(self, session) -> None:
    """Raises ConfigError if the objective makes no ids; nothing is computed."""
    features = functools.partial(session.features, want=(IDS, VOCABULARY))
    try:
      jax.eval_shape(features, session.abstract_batch(self.data, self.batch_size))
    except ValueError as error:
      raise session.error("name", f"the objective has no tokenizer whose ids it gives; asked for "
                                  f"{IDS!r}, it says: {error}") from error

  def run(self, session) -> dict[str, float]:
    """See the class; ValueError if no record of the stream is valid."""
    uses, seen = None, 0
    for batch in session.batches(self.data, self.batch_size):
      features = session.features(batch, (IDS, VOCABULARY))
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
