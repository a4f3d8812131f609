"""Indices of data files, built once and kept in the cache folder; read through memory maps.

A worker process opens what the first one has built, and an index of a hundred million records takes
address space rather than memory.
"""

import hashlib
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import numpy as np

_log = logging.getLogger(__name__)
VERSION = 4  # of all forms of index; a change of one makes all anew


def cache_folder() -> pathlib.Path:
  """$MMJAX_DATA_DIR, else ~/.cache/mmjax."""
  return pathlib.Path(os.environ.get("MMJAX_DATA_DIR") or "~/.cache/mmjax").expanduser()


def path_of(kind: str, key: object) -> pathlib.Path:
  """Where the index of that kind and key lies, or would."""
  digest = hashlib.sha256(repr((VERSION, key)).encode()).hexdigest()
  return cache_folder() / "index" / f"{kind}-{digest[:32]}"


def prepare(kind: str, key: object, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """The folder that `make` has filled, now or earlier.

  Args:
    kind: the form of the index, part of the folder's name.
    key: what the index follows from, such as stamps of files; compared by its repr.
    make: fills the empty folder that it is given.

  Raises:
    ValueError: the cache folder cannot be written.
  """
  place = path_of(kind, key)
  if place.is_dir():
    return place
  try:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=place.parent))
  except OSError as error:
    raise ValueError(f"cannot write the index of the data to {place.parent} ({error.strerror}); set "
                     "MMJAX_DATA_DIR to a folder that can be written") from error
  try:
    make(temporary)
    try:
      temporary.rename(place)  # whole or not at all; another process may have been quicker
    except OSError:
      if not place.is_dir():
        raise
  finally:
    shutil.rmtree(temporary, ignore_errors=True)
  return place


def place(ends: np.ndarray, i: int) -> tuple[int, int]:
  """(number of the part, number in it) of the i-th of records that lie in several parts.

  Args:
    ends: int64 [parts], how many records lie in each part and those before it.

  Raises:
    IndexError: there is no such record.
  """
  if not 0 <= i < ends[-1]:
    raise IndexError(i)
  part = int(np.searchsorted(ends, i, "right"))
  return part, i - int(ends[part - 1] if part else 0)


def arrays(kind: str, key: object, make: Callable[[], dict[str, np.ndarray]]
           ) -> dict[str, np.ndarray]:
  """As `prepare`, of arrays by name, which come back as memory maps."""
  def fill(folder):
    for name, array in make().items():
      np.save(folder / f"{name}.npy", array, allow_pickle=False)
  return load(prepare(kind, key, fill))


def load(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a folder, as memory maps."""
  def one(file):
    try:
      # As a plain array: each look into an `np.memmap` makes another, which takes microseconds.
      return np.asarray(np.load(file, mmap_mode="r", allow_pickle=False))
    except ValueError:  # nothing can be mapped of an empty array
      return np.load(file, allow_pickle=False)
  return {file.stem: one(file) for file in sorted(folder.glob("*.npy"))}


def read(folder: pathlib.Path) -> dict[str, np.ndarray]:
  """The arrays of a folder, in memory: a map keeps its file open, of which a process may have few."""
  return {file.stem: np.load(file, allow_pickle=False) for file in sorted(folder.glob("*.npy"))}


def empty(folder: pathlib.Path, name: str, dtype: type, count: int) -> np.ndarray:
  """A new array [count] of a folder, to be filled on disk."""
  file = folder / f"{name}.npy"
  if not count:  # nothing can be mapped
    np.save(file, np.empty(0, dtype))
    return np.empty(0, dtype)
  return np.lib.format.open_memmap(file, "w+", dtype, (count,))
