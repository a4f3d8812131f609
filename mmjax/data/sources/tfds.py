"""Records of a `tensorflow_datasets` dataset stored as ArrayRecord, read without TensorFlow.

A record is a dict of

  image       bytes of the file, for transforms.Decode
  caption     list of str
  label       int
  ...         the other features, under their names
"""

import dataclasses
import difflib
import functools
import hashlib
import os
import pathlib
import typing

import numpy as np
import tensorflow_datasets as tfds

from mmjax.data import columns as columns_lib
from mmjax.data import index_cache

_TEXTS = (np.object_, np.str_, np.bytes_)  # tfds' dtypes of texts
_HINT = "prepare it with `tfds build --file_format=array_record`, or give the data_dir it is in"


@dataclasses.dataclass(frozen=True)
class Tfds:
  """Record i of one split. Images at the top level are encoded bytes, for transforms.Decode."""

  records: typing.Any      # tfds' own data source
  name: str
  digest: str              # SHA-256 over the dataset's version and its files' names and sizes
  keys: tuple | None
  labels: dict             # {key: names of its values, in order}
  columns: columns_lib.Columns  # which features are image, caption and label

  def class_names(self, key):
    """The names of the values of a record's label `key`, or None if it is no label."""
    return self.labels.get(self.columns.label[0] if key == "label" and self.columns.label else key)

  def __len__(self):
    return len(self.records)

  @functools.cached_property
  def _files(self):
    """(name, first record, end of those up to it) of each file of the split."""
    info = self.records.dataset_info.splits[self.records.split]
    return ([pathlib.Path(one.filename).name for one in info.file_instructions],
            [one.skip for one in info.file_instructions],
            np.cumsum([one.take for one in info.file_instructions]))

  def where(self, i):
    """The file of a record, and its place there, for errors."""
    names, skips, ends = self._files
    file, own = index_cache.place(ends, i)
    return f"{names[file]}, record {skips[file] + own}"

  def __getitem__(self, i):
    """Raises ValueError naming file and record if it cannot be read."""
    try:
      record = self.records[i]
      record = self.columns.renamed(record if self.keys is None else {key: record[key] for key in self.keys})
      if self.columns.caption:
        texts = columns_lib.captions(record.get("caption"))
        record["caption"] = [one.decode("utf-8") if isinstance(one, bytes) else one for one in texts]
    except Exception as error:  # whatever the readers beneath raise
      raise ValueError(f"{self.where(i)}: {type(error).__name__}: {error}") from error
    return record


def build(dataset: str, split: str, data_dir: str | None = None, keys: tuple | None = None,
          image: str | None = None, caption: str | None = None, label: str | None = None):
  """The source of a dataset's split.

  Args:
    dataset: "name", "name/config" or either with ":version"; or the directory of a prepared version.
    split: e.g. "train", or a part of it as in "train[:90%]".
    data_dir: the folder of prepared datasets; None is tfds' own default.
    keys: the record's keys to read; None is all.
    image, caption, label: which of these are image, captions and label, "" for none; default those of
      their kind that have usual names.

  Raises:
    ValueError: no such dataset, split or key (with the nearest name), one of another kind, or not
      stored as ArrayRecord.
  """
  builder = _builder(dataset, data_dir and os.path.expanduser(data_dir))
  features = builder.info.features
  images = [key for key in features if isinstance(features[key], tfds.features.Image)]
  splits = list(builder.info.splits)
  if not splits:
    raise ValueError(f"the dataset {dataset!r} is not prepared under {builder.data_path}; {_HINT}")
  part = split.split("[")[0]
  if part not in splits and "+" not in split:
    raise ValueError(f"the dataset {dataset!r} has no split {part!r}{_nearest(part, splits)}")
  for key in keys or ():
    if key not in features:
      raise ValueError(f"the dataset {dataset!r} has no key {key!r}{_nearest(key, features)}")
  try:
    records = builder.as_data_source(
        split, decoders={key: tfds.decode.SkipDecoding() for key in images})
  except NotImplementedError as error:
    raise ValueError(f"the dataset {dataset!r} is not stored as ArrayRecord; {_HINT}") from error
  full_name = f"{builder.info.full_name}[{split}]"
  labels = {key: tuple(feature.names) for key, feature in features.items()
            if isinstance(feature, tfds.features.ClassLabel)}
  columns = _columns({key: features[key] for key in keys or features}, image, caption, label)
  return Tfds(records, full_name, _digest(builder, split), None if keys is None else tuple(keys),
              labels, columns)


def _columns(features, image, caption, label):
  """The columns that are given, else those that have usual names and are of the right kind."""
  found = columns_lib.find(features, image, caption, label)
  right = {"image": lambda one: isinstance(one, tfds.features.Image),
           "caption": lambda one: isinstance(one.shape, tuple) and len(one.shape) < 2 and one.np_dtype in _TEXTS,
           "label": lambda one: not one.shape and np.issubdtype(one.np_dtype, np.integer)}
  for ours, given in (("image", image), ("caption", caption), ("label", label)):
    for name in getattr(found, ours):
      if not right[ours](features[name]):
        if given:
          raise ValueError(f"{ours}: the feature {name!r} is {features[name]!r}, which is no {ours}")
        found = dataclasses.replace(found, **{ours: ()})
  return found


def _builder(name, data_dir):
  if pathlib.Path(name, "dataset_info.json").expanduser().is_file():
    return tfds.builder_from_directory(pathlib.Path(name).expanduser())
  try:
    return tfds.builder(name, data_dir=data_dir)
  except tfds.core.DatasetNotFoundError as error:
    known = tfds.list_builders(with_community_datasets=False)
    if data_dir and pathlib.Path(data_dir).is_dir():
      known += [path.name for path in pathlib.Path(data_dir).iterdir() if path.is_dir()]
    raise ValueError(f"there is no dataset {name!r}{_nearest(name, known)}; {_HINT}") from error


def _nearest(name, known):
  matches = difflib.get_close_matches(name, list(known), n=1, cutoff=0)
  return f"; the nearest is {matches[0]!r}" if matches else ""


def _digest(builder, split):
  files = [(pathlib.Path(path).name, path.stat().length)
           for info in builder.info.splits.values() for path in info.filepaths]
  return hashlib.sha256(repr((builder.info.full_name, split, sorted(files))).encode()).hexdigest()
