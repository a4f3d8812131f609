"""Reconstruction: how near the pictures that a model makes are to those it was given."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from mmjax.data import resampling
from mmjax.evals import counts, kept

BEST = 100.0   # dB, of a reconstruction without error: eight bits give 59 at most
FRAMES = 4     # of a clip that are shown
HIDDEN = 0.5   # grey of what was masked, black is 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reconstruction:
  """Peak signal-to-noise ratio of what was masked, or of the whole picture where nothing is.

    PSNR = -10 log10(mean squared error), pixels from 0 to 1, of each record; then the mean.

  Reads the features "image/reconstruction" and, where there are masks, "image/masked". With
  normalised targets a prediction takes mean and deviation of the patch it is for: hold such a PSNR
  against `psnr/unlearned`.

  Attributes:
    data: the stream, or None for the run's own evaluation stream.
    input: the batch's key, "image" or "video".
    batch_size: global batch size.
    max_records: use the first so many records; None uses all.
    show: how many of them the run report shows.
  """

  data: Any = None
  input: str = "image"
  batch_size: int = 64
  max_records: int | None = 512
  show: int = 8

  def __post_init__(self):
    counts.check(self)

  def check(self, session) -> None:
    """Raises ConfigError if batches have no such input, or the model makes no pictures."""
    batch = session.abstract_batch(self.data, self.batch_size)
    if self.input not in batch:
      raise session.error(
          "input", f"the records have no {self.input!r} (there: {', '.join(batch)})")
    try:
      found = jax.eval_shape(functools.partial(session.features, want=self._want), batch)
    except ValueError as error:
      raise session.error("input", str(error)) from error
    if self._want[0] not in found:
      raise session.error(
          "input", f"the model gives no {self._want[0]!r}; it gives {', '.join(found)}")

  def run(self, session) -> dict[str, float]:
    """`psnr`; beside it that of the mean colour of all that is seen (`psnr/mean`), and of a
    prediction of zeros where the model gives "image/unlearned"."""
    levels = kept.levels(session.stream(self.data), self.input)
    rows, shown = [], []
    for batch in session.batches(self.data, self.batch_size):
      found = session.features(batch, self._want)
      names = ("reconstruction", "masked", "unlearned")
      arrays = {name: found[f"{self.input}/{name}"] for name in names
                if f"{self.input}/{name}" in found}
      arrays, truth, valid = session.fetch((arrays, batch[self.input], batch["valid"]))
      for row in np.flatnonzero(valid):
        if self.max_records is not None and len(rows) == self.max_records:
          break
        one = {name: array[row] for name, array in arrays.items()}
        pictures = [levels(x) for x in (truth[row], one["reconstruction"])]
        unlearned = levels(one["unlearned"]) if "unlearned" in one else None
        rows.append(score(*pictures, one.get("masked"), unlearned))
        if len(shown) < self.show:
          shown.append(_strip(*pictures, one.get("masked")))
      if len(rows) == self.max_records:
        break
    if not rows:
      raise session.error("data", "the stream has no valid record")
    if shown:
      session.save("reconstructions", {"pictures": np.stack(shown)})
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | {
        "records": float(len(rows))}

  @property
  def _want(self) -> tuple[str, ...]:
    return (f"{self.input}/reconstruction",)


def score(truth, picture, masked=None, unlearned=None) -> dict[str, float]:
  """`psnr` of one picture [..., C] with pixels from 0 to 1, and what stands beside it.

  Args:
    masked: bool [..., 1], where it counts; None for everywhere.
    unlearned: a picture too.
  """
  where = np.ones(truth.shape, bool) if masked is None else np.broadcast_to(masked, truth.shape)
  seen = truth.reshape(-1, truth.shape[-1])
  if masked is not None:
    seen = seen[~masked.reshape(-1)]
  result = {"psnr": psnr(truth[where], picture[where]),
            "psnr/mean": psnr(truth[where], np.broadcast_to(seen.mean(axis=0), truth.shape)[where])}
  if unlearned is not None:
    result["psnr/unlearned"] = psnr(truth[where], unlearned[where])
  return result


def psnr(truth: np.ndarray, picture: np.ndarray) -> float:
  """Decibels, at most `BEST`; of arrays of one shape with values from 0 to 1."""
  error = np.mean(np.square(truth.astype(np.float64) - picture))
  return float(-10 * np.log10(max(error, 10 ** (-BEST / 10))))


def _strip(truth, picture, masked) -> np.ndarray:
  """uint8 [2 or 3, h, w, 3]: what was given, what was seen of it, what was made of that."""
  parts = [truth, picture]
  if masked is not None:
    parts.insert(1, np.where(masked, HIDDEN, truth))
  return np.stack([_small(_flat(np.broadcast_to(x, (*x.shape[:-1], 3)))) for x in parts])


def _flat(x):
  """A picture [H, W, C]; of a clip [T, H, W, C] some frames side by side."""
  if x.ndim == 3:
    return x
  places = np.linspace(0, len(x) - 1, min(FRAMES, len(x))).round().astype(int)
  return np.concatenate(list(x[places]), axis=1)


def _small(x):
  """uint8, at most `kept.SIDE` high."""
  scale = min(1, kept.SIDE / x.shape[0])
  size = tuple(max(1, round(scale * side)) for side in x.shape[:2])
  return resampling.resize(np.rint(255 * x).astype(np.uint8), size, "area")


build = Reconstruction
