"""Which records are kept, from what was seen of all of them."""

import dataclasses

import numpy as np

from mmjax.data import hashes
from mmjax.data.build import scan
from mmjax.data.build.settings import Settings


@dataclasses.dataclass(frozen=True)
class Table:
  """What was seen of records, one after another: arrays [N].

  Attributes:
    reason: uint8, of `scan.REASONS`.
    exact, perceptual: uint64.
  """

  reason: np.ndarray
  exact: np.ndarray
  perceptual: np.ndarray

  @classmethod
  def of(cls, seen: list[scan.Seen]) -> "Table":
    return cls(np.array([one.reason for one in seen], np.uint8),
               *(np.array([getattr(one, name) for one in seen], np.uint64) for name in ("exact", "perceptual")))

  @classmethod
  def joined(cls, tables: list["Table"]) -> "Table":
    return cls(*(np.concatenate([getattr(table, field.name) for table in tables])
                 for field in dataclasses.fields(cls)))


def keep(table: Table, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
  """Leaves out duplicates: of equal pictures the first in the source's order stays.

  Returns:
    (reason uint8 [N] with duplicates marked, records that are kept int64 [K] in the source's order).
  """
  reason = table.reason.copy()
  kept = np.flatnonzero(reason == scan.KEPT)
  if settings.dedup != "none" and len(kept):
    found = {"exact": table.exact, "perceptual": table.perceptual}[settings.dedup][kept]
    distance = settings.distance if settings.dedup == "perceptual" else 0
    first = hashes.first_of_equals(found, distance)
    repeated = first != np.arange(len(kept))
    reason[kept[repeated]] = scan.DUPLICATE
    kept = kept[~repeated]
  return reason, kept.astype(np.int64)


def counts(reason: np.ndarray) -> dict[str, int]:
  """{reason: number of records}, in the order of the steps."""
  numbers = np.bincount(reason, minlength=len(scan.REASONS))
  return {name: int(number) for name, number in zip(scan.REASONS, numbers)}
