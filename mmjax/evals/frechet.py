"""Fréchet distance of two sets of pictures, in the features of an encoder that has a name."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np

from mmjax.evals import counts, kept, token_pictures

PICTURE = "image"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frechet:
  """Distance of the Gaussians of two sets' features (Heusel et al. 2017, arXiv:1706.08500).

  FID where the encoder is the Inception network of its authors; elsewhere numbers are of another
  scale, so a figure is to be told with its encoder and feature. Both streams must prepare pictures
  as the encoder wants them; what a model makes is taken to be prepared as its own inputs are.

  Attributes:
    reference: the stream of pictures that the others are held against.
    data: the stream of the others, or of what the model makes them from; None for the run's own
      evaluation stream.
    pictures: which they are: "image", the records' own; or a feature of the objective that is a
      picture [B, H, W, C], such as "image/reconstruction", or "image/generated" of the objective
      `mage`, for which `data` tells only how many there are, their size and what they draw.
    encoder: path of a checkpoint, whose image encoder it is; "" is the model that is evaluated.
    feature: of the encoder, [B, D].
    batch_size: global batch size.
    max_records: of each stream use the first so many records; None uses all. The distance falls
      with the number of records.
    show: how many pictures that the model makes the run report shows, below as many of the
      reference.
  """

  reference: Any
  data: Any = None
  pictures: str = PICTURE
  encoder: str = ""
  feature: str = "image/pooled"
  batch_size: int = 256
  max_records: int | None = None
  show: int = 8

  def __post_init__(self):
    counts.check(self, least=2)

  def check(self, session) -> None:
    """Raises ConfigError at `encoder`, `pictures` or `feature`; nothing is computed."""
    encode = self._encoder(session)
    for key, pictures in ("reference", PICTURE), ("data", self.pictures):
      batch = session.abstract_batch(getattr(self, key), self.batch_size)
      if PICTURE not in batch:
        raise session.error(key, f"the records have no image (there: {', '.join(sorted(batch))})")
      made = self._shapes(session, "pictures", pictures, batch, session.features)
      found = self._shapes(session, "feature", self.feature, {**batch, PICTURE: made}, encode)
      if len(found.shape) != 2:
        raise session.error("feature", f"{self.feature!r} has the shape {list(found.shape)}; "
                                       "[B, D] is needed")

  def run(self, session) -> dict[str, float]:
    """`distance`, and `distance/halves`: that of the two halves of the reference, what remains of
    the distance where there is no difference; `records`, of the smaller set."""
    encode = self._encoder(session)
    reference, pictures = self._collect(session, encode, "reference", PICTURE)
    others, made = self._collect(session, encode, "data", self.pictures)
    if made:
      count = min(len(pictures), len(made))
      size = kept.fitting(made[0].shape[:2])
      session.save("generated", {
          "pictures": np.stack([[token_pictures.enlarge(x, size, "area") for x in line[:count]]
                                for line in (pictures, made)]),
          "captions": np.array([["reference"] * count, [self.pictures] * count])})
    return {"distance": distance(moments(reference), moments(others)),
            "distance/halves": distance(moments(reference[::2]), moments(reference[1::2])),
            "records": float(min(len(reference), len(others)))}

  def _encoder(self, session):
    """(batch, want) -> features, as `session.features` is."""
    if not self.encoder:
      return session.features
    try:
      return session.encoder(self.encoder)
    except ValueError as error:
      raise session.error("encoder", str(error)) from error

  def _shapes(self, session, key, name, batch, features):
    """Shape of the picture or feature `name`, as `features` gives it."""
    if name == PICTURE:
      return batch[PICTURE]
    try:
      found = jax.eval_shape(functools.partial(features, want=_want(name)), _images(batch))
    except ValueError as error:
      raise session.error(key, f"{name!r}: {error}") from error
    if name not in found:
      raise session.error(key, f"there is no {name!r} (there: {', '.join(sorted(found))})")
    return found[name]

  def _collect(self, session, encode, key: str, pictures: str) -> tuple[np.ndarray, list]:
    """Features of a stream's valid records, float32 [N, D]; a record of which one is not finite is
    left out. And where a model makes the others, the first pictures [H, W, C] from 0 to 1."""
    parts, count, shown = [], 0, []
    levels = kept.levels(session.stream(getattr(self, key)), PICTURE)
    show = self.show if self.pictures != PICTURE else 0
    for batch in session.batches(getattr(self, key), self.batch_size):
      batch = _images(batch)
      if pictures != PICTURE:
        batch = {**batch, PICTURE: session.features(batch, want=_want(pictures))[pictures]}
      found, valid = session.fetch((encode(batch, want=_want(self.feature))[self.feature],
                                    batch["valid"]))
      found = np.asarray(found, np.float32)[valid]
      if len(shown) < show:
        first = session.fetch(batch[PICTURE])[valid][:show - len(shown)]
        shown += [levels(np.asarray(x)) for x in first]
      parts.append(found[np.isfinite(found).all(axis=1)])
      count += len(parts[-1])
      if self.max_records is not None and count >= self.max_records:
        break
    features = np.concatenate(parts)[:self.max_records] if parts else np.zeros((0, 0))
    if len(features) < 4:
      raise session.error(key, f"{len(features)} records with features that are finite; a distance "
                               "needs four at least, and many to mean something")
    return features, shown


def moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean float64 [D] and covariance float64 [D, D] (unbiased) of features [N, D]."""
  features = features.astype(np.float64)
  return features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False))


def distance(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
  """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two Gaussians (Dowson & Landau 1982).

  The root's trace is the sum of the roots of the eigenvalues of C1^(1/2) C2 C1^(1/2), which is
  symmetric: a singular covariance (fewer records than dimensions) needs nothing added to it.

  Args:
    one, other: mean float64 [D] and covariance float64 [D, D].
  """
  (mean, covariance), (other_mean, other_covariance) = one, other
  values, vectors = np.linalg.eigh(covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  both = np.linalg.eigvalsh(root @ other_covariance @ root)
  trace = np.trace(covariance) + np.trace(other_covariance) - 2 * np.sqrt(np.maximum(both, 0)).sum()
  return float(np.sum(np.square(mean - other_mean)) + max(trace, 0.0))


def _want(name: str) -> tuple[str, ...]:
  """What is always there need not be asked for, and some models do not know it by name."""
  return () if name in ("image/pooled", "image/embed", "logits") else (name,)


def _images(batch):
  """A batch without its texts, which the model need not read."""
  return {name: array for name, array in batch.items() if name.partition("_")[0] != "text"}


build = Frechet
