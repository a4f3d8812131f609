"""Principal components of patch features as colours: which patches an encoder takes to be alike."""

import dataclasses
from typing import Any

import numpy as np

from mmjax.evals import token_pictures

COLOURS = 3
OUTLIERS = 1.0  # per cent of a component's values at either end that are cut off


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeaturePca:
  """The first three principal components of the patches of a few records, as red, green and blue.

  The components are of all patches together, so a colour means the same in every picture (DINOv2,
  Oquab et al. 2023, arXiv:2304.07193, sec. 7.5, which first takes the background away).

  Attributes:
    data: the stream, or None for the run's own evaluation stream.
    feature: tokens of the objective, [B, N, D].
    grid: (rows, columns) of the patches; None takes them to be a square.
    records: how many pictures.
  """

  data: Any = None
  feature: str = "image/tokens"
  grid: tuple | None = None
  records: int = 8

  def __post_init__(self):
    if self.records < 1:
      raise ValueError(f"records: must be at least 1, not {self.records}")

  def check(self, session) -> None:
    """Raises ConfigError if the model gives no such feature, or records have no image."""
    token_pictures.check(session, self, (self.feature,))

  def run(self, session) -> dict[str, float]:
    """`explained`, the share of the variance that three components hold; 1 where there is none."""
    rows, found = token_pictures.first_records(session, self, (self.feature,))
    tokens = found[self.feature]
    if tokens.ndim != 3:
      raise session.error("feature", f"{self.feature!r} has the shape {list(tokens.shape)}; tokens "
                                     "[B, N, D] are needed")
    grid = token_pictures.grid_of(session, tokens.shape[1], self.grid)
    values, explained = components(tokens.reshape(-1, tokens.shape[-1]), COLOURS)
    pictures = token_pictures.thumbnails(session, self, rows)
    if pictures is not None:
      colours = stretched(values).reshape(len(tokens), *grid, COLOURS)
      make = lambda record, size: [token_pictures.enlarge(colours[record], size, "nearest")]
      session.save("feature_pca", {"pictures": token_pictures.strips(pictures, make),
                                   "captions": np.array(["picture", "components"])})
    return {"explained": explained, "records": float(len(tokens))}


def components(rows: np.ndarray, count: int) -> tuple[np.ndarray, float]:
  """First principal components of `rows` [M, D]: float64 [M, count], and their share of variance.

  Each points to where its largest value is, so that signs are settled. Where there are fewer than
  `count`, the others are zero.
  """
  rows = np.nan_to_num(rows.astype(np.float64))
  rows = rows - rows.mean(axis=0)
  eigenvalues, vectors = np.linalg.eigh(rows.T @ rows)
  vectors = vectors[:, ::-1][:, :count]
  values = np.zeros((len(rows), count))
  values[:, :vectors.shape[1]] = rows @ vectors
  values *= np.where(values.max(axis=0) >= -values.min(axis=0), 1, -1)
  total = eigenvalues.sum()
  return values, float(eigenvalues[::-1][:count].sum() / total) if total > 0 else 1.0


def stretched(values: np.ndarray) -> np.ndarray:
  """[M, C] from 0 to 1, each column over its own range; 0.5 where it has none."""
  low, high = np.percentile(values, [OUTLIERS, 100 - OUTLIERS], axis=0)
  flat = high - low < 1e-9
  return np.where(flat, 0.5, np.clip((values - low) / np.where(flat, 1, high - low), 0, 1))


build = FeaturePca
