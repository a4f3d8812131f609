"""Parquet and Arrow files, such as Hugging Face `datasets` folders, read without that package.

A record is a dict of

  image       bytes of the file, embedded or referenced, for transforms.Decode
  caption     list of str
  label       int, or the place of a text among all texts of that column; left out where there is none
  ...         the other columns, as Python values

Arrow files are mapped into memory. Parquet cannot be read at random: a file is written once as Arrow
to the cache folder (mmjax/data/index_cache.py), as `datasets` does, and takes its size there again.
"""

import dataclasses
import functools
import hashlib
import json
import logging
import os
import pathlib
import re
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

from mmjax.data import columns as columns_lib
from mmjax.data import index_cache, places
from mmjax.data.sources import lines

ENDINGS = (".arrow", ".parquet")
_SPLIT = re.compile(r"(train|valid|validation|val|dev|test)(?=[-_.\d])")  # that a file's name begins with
_BATCH = 64  # records that are decoded to read one of them, where files are written here
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Arrow:
  """Record i is the i-th row of all files.

  Attributes:
    files: Arrow files.
    names: of the files that they were made of, for errors; Parquet is read from an Arrow copy.
    root: where pictures lie that rows name by relative paths.
    columns: which are image, caption and label.
    classes: names of the label's values, if the files tell them or hold texts.
    texts: the labels are texts.
    name: of the data.
    digest: SHA-256 over the files' names, sizes and schema.
  """

  files: tuple[str, ...]
  names: tuple[str, ...]
  root: str
  columns: columns_lib.Columns
  classes: tuple[str, ...] | None
  texts: bool
  name: str
  digest: str

  @functools.cached_property
  def _tables(self) -> list[pa.Table]:
    return [_open(file) for file in self.files]

  @functools.cached_property
  def _batches(self) -> list[pa.RecordBatch]:
    return [batch for table in self._tables for batch in table.to_batches()]

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    return np.cumsum([batch.num_rows for batch in self._batches])

  @functools.cached_property
  def _numbers(self) -> dict[str, int]:
    return {name: i for i, name in enumerate(self.classes)} if self.texts else {}

  def __reduce__(self):
    return Arrow, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

  def class_names(self, key: str) -> tuple[str, ...] | None:
    """The names of the values of a record's `key`, or None if it is no label."""
    return self.classes if key == "label" else None

  def __len__(self) -> int:
    return int(self._ends[-1])

  def where(self, i: int) -> str:
    """The file of a record, and its place there, for errors."""
    file, row = index_cache.place(np.cumsum([table.num_rows for table in self._tables]), i)
    return f"{self.names[file]}, row {row}"

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Raises ValueError naming file and row if it cannot be read."""
    try:
      return self._record(i)
    except (ValueError, TypeError, OSError) as error:  # pyarrow's own are among them
      raise ValueError(f"{self.where(i)}: {error}") from error

  def _record(self, i):
    number, own = index_cache.place(self._ends, i)
    batch = self._batches[number]
    row = {name: column[own].as_py() for name, column in zip(batch.schema.names, batch.columns)}
    record = self.columns.renamed(row)
    if self.columns.caption:
      record["caption"] = columns_lib.captions(record.get("caption"))
    if self.columns.image:
      record["image"] = _picture(record.get("image"), self.root)
    if self.columns.label:
      label = columns_lib.label(record.pop("label", None), self._numbers)
      record.pop(self.columns.label[0], None)  # which kept its name if it is None
      record |= {} if label is None else {"label": label}
    return record


def _picture(value, root):
  """Bytes of an embedded or referenced picture; `datasets` writes {"bytes", "path"}, or a list of them."""
  if isinstance(value, list) and len(value) == 1:
    value = value[0]
  if isinstance(value, dict) and ("bytes" in value or "path" in value):
    value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
  return value if isinstance(value, bytes) else lines.picture(value, root)


def _open(path: str) -> pa.Table:
  """A mapped table of an Arrow file, of the stream format (which `datasets` writes) or the file
  format."""
  mapped = pa.memory_map(path)
  try:
    return ipc.open_stream(mapped).read_all()
  except pa.ArrowInvalid:
    return ipc.open_file(mapped).read_all()


def build(path: str | tuple, split: str | None = None, root: str | None = None, image: str | None = None,
          caption: str | None = None, label: str | None = None) -> Arrow:
  """The source of a folder that `datasets` has saved, of .parquet or .arrow files, or of folders of
  these.

  Args:
    path: folders, files, or patterns for them.
    split: of a folder that holds several, "train" by default: that of `save_to_disk`, or that which file
      names begin with, as in "train-00000-of-00008.parquet" or "test.parquet".
    root: where the pictures lie that rows name; default beside the file.
    image, caption, label: names of these columns, "" for none; default those that have usual names.

  Raises:
    ValueError: no such files, split or column, one cannot be read, or `label` is none.
  """
  found = [file for one in ((path,) if isinstance(path, str) else path)
           for place in places.expand(one) for file in _files(place, split)]
  local, tables = [], []
  for file in found:
    try:
      local.append(_as_arrow(file))
      tables.append(_open(local[-1]))
    except (pa.ArrowException, OSError) as error:
      raise ValueError(f"path: {file} cannot be read: {error}; if it was cut short, fetch it again or take it "
                       "away") from error
    if tables[-1].schema.names != tables[0].schema.names:
      raise ValueError(f"path: {file} has other columns than {found[0]}")
  schema = tables[0].schema
  columns = columns_lib.find(schema.names, image, caption, label)
  told = [(places.name_of(file), places.size(file)) for file in found]
  digest = hashlib.sha256(repr((told, str(schema))).encode()).hexdigest()
  first = next(iter((path,) if isinstance(path, str) else path))
  classes, texts = _classes(schema, columns), False
  if columns.label and not classes:
    key = "arrow", columns.label[0], tuple(map(places.stamp, found))
    columns, classes = lines.with_classes(columns, key, lambda: _values(tables, columns.label[0]),
                                          places.name_of(first), label)
    texts = classes is not None
  source = Arrow(tuple(local), tuple(map(places.name_of, found)),
                 os.path.expanduser(root) if root else places.folder_of(found[0]), columns, classes, texts,
                 places.name_of(first), digest)
  if not source._batches or not len(source):
    raise ValueError(f"path: {path} has no records")
  return source


def _files(path, split):
  """The data files at a path, of one split; None is the only one, or "train"."""
  if not places.is_folder(path):
    if places.ending(path) not in ENDINGS:
      raise ValueError(f"path: {path} is none of {', '.join(ENDINGS)}")
    if split:
      raise ValueError(f"split: {path} is one file, which has no splits; give the file of {split!r} instead")
    return [path]
  names = places.names_in(path)
  if "dataset_dict.json" in names:  # several splits of `save_to_disk`
    splits = json.loads(places.read(places.join(path, "dataset_dict.json")))["splits"]
    return _files(places.join(path, _one_of(splits, split or "train", path)), None)
  if "state.json" in names:  # one of them, whose files it names in their order
    state = json.loads(places.read(places.join(path, "state.json")))
    if split and split != state.get("_split"):
      raise ValueError(f"split: {path} is one split, {state.get('_split') or 'without a name'}; leave it out")
    return [places.join(path, entry["filename"]) for entry in state["_data_files"]]
  files = [places.join(path, name) for name in names if name.endswith(ENDINGS)]
  if not files and "data" in names:  # as folders on the hub are laid out
    return _files(places.join(path, "data"), split)
  if not files:
    raise ValueError(f"path: {path} holds no *{', *'.join(ENDINGS)}")
  known = {file: _split_of(places.name_of(file)) for file in files}
  splits = sorted(set(filter(None, known.values())))
  if not splits and split:
    raise ValueError(f"split: {path} has none: no file in it is called as in {split}{ENDINGS[1]} or "
                     f"{split}-00000-of-00001{ENDINGS[1]}")
  if not splits:
    return files
  chosen = _one_of(splits, split or "train", path)
  without = [places.name_of(file) for file in files if not known[file]]
  if without:
    _log.warning("%s: %d files are not read, for they are of no split, unlike the others: %s", path, len(without),
                 ", ".join(without[:3]))
  return [file for file in files if known[file] == chosen]


def _one_of(splits, split, path):
  if split not in splits:
    raise ValueError(f"split: {path} has no {split!r}, but {', '.join(splits)}")
  return split


def _split_of(name):
  """The split that a file's name tells, or None."""
  if "-of-" in name:
    return name.partition("-")[0]
  named = _SPLIT.match(name)
  return named and named.group()


