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

MANIFEST, BEGUN = "manifest.json", "build.json"  # beside the files of a build: when it is done, from its start
_TRIED = 16  # records that are looked at for the names of features
TEXTS = ("id", "key", "url", "language")  # features of bytes that are read as str


@dataclasses.dataclass(frozen=True)
class Examples:
  """Record i is the i-th of all files, in the order of their names.

  Attributes:
    files: the shards.
    columns: which features are image, caption and label.
    classes: names of the label's values, if a manifest tells them.
    name: of the data.
    digest: the manifest's, else SHA-256 over the files' names and sizes; of several folders over all of these.
  """

  files: tuple[str, ...]
  columns: columns_lib.Columns
  classes: tuple[str, ...] | None
  name: str
  digest: str

  @functools.cached_property
  def _records(self):
    return _opened(self.files)

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
    return np.cumsum([len(_opened([file])) for file in self.files])

  def _features(self, i):
    if not 0 <= i < len(self):
      raise IndexError(i)
    try:
      return decode(self._records[i])
    except Exception as error:  # the reader's own, which are RuntimeErrors, tell neither file nor number
      raise ValueError(f"{self.where(i)}: {error}") from error

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Raises ValueError naming file and record if it is damaged."""
    record = self.columns.renamed(self._features(i))
    if self.columns.caption:
      texts = columns_lib.captions(record.get("caption"))
      record["caption"] = [one.decode("utf-8") if isinstance(one, bytes) else one for one in texts]
    return record


def _opened(files):
  """The reader of some files; ValueError naming the first that cannot be read."""
  try:
    return array_record_data_source.ArrayRecordDataSource(list(files))
  except Exception as error:  # RuntimeError, which names no file
    if len(files) == 1:
      raise ValueError(f"path: {files[0]} cannot be read: {error}") from error
    for file in files:
      _opened([file])
    raise


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
    ValueError: there are none, one cannot be read or is missing, a build is not finished, or there is no such
      feature.
  """
  paths = [one for spec in ((path,) if isinstance(path, str) else path) for one in places.expand(spec)]
  found = [_files(one) for one in paths]
  files = tuple(file for some, _ in found for file in some)
  source = Examples(files, columns_lib.Columns(), _classes(paths, found), places.name_of(paths[0]), _digest(found))
  known, errors = set(), []
  for i in range(min(_TRIED, len(source))):
    try:
      known.update(source._features(i))
    except ValueError as error:
      errors.append(error)
  if not known and errors:
    raise ValueError(f"path: none of the first {len(errors)} records of {path} can be read; {errors[0]}") from errors[0]
  if not known:
    raise ValueError(f"path: {path} has no records")
  return dataclasses.replace(source, columns=columns_lib.find(sorted(known), image, caption, label, several=True))


def _digest(found):
  """Of (files, manifest) of each path."""
  told = lambda files: hashlib.sha256(repr([(places.name_of(file), places.size(file)) for file in files]).encode())
  if not any(manifest for _, manifest in found):
    return told([file for files, _ in found for file in files]).hexdigest()
  each = [manifest.get("digest") or told(files).hexdigest() for files, manifest in found]
  return each[0] if len(each) == 1 else hashlib.sha256(repr(each).encode()).hexdigest()


def _classes(paths, found):
  """The names of classes that the manifests tell; ValueError if they are not the same."""
  told = {tuple(manifest["classes"]): path for path, (_, manifest) in zip(paths, found) if manifest.get("classes")}
  if len(told) > 1:
    first, other, *_ = told.values()
    raise ValueError(f"path: {first} and {other} have other classes, so that a label means two things; read them as "
                     "parts of a mixture")
  return next(iter(told), None)


def is_shard(name: str) -> bool:
  """Whether a file of that name is an ArrayRecord: "a.array_record", "a.array_record-00000-of-00008"."""
  return any(part == "array_record" or part.startswith("array_record-") for part in name.split("."))


def _files(path):
  """(files at a path, the manifest): with a manifest of ours its shards, which have to be there."""
  if not places.is_folder(path):
    return [path], {}
  names = places.names_in(path)
  manifest = _json(path, MANIFEST, names)
  if {"digest", "shards"} <= manifest.keys():
    for line in manifest["shards"]:
      file = places.join(path, line["file"])
      if line["file"] not in names or places.size(file) != line["bytes"]:
        what = "is not whole" if line["file"] in names else "is missing"
        raise ValueError(f"path: {file}, which the {MANIFEST} beside it names, {what}; copy the folder again, or "
                         "build it into a new one")
    return [places.join(path, line["file"]) for line in manifest["shards"]], manifest
  if "source_digest" in _json(path, BEGUN, names):
    raise ValueError(f"path: {path} is a build that is not finished; the same `mmjax data build` goes on with it")
  files = [places.join(path, name) for name in names if is_shard(name)]
  if not files:
    raise ValueError(f"path: {path} holds no *.array_record")
  return files, {}


def _json(path, name, names):
  """The object in a folder's file of that name; {} if there is none, or it is somebody else's."""
  if name not in names:
    return {}
  try:
    told = json.loads(places.read(places.join(path, name)))
  except ValueError:
    return {}
  return told if isinstance(told, dict) else {}
