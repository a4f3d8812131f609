"""Dense probes: depth, surface normals or segmentation by a linear map of frozen patch tokens."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from mmjax.data import geometry
from mmjax.evals import dense_labels, frozen, linear_probe


class Patches(NamedTuple):
  """Training patches.

  Attributes:
    tokens: float32 [P, D]; one that is not finite is zero.
    targets: float32 [P, K] (depth, normals), or int64 [P] (classes).
    records: int64 [P], the record of each, counted from 0.
  """

  tokens: np.ndarray
  targets: np.ndarray
  records: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseProbe:
  """How well one linear map of each patch token says what is in the patch.

  After DINOv2's linear protocol (arXiv:2304.07193, sec. 7.4): the encoder is frozen, a linear layer
  acts on each token of its last layer, what it gives is brought to the labels' size bilinearly, and
  every pixel whose label is known is scored. It differs in how the layer is fitted: to one target a
  patch (the mean depth, the mean normal or the commonest class of the pixels known in it), at its
  minimum and not by steps of SGD. Depth and normals are ridge regression in closed form, depth in
  metres (DINOv2: 256 bins); classes are the logistic regression of `linear_probe`. As there, tokens
  are standardised, and the strength is the one that does best on held-out training records. Only
  the image reaches the model, whatever maps the records have.

  Attributes:
    train: the stream of training records: what the feature needs, and `label`.
    data: the test stream, or None for the run's own evaluation stream.
    label: what is to be told, and so the kind of probe: "depth" float32 [B, H, W, 1] in metres, 0
      where unknown; "normals" float32 [B, H, W, 3], zero where unknown; "semantic" int32 [B, H, W],
      negative where unknown.
    feature: tokens of the objective, [B, N, D], row by row; or a map [B, h, w, D].
    grid: (rows, columns) of tokens [B, N, D]; None takes N to be a square.
    l2: the strength; None searches it.
    held_out: share of the training records on which the search judges.
    patches: so many random patches of each training record; None takes all.
    batch_size: global batch size.
    max_records: of each stream use the first so many records; None uses all.
  """

  train: Any
  data: Any = None
  label: str = "depth"
  feature: str = "image/tokens"
  grid: tuple[int, int] | None = None
  l2: float | None = None
  held_out: float = 0.2
  patches: int | None = 16
  batch_size: int = 64
  max_records: int | None = 512

  def __post_init__(self):
    if self.label not in dense_labels.KINDS:
      raise ValueError(f"label: must be one of {', '.join(dense_labels.KINDS)}, not {self.label!r}")
    if self.grid is not None and (len(self.grid) != 2 or min(self.grid) < 1):
      raise ValueError(f"grid: must be (rows, columns), not {self.grid}")
    if self.l2 is not None and self.l2 <= 0:
      raise ValueError(f"l2: must be positive, or None to search it, not {self.l2}")
    if not 0 < self.held_out < 1:
      raise ValueError(f"held_out: must be between 0 and 1, not {self.held_out}")
    for name in ("patches", "max_records"):
      value = getattr(self, name)
      if value is not None and value < 1:
        raise ValueError(f"{name}: must be at least 1, or None for all, not {value}")

  def check(self, session) -> None:
    """Raises ConfigError at `feature`, `label` or `grid` as far as nothing need be computed."""
    for key in ("train", "data"):
      batch = session.abstract_batch(getattr(self, key), self.batch_size)
      labels, inputs = self._labels(session, batch, key), self._inputs(batch)
      want = frozen.wanted(session, self.feature, inputs)
      features = jax.eval_shape(functools.partial(session.features, want=want), inputs)
      self._grid(session, features[self.feature].shape, labels.shape)

  def run(self, session) -> dict[str, float]:
    """The metrics of `dense_labels` for the label, each with that of the trivial predictor beside
    it, and `records`, `patches`, `l2`."""
    kind = dense_labels.KINDS[self.label]()
    train = self._collect(session, kind)
    if not kind.regression and len(np.unique(train.targets)) < 2:
      raise session.error("train", f"all {len(train.targets)} patches are of class "
                                   f"{train.targets[0]}; two classes or more are needed")
    weights, l2 = self._fit(session, kind, train)
    records = 0
    for tokens, labels in self._batches(session, "data"):
      if not kind.regression and labels.max() >= kind.classes:
        raise session.error("train", f"has no pixel of class {labels.max()}, which data has")
      for grid, label in zip(linear_probe.scores(tokens, weights), labels):
        kind.score(upsample(grid, label.shape[:2]), label)
      records += len(labels)
    if not kind.known:
      raise session.error("data", f"has no pixel whose {self.label} is known")
    return kind.metrics() | {"records": records, "patches": len(train.targets), "l2": l2}

  def _fit(self, session, kind, train: Patches) -> tuple[np.ndarray, float]:
    """(weights float64 [D + 1, K] of tokens as they are, the bias last; the strength)."""
    fit, search = fit_ridge, choose_for_ridge
    if not kind.regression:
      fit = lambda x, y, l2: linear_probe.fit(x, y, kind.classes, l2)[0]
      search = lambda *parts: linear_probe.choose_l2(*parts, kind.classes)
    l2 = self.l2
    if l2 is None:
      count = train.records[-1] + 1
      shuffled = np.random.default_rng(0).permutation(count)
      held = np.isin(train.records, shuffled[:math.ceil(self.held_out * count)])
      if held.all() or not held.any():
        raise session.error("train", f"has {count} records of which some cannot be held out; give "
                                     "l2 or more records")
      fitted, judged = frozen.standardise(train.tokens[~held], train.tokens[held])
      l2 = search(fitted, train.targets[~held], judged, train.targets[held])
    mean = train.tokens.mean(axis=0, dtype=np.float64)
    std = train.tokens.std(axis=0, dtype=np.float64) + frozen.SMALLEST_STD
    weights = fit((train.tokens - mean) / std, train.targets, l2)
    raw = weights[:-1] / std[:, None]
    return np.concatenate([raw, weights[-1:] - mean @ raw]), l2

  def _collect(self, session, kind) -> Patches:
    """Patches of the training records; their pixels are told to the trivial predictor."""
    rng, parts, seen = np.random.default_rng(0), [], 0
    for tokens, labels in self._batches(session, "train"):
      kind.observe(labels)
      targets, known = kind.pool(labels, tokens.shape[1:3])
      for i in range(len(labels)):
        places = rng.permutation(np.flatnonzero(known[i]))[:self.patches]
        flat = lambda array: array[i].reshape(known[i].size, *array.shape[3:])[places]
        parts.append(Patches(flat(tokens), flat(targets), np.full(len(places), seen + i)))
      seen += len(labels)
    if not sum(len(part.targets) for part in parts):
      raise session.error("train", f"has no pixel whose {self.label} is known")
    return Patches(*(np.concatenate(column) for column in zip(*parts)))

  def _batches(self, session, key):
    """(tokens float32 [R, h, w, D], labels [R, H, W, ...]) of the valid records of each batch."""
    want, room = None, self.max_records
    for batch in session.batches(getattr(self, key), self.batch_size):
      labels, inputs = self._labels(session, batch, key), self._inputs(batch)
      want = frozen.wanted(session, self.feature, inputs) if want is None else want
      tokens = session.features(inputs, want)[self.feature]
      tokens, labels, valid = session.fetch((tokens, labels, batch["valid"]))
      rows = np.flatnonzero(valid)[:room]
      if len(rows):
        grid = self._grid(session, tokens.shape, labels.shape)
        tokens = tokens[rows].astype(np.float32).reshape(len(rows), *grid, -1)
        finite = np.isfinite(tokens).all(axis=-1, keepdims=True)
        yield np.where(finite, tokens, 0), labels[rows]
      if room is not None:
        room -= len(rows)
        if not room:
          return

  def _inputs(self, batch):
    """A model that reads depth as well is not shown what it is asked for."""
    return {name: array for name, array in frozen.inputs_of(batch, self.feature).items()
            if name not in geometry.MAPS}

  def _labels(self, session, batch, key):
    kind = dense_labels.KINDS[self.label]
    if self.label not in batch:
      raise session.error("label", f"the records of {key} have no {self.label!r}; there are "
                                   f"{', '.join(sorted(batch))}")
    labels = batch[self.label]
    shape, dtype = labels.shape, labels.dtype
    if len(shape) < 3 or shape[3:] != kind.channels or dtype.kind not in kind.dtypes:
      raise session.error("label", f"{self.label!r} of {key} is {dtype} {list(shape[1:])} for a "
                                   f"record; {kind.form} is needed")
    return labels

  def _grid(self, session, tokens, labels):
    """(rows, columns) of tokens of the shape [B, N, D] or [B, h, w, D]; labels of the shape
    [B, H, W, ...] can be divided by it."""
    if len(tokens) not in (3, 4):
      raise session.error("feature", f"{self.feature!r} has the shape {list(tokens)}; tokens "
                                     "[B, N, D] or a map [B, h, w, D] are needed")
    side = math.isqrt(tokens[1])
    grid = tokens[1:3] if len(tokens) == 4 else self.grid or (side, side)
    if len(tokens) == 3 and math.prod(grid) != tokens[1]:
      raise session.error("grid", f"{self.feature!r} has {tokens[1]} tokens, which are not "
                                  f"{grid[0]} rows of {grid[1]}; give (rows, columns)")
    if labels[1] % grid[0] or labels[2] % grid[1]:
      raise session.error("label", f"{self.label!r} of {list(labels[1:3])} pixels cannot be "
                                   f"divided into {list(grid)} patches")
    return grid


def fit_ridge(x: np.ndarray, y: np.ndarray, l2: float) -> np.ndarray:
  """The minimum of |y - x W - b|^2 + l2 |W|^2: weights float64 [D + 1, K], the bias last.

  Args:
    x: float64 [N, D], columns of mean zero; y: [N, K].
  """
  values, axes, along, mean = _normal_equations(x, y)
  return np.concatenate([axes @ (along / (values + l2)[:, None]), mean])


def choose_for_ridge(x, y, x_held, y_held) -> float:
  """The strength of `linear_probe`'s grid with the least squared error on held-out patches."""
  values, axes, along, mean = _normal_equations(x, y)
  z = x_held @ axes
  errors = {}
  for place in range(linear_probe.FIRST, linear_probe.LAST + 1):
    l2 = linear_probe.strength(place)
    errors[l2] = np.mean((z @ (along / (values + l2)[:, None]) + mean - y_held) ** 2)
  return min(errors, key=errors.get)


def _normal_equations(x, y):
  """Squared singular values [D] and axes [D, D] of x, x' (y - mean) along them, and the mean of y
  [1, K]."""
  mean = y.mean(axis=0, keepdims=True, dtype=np.float64)
  values, axes = np.linalg.eigh(x.T @ x)
  return np.maximum(values, 0), axes, axes.T @ (x.T @ (y - mean)), mean


def upsample(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """[h, w, K] to [H, W, K], bilinear between the centres of patches, constant beyond them."""
  rows, columns = (_bilinear(new, old) for new, old in zip(size, grid.shape))
  return np.einsum("Hh,hwk,Ww->HWk", rows, grid, columns, optimize=True)


def _bilinear(new: int, old: int) -> np.ndarray:
  """The matrix [new, old] that interpolates."""
  place = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
  return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(old)))


build = DenseProbe
