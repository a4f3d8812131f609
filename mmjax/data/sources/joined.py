"""Another source's records with columns that a model has made of them (`mmjax prepare`), or only those
that a column says to keep.

A record is the other source's with a value or an array a column, such as `score`, `label` or
`image.embed` ("/" becomes "."). A column takes the place of what has its name.
"""

import dataclasses
import hashlib
from typing import Any

import numpy as np

from mmjax.data import records
from mmjax.data import spec as spec_lib
from mmjax.data import stored


@dataclasses.dataclass(frozen=True)
class Joined:
  """Record i is the source's record number `kept[i]`, or i.

  Attributes:
    source: whose records they are.
    columns: what stands beside them.
    kept: int64 [N], or None for all.
    digest: SHA-256 over the source's, the columns' and what is kept.
  """

  source: Any
  columns: stored.Stored
  kept: np.ndarray | None
  digest: str

  @property
  def name(self) -> str:
    return f"{self.source.name} with {', '.join(self.columns.names)}"

  def class_names(self, key: str) -> tuple[str, ...] | None:
    """The column's, else the source's."""
    if key in self.columns.names and self.columns.manifest.get("classes"):
      return tuple(self.columns.manifest["classes"])
    return getattr(self.source, "class_names", lambda key: None)(key)

  def __len__(self) -> int:
    return len(self.source) if self.kept is None else len(self.kept)

  def where(self, i: int) -> str:
    """As the source's."""
    return records.where(self.source, self._own(i))

  def _own(self, i):
    if not 0 <= i < len(self):
      raise IndexError(i)
    return i if self.kept is None else int(self.kept[i])

  def __getitem__(self, i: int) -> dict[str, Any]:
    i = self._own(i)
    made = self.columns[i]
    plain = lambda value: value.item() if value.ndim == 0 else value
    return {**self.source[i], **{name.replace("/", "."): plain(value) for name, value in made.items()}}


def build(path: str, columns: str, by: str = "score", least: float | None = None, share: float | None = None) -> Joined:
  """The source.

  Args:
    path: of the other source, a SPEC (`mmjax/data/spec.py`).
    columns: the folder that `mmjax prepare` has written of it.
    by: the column that decides what is kept.
    least: keep records of which it is at least so much.
    share: keep this share of the records, those of which it is highest.

  Raises:
    ValueError: the columns are of another source, there is no such column, or nothing is kept.
  """
  source, made = spec_lib.open_source(path), stored.open_columns(columns)
  if source.digest != made.manifest["source_digest"] or len(source) != len(made):
    raise ValueError(f"columns: {columns} was made of other data than {path}")
  if least is not None and share is not None:
    raise ValueError("least: and share both say what to keep; give one of them")
  kept = None
  if least is not None or share is not None:
    kept = _kept(made, by, least, share)
    if not len(kept):
      raise ValueError(f"least: no record has a {by} of {least} or more")
  told = (source.digest, made.manifest["columns"], made.manifest.get("digest"), by, least, share)
  return Joined(source, made, kept, hashlib.sha256(repr(told).encode()).hexdigest())


def _kept(made, by, least, share):
  """Numbers of the records that are kept, ascending; what could not be read is not."""
  values = made.column(by)
  if values.ndim != 1:
    raise ValueError(f"by: the column {by!r} has {list(values.shape[1:])} numbers a record, not one")
  valid = np.flatnonzero(made.column(stored.VALID))
  if least is not None:
    return valid[values[valid] >= least].astype(np.int64)
  if not 0 < share <= 1:
    raise ValueError(f"share: must be above 0 and at most 1, not {share}")
  best = valid[np.argsort(-values[valid].astype(np.float64), kind="stable")[:max(1, round(share * len(valid)))]]
  return np.sort(best).astype(np.int64)
