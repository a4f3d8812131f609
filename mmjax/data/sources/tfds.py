"""Records of a `tensorflow_datasets` dataset stored as ArrayRecord, read without TensorFlow."""

import dataclasses
import difflib
import hashlib
import pathlib
import typing

import tensorflow_datasets as tfds

_HINT = "prepare it with `tfds build --file_format=array_record`, or give the data_dir it is in"


@dataclasses.dataclass(frozen=True)
class Tfds:
  """Record i of one split. Images at the top level are encoded bytes, for transforms.Decode."""

  records: typing.Any      # tfds' own data source
  name: str
  digest: str              # SHA-256 over the dataset's version and its files' names and sizes
  keys: tuple | None
  labels: dict             # {key: names of its values, in order}

  def class_names(self, key):
    """The names of the values of a record's label `key`, or None if it is no label."""
    return self.labels.get(key)

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    record = self.records[i]
    return record if self.keys is None else {key: record[key] for key in self.keys}


def build(dataset: str, split: str, data_dir: str | None = None, keys: tuple | None = None):
  """The source of a dataset's split.

  Args:
    dataset: "name", "name/config" or either with ":version"; or the directory of a prepared version.
    split: e.g. "train", or a part of it as in "train[:90%]".
    data_dir: the folder of prepared datasets; None is tfds' own default.
    keys: the record's keys to read; None is all.

  Raises:
    ValueError: no such dataset, split or key (with the nearest name), or not stored as ArrayRecord.
  """
  builder = _builder(dataset, data_dir)
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
  return Tfds(records, full_name, _digest(builder, split), None if keys is None else tuple(keys),
              labels)


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
