"""Features of a frozen model with their labels: what probe, neighbours and few-shot begin with."""

import dataclasses
import difflib
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.evals import counts, kept

# Added to a standard deviation before dividing by it, so that a constant feature does not become
# noise; the value of big_vision's few-shot evaluator.
SMALLEST_STD = 1e-5


class Labelled(NamedTuple):
  """Records as arrays.

  Attributes:
    features: float32 [N, D]; a record whose feature is not finite has zeros, so that a diverged
      model gets chance and not an error.
    labels: int64 [N], the stream's own; in a `Split` positions in its `classes`.
    rows: int64 [N], places in the stream.
  """

  features: np.ndarray
  labels: np.ndarray
  rows: np.ndarray


class Split(NamedTuple):
  """Training and test records; `classes` str [C] names the labels of train, in their order (by
  their numbers where the source has no names)."""

  train: Labelled
  test: Labelled
  classes: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task:
  """What every evaluator of frozen features is told.

  Attributes:
    train: the stream of labelled training records.
    data: the test stream, or None for the run's own evaluation stream.
    label: the batches' key of true classes, int32 [B]; records with a negative label are left out.
    feature: a feature of the objective, [B, D]; or [B, N, D] (tokens), which is averaged over N,
      where there is a mask over the tokens it marks.
    batch_size: global batch size.
    max_records: of each stream use the first so many labelled records; None uses all.
  """

  train: Any
  data: Any = None
  label: str = "label"
  feature: str = "image/pooled"
  batch_size: int = 256
  max_records: int | None = None

  def __post_init__(self):
    counts.check(self)

  def check(self, session) -> None:
    """Raises ConfigError at `feature`, `label` or `train` as far as nothing need be computed."""
    self._names(session)
    for key in ("train", "data"):
      batch = session.abstract_batch(getattr(self, key), self.batch_size)
      labels(session, self.label, batch, key)
      wanted(session, self.feature, inputs_of(batch, self.feature))

  def split(self, session) -> Split:
    """Features and labels of both streams, the classes numbered without gaps.

    Raises:
      ConfigError: at `feature`, `label`, `train` or `data`, see `collect`; train has one class
        only, lacks one that the test records have, or its source calls one by another name.
    """
    train, test = collect(session, self, "train"), collect(session, self, "data")
    classes = np.unique(train.labels)
    if len(classes) < 2:
      raise session.error("train", f"all {len(train.labels)} records have {self.label} "
                                   f"{classes[0]}; two classes or more are needed")
    strange = np.setdiff1d(test.labels, classes)
    if len(strange):
      raise session.error("train", f"has no record with {self.label} "
                                   f"{', '.join(map(str, strange[:8]))}, which data has")
    number = lambda part: part._replace(labels=np.searchsorted(classes, part.labels))
    names = self._names(session)
    return Split(number(train), number(test),
                 np.array([names[c] if c < len(names) else str(c) for c in classes]))

  def _names(self, session) -> tuple[str, ...]:
    """What the source of train calls the labels; of data the same is expected."""
    ours, theirs = (kept.class_names(session.stream(stream), self.label) or ()
                    for stream in (self.train, self.data))
    for label, (own, other) in enumerate(zip(ours, theirs)):
      if own != other:
        raise session.error("train", f"calls {self.label} {label} {own!r}, data calls it {other!r}"
                                     "; both need the same classes in the same order")
    return ours


def collect(session, task: Task, key: str) -> Labelled:
  """The labelled records of the stream `task.train` or `task.data`, as `key` says.

  Raises:
    ConfigError: the model has no such feature or one of another rank, the batches have no such
      label or one that is no class number, there is no labelled record.
  """
  parts, want, seen, room = [], None, 0, task.max_records
  for batch in session.batches(getattr(task, key), task.batch_size):
    truth = labels(session, task.label, batch, key)
    inputs = inputs_of(batch, task.feature)
    want = wanted(session, task.feature, inputs) if want is None else want
    features = _pool(session, task.feature, session.features(inputs, want)[task.feature], inputs)
    features, truth, valid = session.fetch((features, truth, batch["valid"]))
    rows = np.flatnonzero(valid & (truth >= 0))[:room]
    parts.append((features[rows].astype(np.float32), truth[rows].astype(np.int64), seen + rows))
    seen += len(valid)
    if room is not None:
      room -= len(rows)
      if not room:
        break
  if not sum(len(rows) for _, _, rows in parts):
    raise session.error(key, f"the stream has no valid record with a {task.label} of 0 or more")
  features, truth, rows = (np.concatenate(column) for column in zip(*parts))
  finite = np.isfinite(features).all(axis=1, keepdims=True)
  return Labelled(np.where(finite, features, 0), truth, rows)


def labels(session, label: str, batch, key: str = "data"):
  """The labels of a batch of the stream `key`, integers [B].

  Raises:
    ConfigError: at `label`, if the batch has none, or if they are no class numbers.
  """
  if label not in batch:
    raise session.error("label", f"the records of {key} have no {label!r}{_nearest(label, batch)}")
  found = batch[label]
  if len(found.shape) != 1 or found.dtype.kind not in "iu":
    raise session.error("label", f"{label!r} of {key} is {found.dtype} {list(found.shape[1:])} for "
                                 "a record; one class number is needed")
  return found


def standardise(train: np.ndarray, *others: np.ndarray) -> list[np.ndarray]:
  """Float64 features, each column with the mean and the standard deviation it has in `train`."""
  train = train.astype(np.float64)
  mean, std = train.mean(axis=0), train.std(axis=0) + SMALLEST_STD
  return [(features - mean) / std for features in (train, *others)]


def inputs_of(batch, feature: str) -> dict:
  """An image feature is computed without the texts that the batch may have."""
  skip = "text" if feature.startswith("image/") else None
  return {name: array for name, array in batch.items() if name.partition("_")[0] != skip}


def wanted(session, feature: str, batch) -> tuple[str, ...]:
  """What to ask the model for so that it gives `feature`; traced only, nothing is compiled."""
  given = jax.eval_shape(session.features, batch)
  if feature in given:
    return ()
  reason = ""
  try:
    if feature in jax.eval_shape(functools.partial(session.features, want=(feature,)), batch):
      return (feature,)
  except ValueError as error:
    reason = f"; asked for more, it says: {error}"
  raise session.error("feature",
                      f"the model gives no {feature!r}{_nearest(feature, given)}{reason}")


def _pool(session, feature: str, array, batch):
  """[B, D] of a feature [B, D], or of tokens [B, N, D] by their mean."""
  if array.ndim == 2:
    return array
  if array.ndim != 3:
    raise session.error("feature", f"{feature!r} has the shape {list(array.shape)}; "
                                   "[B, D] or tokens [B, N, D] are needed")
  array = array.astype(np.float32)
  mask = batch.get(f"{feature.partition('/')[0]}_mask")
  if mask is None:
    return array.mean(axis=1)
  if mask.shape != array.shape[:2]:
    raise session.error("feature", f"{feature!r} has {array.shape[1]} tokens a record, but the "
                                   f"mask marks {mask.shape[1]}; take a feature [B, D]")
  weight = mask.astype(np.float32)[:, :, None]
  return (array * weight).sum(axis=1) / weight.sum(axis=1).clip(1)


def _nearest(name: str, known) -> str:
  best = difflib.get_close_matches(name, known, 1)
  hint = f"; did you mean {best[0]!r}?" if best else ""
  return f"{hint} (there: {', '.join(sorted(known))})"
