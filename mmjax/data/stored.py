"""Columns that a model has made of a source's records (`mmjax prepare`): arrays, read at random.

  DIR/prepare.json               of what, by what; there from the start
  DIR/columns.json               {"source_digest", "records", "shard_records", "columns": {name: {"dtype", "shape"}},
                                 "classes", "broken"}; there only when all is done
  DIR/NAME-00003.npy             rows 3 * shard_records and on of a column, "/" in names written "."
  DIR/valid-00003.npy            bool: False where the record could not be read, and the columns hold zeros
"""

import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

MANIFEST = "columns.json"
VALID = "valid"


@dataclasses.dataclass(frozen=True)
class Stored:
  """The columns of a folder.

  Attributes:
    folder: where they lie.
    manifest: of `columns.json`.
  """

  folder: str
  manifest: dict

  @property
  def names(self) -> tuple[str, ...]:
    return tuple(self.manifest["columns"])

  def __len__(self) -> int:
    return self.manifest["records"]

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    """The row of every column.

    Raises:
      ValueError: the model has not seen the record, for it could not be read.
    """
    shard, row = divmod(i, self.manifest["shard_records"])
    if not self._shard(VALID, shard)[row]:
      raise ValueError(f"{self.folder} has nothing of record {i}: it could not be read")
    return {name: np.array(self._shard(name, shard)[row]) for name in self.names}

  def column(self, name: str) -> np.ndarray:
    """All rows, [N, ...], in memory.

    Raises:
      ValueError: there is no such column.
    """
    if name not in (*self.names, VALID):
      raise ValueError(f"{self.folder} has no column {name!r} (it has {', '.join(self.names)})")
    shards = -(-len(self) // self.manifest["shard_records"])
    return np.concatenate([self._shard(name, shard) for shard in range(shards)])

  def _shard(self, name, shard):
    return _load(str(path_of(self.folder, name, shard)))


def path_of(folder: Any, name: str, shard: int) -> pathlib.Path:
  """The file of a column's shard."""
  return pathlib.Path(folder, f"{name.replace('/', '.')}-{shard:05}.npy")


@functools.lru_cache(maxsize=1024)
def _load(path):
  return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def open_columns(folder: str) -> Stored:
  """The columns of a finished job.

  Raises:
    ValueError: there is none.
  """
  file = pathlib.Path(folder).expanduser() / MANIFEST
  if not file.is_file():
    begun = (file.parent / "prepare.json").exists()
    raise ValueError(f"columns: {folder} holds no {MANIFEST}" + (
        "; the job is not finished, the same `mmjax prepare` goes on" if begun else ""))
  return Stored(str(file.parent), json.loads(file.read_text()))
