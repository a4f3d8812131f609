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
    captions: uint16, bits of the columns of captions that are there.
    hashed: bool, whether there is a picture whose hash was asked for.
    hash: uint64.
  """

  reason: np.ndarray
  captions: np.ndarray
  hashed: np.ndarray
  hash: np.ndarray

  @classmethod
  def of(cls, seen: list[scan.Seen]) -> "Table":
    types = {"reason": np.uint8, "captions": np.uint16, "hashed": bool, "hash": np.uint64}
    return cls(**{name: np.array([getattr(one, name) for one in seen], kind) for name, kind in types.items()})

  @classmethod
  def joined(cls, tables: list["Table"]) -> "Table":
    return cls(*(np.concatenate([getattr(table, field.name) for table in tables])
                 for field in dataclasses.fields(cls)))


def keep(table: Table, settings: Settings) -> tuple[np.ndarray, np.ndarray]:
  """Leaves out duplicates: of equal pictures the first in the source's order stays. What has no picture is none.

  Returns:
    (reason uint8 [N] with duplicates marked, records that are kept int64 [K] in the source's order).
  """
  reason = table.reason.copy()
  hashed = np.flatnonzero((reason == scan.KEPT) & table.hashed)
  if len(hashed):
    distance = settings.distance if settings.dedup == "perceptual" else 0
    first = hashes.first_of_equals(table.hash[hashed], distance)
    reason[hashed[first != np.arange(len(hashed))]] = scan.DUPLICATE
  return reason, np.flatnonzero(reason == scan.KEPT).astype(np.int64)


def counts(reason: np.ndarray) -> dict[str, int]:
  """{reason: number of records}, in the order of the steps."""
  numbers = np.bincount(reason, minlength=len(scan.REASONS))
  return {name: int(number) for name, number in zip(scan.REASONS, numbers)}
