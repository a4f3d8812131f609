"""A stream: a source of records, the transforms they pass through, and an order.

`Stream.record(row)` depends on nothing but the stream's fields and the row, so it does not matter
which process, worker or thread asks, nor what was asked before.
"""

import dataclasses
import functools
import typing

import numpy as np
from numpy.random import bit_generator

from mmjax.data import order
from mmjax.data import records

_FIRST, _SPREAD = 16, 64  # rows tried for a readable one before the stream itself is called wrong
_ERROR_LENGTH = 300    # characters of an error that travel with a bad record
RESERVED = ("row", "valid", "error")  # keys that the stream and the loader add


class DataError(RuntimeError):
  """The data cannot be read, or too many records are bad; the message names source and record."""


class RecordSpec(typing.NamedTuple):
  """Shape and dtype of one key of a record, without the batch axis."""

  shape: tuple
  dtype: np.dtype


@dataclasses.dataclass(frozen=True)
class Stream:
  """Records of one source, transformed, in order.

  Attributes:
    source: has `__len__`, `__getitem__(i) -> dict`, `digest: str`, and if it likes `name: str`.
    transforms: callables (record, rng) -> record, applied from left to right; the last must leave
      numbers only. See `late` for what else they may say of themselves.
    shuffle: permute every epoch anew; False keeps the stored order.
    seed: chooses the permutations and the transforms' draws.
    max_bad_fraction: share of bad records, of those read so far (counted from the 100th row),
      beyond which the loader raises DataError.
    max_bad: the same as a count; None is no limit of this kind.
    where: the stream's place in the config, such as "data", by which errors name a transform.
  """

  source: typing.Any
  transforms: tuple = ()
  shuffle: bool = True
  seed: int = 0
  max_bad_fraction: float = 0.01
  max_bad: int | None = None
  where: str = ""

  def __post_init__(self):
    if len(self.source) == 0:
      raise DataError(f"{self.name}: the source has no records")

  def __len__(self):
    return len(self.source)

  @property
  def name(self):
    return getattr(self.source, "name", type(self.source).__name__)

  @functools.cached_property
  def spec(self):
    """{key: RecordSpec} of the first readable record.

    Raises:
      DataError: none of the first 16 rows can be read, nor of 64 spread over the others; then it is not the
        records that are wrong.
    """
    errors, count = [], len(self)
    first = range(min(_FIRST, count))
    spread = sorted({i * count // _SPREAD for i in range(_SPREAD)} - set(first))
    for row in (*first, *spread):
      try:
        record = self._read(row)
      except DataError as error:
        errors.append(str(error))
        continue
      return {key: RecordSpec(value.shape, value.dtype) for key, value in sorted(record.items())}
    others = f", nor of {len(spread)} spread over the others," if spread else ""
    raise DataError(f"none of the first {len(first)} rows{others} can be read; {errors[0]}")

  def record(self, row):
    """The record at a global row.

    Returns:
      dict of arrays with the spec's shapes and dtypes, and two more keys: `valid` bool [] and
      `error`, a string array [], empty unless the record is bad. A bad record (it cannot be read or
      decoded, a transform raises, a shape differs from the spec) has zero content and valid =
      False.
    """
    return self._record(row, {})

  def write(self, row, places):
    """Writes the record at a global row into a batch.

    Args:
      places: {key: array}, views into the batch of the spec's shapes and dtypes, and `valid` bool [].

    Returns:
      The record's error, "" unless it is bad.
    """
    record = self._record(row, places)
    for key, place in places.items():
      if record[key] is not place:
        place[...] = record[key]
    return record["error"].item()

  def _record(self, row, places):
    try:
      record = self._read(row, places)
      self._check(record, row)
    except DataError as error:
      return blank(self.spec, error=str(error)[:_ERROR_LENGTH])
    return dict(record, valid=np.array(True), error=np.array(""))

  @functools.cached_property
  def late(self):
    """Numbers of the transforms that come last when a batch is written, so that what they make goes to its
    place at once: a picture of floats is four times that of bytes, and new memory for it takes as long
    as making it.

    They have `into(record, places)` -> record, which draws nothing and puts what it makes of each of its
    `keys` there where it fits; all transforms behind them have `leaves(key)` and say that they neither
    read nor change these keys.
    """
    return tuple(i for i, transform in enumerate(self.transforms) if hasattr(transform, "into") and all(
        hasattr(later, "leaves") and all(map(later.leaves, transform.keys)) for later in self.transforms[i + 1:]))

  def _read(self, row, places=None):
    """Reads and transforms; whatever goes wrong becomes a DataError that names the record and the
    stage."""
    late = self.late if places else ()
    index = order.record_id(row, len(self.source), self.seed, self.shuffle)
    stage = "read"  # or the number of a transform
    try:
      record = dict(self.source[index])
      for stage, transform in enumerate(self.transforms):
        if stage not in late:
          record = transform(record, Draws(self.seed, stage, row))
      for stage in late:
        record = self.transforms[stage].into(record, places)
      stage = "result"
      return {key: _as_array(key, value) for key, value in record.items()}
    except Exception as error:
      raise DataError(
          f"{self._record_at(index, stage)}, {self._told(stage)}: {type(error).__name__}: {error}") from error

  def _record_at(self, index, stage="result"):
    # What goes wrong in reading is told by the source, with the file.
    where = records.where(self.source, index) if stage != "read" else ""
    return f"{self.name} record {index}{where and f' ({where})'}"

  def _told(self, stage):
    if isinstance(stage, str):
      return stage
    place = f"{self.where}.transforms.{stage}" if self.where else f"transform {stage}"
    return f"{place} ({type(self.transforms[stage]).__name__})"

  def _check(self, record, row):
    found = {key: RecordSpec(value.shape, value.dtype) for key, value in record.items()}
    if found == self.spec:
      return
    for key in sorted(found.keys() | self.spec.keys()):
      if found.get(key) != self.spec.get(key):
        index = order.record_id(row, len(self.source), self.seed, self.shuffle)
        raise DataError(f"{self._record_at(index)}, result: {key!r} is "
                        f"{_describe(found.get(key))}, expected {_describe(self.spec.get(key))}")


def blank(spec, error=""):
  """A record of zeros with valid = False: the place of a bad record, or padding."""
  zeros = {key: np.zeros(shape, dtype) for key, (shape, dtype) in spec.items()}
  return dict(zeros, valid=np.array(False), error=np.array(error))


class Draws:
  """The draws of one transform on one row: a `numpy.random.Generator` that is made when it is first
  asked for something, since most transforms draw nothing.

  Philox keyed by (seed, row), its counter started at the transform.
  """

  def __init__(self, seed, transform, row):
    self._place = seed, transform, row

  def __getattr__(self, name):  # of what has not been asked for before
    if "_generator" not in vars(self):
      seed, transform, row = self._place
      key = _Key(np.array([order.mix(seed), row], np.uint64))
      counter = np.array([0, 0, 0, transform], np.uint64)
      self._generator = np.random.Generator(np.random.Philox(key, counter=counter))
    value = vars(self)[name] = getattr(self._generator, name)
    return value


class _Key(bit_generator.ISeedSequence):
  """The key of a Philox as it is. Given as `key=` it is the same, but NumPy then asks the operating system for
  a seed besides, which takes longer than all else."""

  def __init__(self, words):
    self._words = words

  def generate_state(self, n_words, dtype=np.uint32):
    return self._words


_NARROW = {np.dtype(np.int64): np.int32, np.dtype(np.uint64): np.uint32, np.dtype(np.float64): np.float32}


def _as_array(key, value):
  """A numeric array that a device holds as it is: 64-bit numbers become 32-bit ones if they fit."""
  if key in RESERVED:
    raise ValueError(f"the key {key!r} is the loader's own; rename it")
  array = np.asarray(value)
  if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
    raise TypeError(f"{key!r} is not numeric ({type(value).__name__}, {array.dtype}); "
                    "end the transforms with Keep(keys=...) to leave it out")
  narrow = _NARROW.get(array.dtype)
  if narrow is None:
    return array
  if array.dtype.kind in "iu" and array.size:
    limits = np.iinfo(narrow)
    if array.min() < limits.min or array.max() > limits.max:
      raise ValueError(f"{key!r} has a value beyond 32 bits")
  return array.astype(narrow)


def _describe(spec):
  return "missing" if spec is None else f"{spec.dtype} {list(spec.shape)}"
