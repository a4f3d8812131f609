"""A stream: a source of records, the transforms they pass through, and an order.

`Stream.record(row)` depends on nothing but the stream's fields and the row, so it does not matter
which process, worker or thread asks, nor what was asked before.
"""

import dataclasses
import functools
import typing

import numpy as np

from mmjax.data import order

_SPEC_TRIES = 16       # records tried for a readable one before the stream itself is called wrong
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
      numbers only.
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
      DataError: none of the first 16 rows can be read; then it is not the records that are wrong.
    """
    errors = []
    for row in range(min(_SPEC_TRIES, len(self))):
      try:
        record = self._read(row)
      except DataError as error:
        errors.append(str(error))
        continue
      return {key: RecordSpec(value.shape, value.dtype) for key, value in sorted(record.items())}
    raise DataError(f"none of the first {len(errors)} rows can be read; {errors[0]}")

  def record(self, row):
    """The record at a global row.

    Returns:
      dict of arrays with the spec's shapes and dtypes, and two more keys: `valid` bool [] and
      `error`, a string array [], empty unless the record is bad. A bad record (it cannot be read or
      decoded, a transform raises, a shape differs from the spec) has zero content and valid =
      False.
    """
    try:
      record = self._read(row)
      self._check(record, row)
    except DataError as error:
      return blank(self.spec, error=str(error)[:_ERROR_LENGTH])
    return dict(record, valid=np.array(True), error=np.array(""))

  def _read(self, row):
    """Reads and transforms; whatever goes wrong becomes a DataError that names the record and the
    stage."""
    index = order.record_id(row, len(self.source), self.seed, self.shuffle)
    stage = "read"
    try:
      record = dict(self.source[index])
      for i, transform in enumerate(self.transforms):
        stage = f"{self._transform(i)} ({type(transform).__name__})"
        record = transform(record, Draws(self.seed, i, row))
      stage = "result"
      return {key: _as_array(key, value) for key, value in record.items()}
    except Exception as error:
      raise DataError(
          f"{self.name} record {index}, {stage}: {type(error).__name__}: {error}") from error

  def _transform(self, i):
    return f"{self.where}.transforms.{i}" if self.where else f"transform {i}"

  def _check(self, record, row):
    found = {key: RecordSpec(value.shape, value.dtype) for key, value in record.items()}
    for key in sorted(found.keys() | self.spec.keys()):
      if found.get(key) != self.spec.get(key):
        index = order.record_id(row, len(self.source), self.seed, self.shuffle)
        raise DataError(f"{self.name} record {index}, result: {key!r} is "
                        f"{_describe(found.get(key))}, expected {_describe(self.spec.get(key))}")


def blank(spec, error=""):
  """A record of zeros with valid = False: the place of a bad record, or padding."""
  zeros = {key: np.zeros(shape, dtype) for key, (shape, dtype) in spec.items()}
  return dict(zeros, valid=np.array(False), error=np.array(error))


class Draws:
  """The draws of one transform on one row: a `numpy.random.Generator` that is made when it is first
  asked for something, since most transforms draw nothing and making one takes 30 microseconds.

  Philox keyed by (seed, row), its counter started at the transform.
  """

  def __init__(self, seed, transform, row):
    self._place = seed, transform, row

  def __getattr__(self, name):
    if "_generator" not in vars(self):
      seed, transform, row = self._place
      self._generator = np.random.Generator(np.random.Philox(
          key=np.array([order.mix(seed), row], np.uint64),
          counter=np.array([0, 0, 0, transform], np.uint64)))
    return getattr(self._generator, name)


def _as_array(key, value):
  """A numeric array that a device holds as it is: 64-bit numbers become 32-bit ones if they fit."""
  if key in RESERVED:
    raise ValueError(f"the key {key!r} is the loader's own; rename it")
  array = np.asarray(value)
  if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
    raise TypeError(f"{key!r} is not numeric ({type(value).__name__}, {array.dtype}); "
                    "end the transforms with Keep(keys=...) to leave it out")
  narrow = {"int64": np.int32, "uint64": np.uint32, "float64": np.float32}.get(array.dtype.name)
  if narrow is None:
    return array
  if array.dtype.kind in "iu" and array.size:
    limits = np.iinfo(narrow)
    if array.min() < limits.min or array.max() > limits.max:
      raise ValueError(f"{key!r} has a value beyond 32 bits")
  return array.astype(narrow)


def _describe(spec):
  return "missing" if spec is None else f"{spec.dtype} {list(spec.shape)}"
