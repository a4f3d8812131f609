"""Held-out loss: every loss term and metric of the objective over an evaluation stream."""

import collections
import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loss:
  """The objective's own terms and metrics with train=False, each Σsum / Σweight over all batches.

  Sums are kept in float64; padding has weight 0. A term that couples rows (a contrastive loss) sees
  the rows of one batch, so its value depends on `batch_size`.

  Attributes:
    data: the stream, or None for the run's own evaluation stream.
    batch_size: global batch size.
  """

  data: Any = None
  batch_size: int = 256

  def run(self, session) -> dict[str, float]:
    """{term or metric: its weighted mean}, NaN where the whole stream has weight 0."""
    sums = collections.defaultdict(lambda: np.zeros(2, np.float64))
    for batch in session.batches(self.data, self.batch_size):
      for name, term in session.fetch(session.metrics(batch)).items():
        sums[name] += [term.sum, term.weight]
    if not sums:
      raise ValueError("the evaluation stream gave no batch")
    return {name: float(total / weight) if weight else float("nan")
            for name, (total, weight) in sums.items()}


build = Loss
