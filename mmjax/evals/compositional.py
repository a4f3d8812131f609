"""Is the right caption of a picture nearer than one of the same words, or nearly so?"""

import dataclasses
from typing import Any

import numpy as np

from mmjax.evals import kept, retrieval


def score(right: np.ndarray, wrong: np.ndarray, category: np.ndarray, group: np.ndarray,
          names: tuple[str, ...] | None = None) -> dict[str, float]:
  """The metrics of scored records.

  Args:
    right, wrong: float [N], the picture's score with its own caption and with the other.
    category: int [N]; group: int [N], the same for the two records of an example.
    names: of the categories.

  Returns:
    `accuracy`, the share of records with right > wrong (a tie is no hit), of all and of each category
    (SugarCrepe, arXiv:2306.14610, sec. 4). Where examples have two records also Winoground's scores
    (arXiv:2204.03162, eq. 1 to 3), with the chance of random ones: `text`, each picture prefers its
    caption; `image`, each caption its picture; `group`, both.
  """
  hit = right > wrong
  metrics = {"accuracy": float(hit.mean()), "accuracy/chance": 0.5, "records": float(len(hit))}
  for value in np.unique(category) if len(np.unique(category)) > 1 else ():
    name = names[value] if names else str(value)
    metrics[f"accuracy/{name}"] = float(hit[category == value].mean())
  order = np.argsort(group, kind="stable")
  values, begins, counts = np.unique(group[order], return_index=True, return_counts=True)
  pairs = begins[counts == 2]
  if not len(pairs):
    return metrics
  first, second = order[pairs], order[pairs + 1]
  text = hit[first] & hit[second]
  # `wrong` of one record is its picture with the caption of the other.
  image = (right[first] > wrong[second]) & (right[second] > wrong[first])
  return metrics | {"text": float(text.mean()), "image": float(image.mean()), "group": float((text & image).mean()),
                    "text/chance": 1 / 4, "image/chance": 1 / 4, "group/chance": 1 / 6, "examples": float(len(pairs))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compositional:
  """SugarCrepe's and Winoground's measures, of records with two captions, the right one first.

  The stream's records hold `text` [2, L] with its mask (`Tokenise` with captions=2), and `category`
  and `group` as `mmjax/data/sources/compositional.py` gives them.

  Attributes:
    data: the stream, or None for the run's own evaluation stream.
    batch_size: global batch size.
  """

  data: Any = None
  batch_size: int = 256

  def run(self, session) -> dict[str, float]:
    """Metrics of `score`; invalid records are left out."""
    columns = {name: [] for name in ("right", "wrong", "category", "group")}
    for batch in session.batches(self.data, self.batch_size):
      tokens, present = retrieval.captions_of(session, batch)
      if tokens.shape[1] != 2:
        raise ValueError(f"expected two captions a record, found {tokens.shape[1]}; Tokenise needs captions = 2")
      image, text = retrieval.embed(session, batch, 2)
      category, group = session.fetch((batch["category"], batch["group"]))
      rows = np.flatnonzero(present.all(axis=1))
      scores = np.einsum("bd,bkd->bk", image, text)[rows]
      for name, values in zip(columns, (scores[:, 0], scores[:, 1], category[rows], group[rows])):
        columns[name].append(values)
    columns = {name: np.concatenate(values) for name, values in columns.items()}
    if not len(columns["right"]):
      raise ValueError("no record with two captions: the evaluation stream is empty or invalid")
    return score(**columns, names=kept.class_names(session.stream(self.data), "category"))


build = Compositional
