"""Accuracy and cross-entropy of a classifier's logits."""

import dataclasses
from typing import Any

import numpy as np

from mmjax.evals import ranking


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """-log softmax(logits)[label] in nats: float64 [N] from logits [N, C] and labels int [N]."""
  logits = logits.astype(np.float64)
  logits = logits - logits.max(axis=1, keepdims=True)
  return np.log(np.exp(logits).sum(axis=1)) - logits[np.arange(len(labels)), labels]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Classification:
  """Top-1, top-5 and cross-entropy from the feature `logits` [B, C].

  Records with a negative label are left out.

  Attributes:
    label: the batch's key of true classes, int32 [B].
    data: the stream, or None for the run's own evaluation stream.
    batch_size: global batch size.
  """

  label: str = "label"
  data: Any = None
  batch_size: int = 256

  def run(self, session) -> dict[str, float]:
    """`top1` (/chance, /majority), `top5` past 5 classes, `cross_entropy` in nats, `records`."""
    tally, entropy = None, 0.0
    for batch in session.batches(self.data, self.batch_size):
      logits, labels, valid = session.fetch(
          (session.features(batch)["logits"], batch[self.label], batch["valid"]))
      rows = valid & (labels >= 0)
      logits, labels = logits[rows], labels[rows]
      tally = tally or ranking.Tally(logits.shape[1])
      tally.add(logits, labels)
      entropy += cross_entropy(logits, labels).sum()
    if tally is None:
      raise ValueError("the evaluation stream gave no batch")
    metrics = tally.metrics()
    session.save("classes", tally.arrays())
    return metrics | {"cross_entropy": float(entropy / metrics["records"])}


build = Classification
