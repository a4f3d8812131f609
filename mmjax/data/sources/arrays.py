"""Records from an .npz file of arrays, one record a row: small data sets and tests."""

import dataclasses
import functools
import hashlib
import os
import pathlib

import numpy as np


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Record i is {key: array[i]}. Everything is held in memory; a worker process loads its own."""

  path: str

  @property
  def name(self):
    return pathlib.Path(self.path).name

  @functools.cached_property
  def _arrays(self):
    with np.load(self.path, allow_pickle=False) as file:
      return dict(file)

  @functools.cached_property
  def digest(self):
    """SHA-256 of the file."""
    return hashlib.sha256(pathlib.Path(self.path).read_bytes()).hexdigest()

  def class_names(self, key):
    """("0", "1", ...) up to the largest value of a label `key`, or None if it is none."""
    array = self._arrays.get(key)
    if array is None or array.ndim != 1 or array.dtype.kind not in "iu":
      return None
    return tuple(str(i) for i in range(int(array.max(initial=-1)) + 1))

  def __len__(self):
    return len(next(iter(self._arrays.values())))

  def __getitem__(self, i):
    return {key: array[i] for key, array in self._arrays.items()}

  def __reduce__(self):
    return Arrays, (self.path,)


def build(path: str):
  """The source of an .npz file whose arrays all have the same leading axis.

  Raises:
    ValueError: there is no such file, it is not an .npz, or its arrays differ in length.
  """
  path = os.path.expanduser(path)
  if not pathlib.Path(path).is_file():
    raise ValueError(f"there is no file {path}")
  source = Arrays(path)
  try:
    arrays = source._arrays
  except Exception as error:
    raise ValueError(f"cannot read {path} as .npz: {error}") from error
  lengths = {key: array.shape[0] if array.ndim else None for key, array in arrays.items()}
  if len(set(lengths.values())) != 1 or None in lengths.values():
    raise ValueError(f"the arrays of {path} must share one leading axis; their lengths: {lengths}")
  return source
