"""Generation of modalities from others: how far what is made agrees with what was held out."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from mmjax.evals import counts, kept, token_pictures

LOW_TO_HIGH = ((40, 20, 90), (30, 150, 140), (250, 230, 60))  # red, green, blue of levels 0, 1/2, 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
  """Chained generation with an objective that can (4M, arXiv:2312.06647), against the true ids.

  What a row draws follows from (seed, row), whatever the batches and processes.

  Attributes:
    stages: what is made, in order, each conditioned on all before it:
      {"name": "Stage", "modality": "depth", "steps": 8, "guidance": 2.0, ...}, see
      `mmjax/generate/any_to_any.py`.
    condition: names of the modalities that are given. All that is named here and in `stages` must
      be in the records, and an image in any case.
    data: the stream, or None for the run's own evaluation stream.
    batch_size: global batch size.
    max_records: use the first so many records; None uses all.
    show: how many of them, of the first batch, the run report shows.
  """

  stages: tuple
  condition: tuple = ("image",)
  data: Any = None
  batch_size: int = 64
  max_records: int | None = 64
  show: int = 8

  def __post_init__(self):
    if not self.stages or not all(hasattr(stage, "modality") for stage in self.stages):
      raise ValueError('stages: give a list of {"name": "Stage", "modality": ...}, one at least')
    counts.check(self)

  def check(self, session) -> None:
    """Raises ConfigError at `stages` or `data` if the model cannot make that from such records."""
    batch = session.abstract_batch(self.data, self.batch_size)
    try:
      jax.eval_shape(functools.partial(session.generate, **self._how), batch)
    except ValueError as error:
      raise session.error("stages", str(error)) from error
    except KeyError as error:
      raise session.error("data", f"the records have no {error} (there: {', '.join(sorted(batch))})"
                          ) from error

  def run(self, session) -> dict[str, float]:
    """Of each modality that is made `NAME/accuracy`, the share of its true ids that it has in their
    places; beside it `NAME/accuracy/majority`, that of the best constant: at each place the id that
    is true most often in these very records."""
    parts, count = [], 0
    for batch in session.batches(self.data, self.batch_size):
      found, valid = session.fetch((session.generate(batch, **self._how), batch["valid"]))
      rows = np.flatnonzero(valid)
      rows = rows if self.max_records is None else rows[:self.max_records - count]
      found = jax.tree.map(lambda x: np.asarray(x)[rows], found)
      parts.append({stage.modality: _ids(found, stage.modality) for stage in self.stages})
      if not count and len(rows) and self.show:
        few = jax.tree.map(lambda x: x[:self.show], found)
        self._keep(session, few, batch["image"].shape[1:3])
      count += len(rows)
      if count == self.max_records:
        break
    if not count:
      raise session.error("data", "the stream has no valid record")
    result = {"records": float(count)}
    for name in parts[0]:
      made, true = (np.concatenate(column) for column in zip(*(part[name] for part in parts)))
      result |= {f"{name}/accuracy": accuracy(made, true),
                 f"{name}/accuracy/majority": accuracy(np.broadcast_to(majority(true), true.shape),
                                                       true)}
    return result

  @property
  def _how(self):
    return {"condition": tuple(self.condition), "stages": tuple(self.stages)}

  def _keep(self, session, found, size):
    """Given, made and true pictures of a few records for the report, and their texts."""
    columns = [(f"{name}, given", found["true"][name]) for name in self.condition]
    for stage in self.stages:
      columns += [(f"{stage.modality}, {which}", found[which][stage.modality])
                  for which in ("made", "true")]
    stream = session.stream(self.data)
    draw = functools.partial(picture, levels=kept.levels(stream, "image"), size=kept.fitting(size))
    pictures = {caption: np.stack([draw(x) for x in one["picture"]])
                for caption, one in columns if "picture" in one}
    text = kept.texts(stream)
    texts = [[f"{caption}: {text(ids[mask])}" for ids, mask in zip(one["ids"], one["mask"])]
             for caption, one in columns if "mask" in one]
    if pictures:
      session.save("generated", {
          "pictures": np.stack(list(pictures.values()), axis=1),
          "captions": np.array(list(pictures)),
          **({"texts": np.array(["; ".join(lines) for lines in zip(*texts)])} if texts else {})})


def accuracy(made: np.ndarray, true: np.ndarray) -> float:
  """The share of `true` ids [N, T] that `made` [N, T] has in their places; -1 is no id."""
  there = true >= 0
  return float(np.mean(made[there] == true[there])) if there.any() else float("nan")


def majority(true: np.ndarray) -> np.ndarray:
  """The most frequent id at each place of ids [N, T], int [T]; of equals the smallest, of none -1."""
  best = lambda column: np.argmax(np.bincount(column)) if len(column) else -1
  return np.array([best(column[column >= 0]) for column in true.T])


def picture(x: np.ndarray, levels, size: tuple[int, int]) -> np.ndarray:
  """uint8 [*size, 3] of pixels [H, W, 3], or of a map of levels [H, W, 1] from dark to light.

  Args:
    levels: of `kept.levels`.
  """
  if x.shape[-1] == 1:
    at = np.linspace(0, 1, len(LOW_TO_HIGH))
    x = np.stack([np.interp(x[..., 0], at, colour) for colour in zip(*LOW_TO_HIGH)], axis=-1) / 255
    return token_pictures.enlarge(x, size, "nearest")
  return token_pictures.enlarge(levels(x), size, "area")


def _ids(found, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Made and true ids [N, T] of a modality, -1 where a sequence has none."""
  return tuple(np.where(one["mask"], one["ids"], -1) if "mask" in one else one["ids"]
               for one in (found["made"][name], found["true"][name]))


build = Generate
