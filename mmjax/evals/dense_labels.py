"""The three kinds of dense labels: their mean over a patch, their trivial predictor, their metrics.

A kind has

  channels, dtypes, form   the shape of a label after [B, H, W], its dtype's kinds; both in words
  regression               whether targets are numbers, and not classes
  observe(labels)          is told the training labels [B, H, W, ...]
  pool(labels, grid)       one target a patch, [B, h, w, K] or int [B, h, w], of the pixels known in
                           it, and whether there are any: bool [B, h, w]
  score(predicted, label)  is told what the probe gives for a picture, [H, W, K], beside its label
  known                    pixels scored so far
  metrics()                {name: float}; beside each that of the trivial predictor, which says the
                           mean, or the commonest class, of all pixels observed
"""

import numpy as np

DELTA = 1.25             # factor by which a depth may be wrong (Eigen et al. 2014, arXiv:1406.2283)
SMALLEST_DEPTH = 1e-3    # metres; a linear map may say less than nothing
SMALLEST_LENGTH = 1e-6   # of a normal before it is made unit


def by_patch(labels: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
  """[B, H, W, ...] to [B, h, w, pixels of a patch, ...]."""
  batch, height, width, *rest = labels.shape
  h, w = grid
  ph, pw = height // h, width // w
  cut = labels.reshape(batch, h, ph, w, pw, *rest).swapaxes(2, 3)
  return cut.reshape(batch, h, w, ph * pw, *rest)


def unit(vectors: np.ndarray) -> np.ndarray:
  """Vectors of unit norm along the last axis; zero stays zero."""
  length = np.linalg.norm(vectors, axis=-1, keepdims=True)
  return vectors / np.maximum(length, SMALLEST_LENGTH)


def _mean_of_known(labels, known, grid):
  """(mean [B, h, w, K] of the known pixels of each patch, whether there is one [B, h, w])."""
  inside = by_patch(known, grid)
  total = np.where(inside[..., None], by_patch(labels, grid), 0).sum(axis=3, dtype=np.float64)
  count = inside.sum(axis=3)
  return (total / np.maximum(count, 1)[..., None]).astype(np.float32), count > 0


class Depth:
  """Metres. `rmse`, and `delta1`: the share of pixels of which the larger of prediction and truth
  is less than 1.25 times the smaller; both over all pixels of all records."""

  form, channels, dtypes = "depth float [H, W, 1] in metres", (1,), "f"
  regression = True

  def __init__(self):
    self.known = self._seen = self._sum = 0
    self._totals = np.zeros((2, 2))  # squared error, pixels within DELTA: of the probe, of the mean

  def observe(self, labels):
    known = labels > 0
    self._sum += labels[known].sum(dtype=np.float64)
    self._seen += int(known.sum())

  def pool(self, labels, grid):
    return _mean_of_known(labels, labels[..., 0] > 0, grid)

  def score(self, predicted, label):
    known = label[..., 0] > 0
    truth = label[known][:, 0].astype(np.float64)
    mean = np.full_like(truth, self._sum / max(self._seen, 1))
    for totals, guess in zip(self._totals, (predicted[known][:, 0], mean)):
      guess = np.maximum(guess, SMALLEST_DEPTH)
      totals += (np.square(guess - truth).sum(),
                 (np.maximum(guess / truth, truth / guess) < DELTA).sum())
    self.known += len(truth)

  def metrics(self):
    (square, near), (square_mean, near_mean) = (self._totals / self.known).tolist()
    return {"rmse": square**0.5, "rmse/mean": square_mean**0.5,
            "delta1": near, "delta1/mean": near_mean}


class Normals:
  """Unit vectors. `angle`: the mean angle between prediction and truth in degrees."""

  form, channels, dtypes = "unit vectors float [H, W, 3]", (3,), "f"
  regression = True

  def __init__(self):
    self.known, self._sum, self._totals = 0, np.zeros(3), np.zeros(2)

  def observe(self, labels):
    self._sum += labels.sum(axis=(0, 1, 2), dtype=np.float64)

  def pool(self, labels, grid):
    mean, known = _mean_of_known(labels, labels.any(axis=-1), grid)
    return unit(mean), known

  def score(self, predicted, label):
    known = label.any(axis=-1)
    for i, guess in enumerate((unit(predicted[known]), unit(self._sum))):
      cosine = np.clip((label[known] * guess).sum(axis=-1, dtype=np.float64), -1, 1)
      self._totals[i] += np.degrees(np.arccos(cosine)).sum()
    self.known += int(known.sum())

  def metrics(self):
    angle, angle_mean = (self._totals / self.known).tolist()
    return {"angle": angle, "angle/mean": angle_mean}


class Classes:
  """Class numbers. `pixel_accuracy`, and `miou`: intersection over union, the mean over the classes
  that occur among the test pixels."""

  form, channels, dtypes = "class numbers int [H, W]", (), "iu"
  regression = False

  def __init__(self):
    self.known = 0
    self._counts = np.zeros(0, np.int64)  # pixels of each class observed
    self._confusion = 0                   # pixels scored, [true class, predicted class]

  @property
  def classes(self):
    """One more than the largest class observed."""
    return len(self._counts)

  def observe(self, labels):
    counts = np.bincount(labels[labels >= 0])
    size = max(len(counts), len(self._counts))
    self._counts = sum(np.pad(c, (0, size - len(c))) for c in (counts, self._counts))

  def pool(self, labels, grid):
    inside = by_patch(labels, grid)
    votes = [(inside == c).sum(axis=-1) for c in range(inside.max(initial=0) + 1)]
    votes = np.stack(votes, axis=-1)
    return votes.argmax(axis=-1), votes.any(axis=-1)

  def score(self, predicted, label):
    known = label >= 0
    pairs = label[known] * self.classes + predicted.argmax(axis=-1)[known]
    counts = np.bincount(pairs, minlength=self.classes**2)
    self._confusion = self._confusion + counts.reshape(self.classes, self.classes)
    self.known += int(known.sum())

  def metrics(self):
    majority = np.zeros_like(self._confusion)
    majority[:, self._counts.argmax()] = self._confusion.sum(axis=1)
    result = {}
    for suffix, confusion in (("", self._confusion), ("/majority", majority)):
      right, truth = np.diag(confusion), confusion.sum(axis=1)
      union = truth + confusion.sum(axis=0) - right
      result[f"miou{suffix}"] = float(np.mean((right / np.maximum(union, 1))[truth > 0]))
      result[f"pixel_accuracy{suffix}"] = float(right.sum() / truth.sum())
    return result


KINDS = {"depth": Depth, "normals": Normals, "semantic": Classes}
