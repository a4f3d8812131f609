"""ArrayRecord files of `tf.train.Example` messages, such as `mmjax data build` writes.

A record is a dict of the message's features: one integer or number as such, several as an array; bytes
as bytes, the captions as a list of str.

  image       bytes of the file, for transforms.Decode
  caption     list of str
  label       int
"""

import dataclasses
import functools
import hashlib
import json
from typing import Any

from array_record.python import array_record_data_source
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from mmjax.data import columns as columns_lib
from mmjax.data import index_cache
from mmjax.data import places
from mmjax.data import records

MANIFEST = "manifest.json"  # beside the files, if they were built here
TEXTS = ("id", "key", "url", "language")  # features of bytes that are read as str


@dataclasses.dataclass(frozen=True)
class Examples:
  """Record i is the i-th of all files, in the order of their names.

  Attributes:
    files: the shards.
    columns: which features are image, caption and label.
    classes: names of the label's values, if a manifest tells them.
    name: of the data.
    digest: the manifest's, else SHA-256 over the files' names and sizes.
  """

  files: tuple[str, ...]
  columns: columns_lib.Columns
  classes: tuple[str, ...] | None
  name: str
  digest: str

  @functools.cached_property
  def _records(self):
    return array_record_data_source.ArrayRecordDataSource(list(self.files))

  def __reduce__(self):
    return Examples, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

  def class_names(self, key: str) -> tuple[str, ...] | None:
    """The names of the values of a record's `key`, or None if it is no label."""
    return self.classes if key == "label" else None

  def __len__(self) -> int:
    return len(self._records)

  def where(self, i: int) -> str:
    """The file of a record, and its place there, for errors."""
    file, own = index_cache.place(self._ends, i)
    return f"{places.name_of(self.files[file])}, record {own}"

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    return np.cumsum([len(array_record_data_source.ArrayRecordDataSource([file])) for file in self.files])

  def __getitem__(self, i: int) -> dict[str, Any]:
    record = self.columns.renamed(decode(self._records[i]))
    if self.columns.caption:
      texts = columns_lib.captions(record.get("caption"))
      record["caption"] = [one.decode("utf-8") if isinstance(one, bytes) else one for one in texts]
    return record


def decode(message: bytes) -> dict[str, Any]:
  """The features of a serialised `tf.train.Example`.

  Raises:
    ValueError: it is none.
  """
  try:
    features = tf_example_pb2.Example.FromString(message).features.feature
  except Exception as error:  # protobuf's own, which is no ValueError
    raise ValueError(f"no tf.train.Example: {error}") from error
  return {name: _value(name, feature) for name, feature in features.items()}


def _value(name, feature):
  kind = feature.WhichOneof("kind")
  if kind is None:
    return []
  values = list(getattr(feature, kind).value)
  if kind == "bytes_list":
    values = [value.decode("utf-8") for value in values] if name in TEXTS else values
    return values[0] if len(values) == 1 else values
  if len(values) == 1:
    return values[0]
  return np.array(values, np.int64 if kind == "int64_list" else np.float32)


def encode(record: dict[str, Any]) -> bytes:
  """A serialised `tf.train.Example`, the same bytes for the same record.

  Raises:
    TypeError: a value is neither bytes, text, number, nor a list or array [N] of one of these.
    ValueError: a text has no UTF-8, or a whole number has more than 64 bits.
  """
  features = {}
  for name, value in sorted(record.items()):
    if isinstance(value, np.ndarray) and value.ndim > 1:  # its shape would be lost
      raise TypeError(f"{name!r} cannot be stored: {records.describe(value)}; only pictures uint8 [H, W, C] and "
                      "arrays of one axis can")
    values = value.reshape(-1).tolist() if isinstance(value, np.ndarray) else value
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    try:
      features[name] = _feature(values)
    except ValueError as error:
      raise ValueError(f"{name!r} cannot be stored: {error}") from error
    if features[name] is None:
      raise TypeError(f"{name!r} cannot be stored: {type(value).__name__}")
  example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features))
  return example.SerializeToString(deterministic=True)


def _feature(values):
  """The list as a feature, None if there is none of its type."""
  if all(isinstance(one, (str, bytes)) for one in values):
    texts = [one.encode("utf-8") if isinstance(one, str) else one for one in values]
    return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=texts))
  if all(isinstance(one, (int, np.integer)) for one in values):
    return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=values))
  if all(isinstance(one, (int, float, np.number)) for one in values):
    return tf_feature_pb2.Feature(float_list=tf_feature_pb2.FloatList(value=values))
  return None


def build(path: str | tuple, image: str | None = None, caption: str | None = None,
          label: str | None = None) -> Examples:
  """The source of a folder of ArrayRecord files, or of some.

  Args:
    path: a folder, files, or patterns for them.
    image, caption, label: names of these features; default those that have usual names.

  Raises:
    ValueError: there are none, one cannot be read, or there is no such feature.
  """
  paths = [one for spec in ((path,) if isinstance(path, str) else path) for one in places.expand(spec)]
  files = tuple(file for one in paths for file in _files(one))
  manifest = _manifest(paths[0])
  told = repr([(places.name_of(file), places.size(file)) for file in files])
  digest = manifest.get("digest") or hashlib.sha256(told.encode()).hexdigest()
  source = Examples(files, columns_lib.Columns(), None, places.name_of(paths[0]), digest)
  try:
    known = sorted(decode(source._records[0])) if len(source) else []
  except Exception as error:
    raise ValueError(f"path: {files[0]} cannot be read: {error}") from error
  if not known:
    raise ValueError(f"path: {path} has no records")
  classes = manifest.get("classes")
  return dataclasses.replace(source, columns=columns_lib.find(known, image, caption, label, several=True),
                             classes=tuple(classes) if classes else None)


def is_shard(name: str) -> bool:
  """Whether a file of that name is an ArrayRecord: "a.array_record", "a.array_record-00000-of-00008"."""
  return any(part == "array_record" or part.startswith("array_record-") for part in name.split("."))


def _files(path):
  if not places.is_folder(path):
    return [path]
  files = [places.join(path, name) for name in places.names_in(path) if is_shard(name)]
  if not files:
    raise ValueError(f"path: {path} holds no *.array_record")
  return files


def _manifest(path):
  if not places.is_folder(path) or MANIFEST not in places.names_in(path):
    return {}
  return json.loads(places.read(places.join(path, MANIFEST)))