def _as_arrow(path):
  """A local Arrow file with the content of a .parquet, or of a remote .arrow."""
  if places.ending(path) == ".arrow" and not places.is_remote(path):
    return path

  def fill(folder):
    if places.ending(path) == ".arrow":
      (folder / "data.arrow").write_bytes(places.read(path))
      return
    _log.info("%s: written once as Arrow to %s", path, index_cache.cache_folder() / "index")
    with places.open_file(path) as opened:
      file = parquet.ParquetFile(opened)
      with ipc.new_file(os.fspath(folder / "data.arrow"), file.schema_arrow) as out:
        for batch in file.iter_batches(batch_size=_BATCH):
          out.write_batch(batch)
  return str(pathlib.Path(index_cache.prepare("arrow", places.stamp(path), fill), "data.arrow"))


def first(path: str, count: int) -> list[dict[str, Any]]:
  """The first records of a file on this machine, under its own names, without an Arrow copy of it.

  Raises:
    ValueError: it cannot be read.
  """
  try:
    if places.ending(path) == ".arrow":
      return _open(path).slice(0, count).to_pylist()
    with parquet.ParquetFile(path) as file:
      return next((batch.to_pylist() for batch in file.iter_batches(batch_size=count)), [])
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f"path: {path} cannot be read: {error}") from error


def _values(tables, column):
  """Those of a column, each once a file."""
  for table in tables:
    kind = table.schema.field(column).type
    if pa.types.is_nested(kind):  # of which no values can be told apart
      yield next((one.as_py() for chunk in table.column(column).chunks for one in chunk if one.is_valid), None)
    else:
      yield from table.column(column).unique().to_pylist()


def _classes(schema, columns):
  """Names of the label's values, which `datasets` keeps in the schema's metadata."""
  told = (schema.metadata or {}).get(b"huggingface")
  if not told or not columns.label:
    return None
  feature = json.loads(told).get("info", {}).get("features", {}).get(columns.label[0], {})
  return tuple(feature["names"]) if isinstance(feature, dict) and feature.get("names") else None
