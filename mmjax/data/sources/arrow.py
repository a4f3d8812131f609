"""Parquet and Arrow files, such as Hugging Face `datasets` folders, read without that package.

A record is a dict of

  image       bytes of the file, embedded or referenced, for transforms.Decode
  caption     list of str
  label       int
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
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet

from mmjax.data import columns as columns_lib
from mmjax.data import index_cache, places
from mmjax.data.sources import lines

ENDINGS = (".arrow", ".parquet")
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
    classes: names of the label's values, if the files tell them.
    name: of the data.
    digest: SHA-256 over the files' names, sizes and schema.
  """

  files: tuple[str, ...]
  names: tuple[str, ...]
  root: str
  columns: columns_lib.Columns
  classes: tuple[str, ...] | None
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
    number, own = index_cache.place(self._ends, i)
    batch = self._batches[number]
    row = {name: column[own].as_py() for name, column in zip(batch.schema.names, batch.columns)}
    record = self.columns.renamed(row)
    if self.columns.caption:
      record["caption"] = columns_lib.captions(record.get("caption"))
    if self.columns.image:
      record["image"] = _picture(record.get("image"), self.root)
    if record.get("label") is not None:
      record["label"] = int(record["label"])
    return record


def _picture(value, root):
  """Bytes of an embedded or referenced picture; `datasets` writes {"bytes", "path"}."""
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


def build(path: str | tuple, split: str = "train", root: str | None = None, image: str | None = None,
          caption: str | None = None, label: str | None = None) -> Arrow:
  """The source of a folder that `datasets` has saved, of .parquet or .arrow files, or of folders of
  these.

  Args:
    path: folders, files, or patterns for them.
    split: of a folder that holds several: that of `save_to_disk`, or that which file names begin
      with, as in "train-00000-of-00008.parquet".
    root: where the pictures lie that rows name; default beside the file.
    image, caption, label: names of these columns; default those that have usual names.

  Raises:
    ValueError: no such files, split or column, or one cannot be read.
  """
  found = [file for one in ((path,) if isinstance(path, str) else path)
           for place in places.expand(one) for file in _files(place, split)]
  try:
    local = tuple(_as_arrow(file) for file in found)
    schema = _open(local[0]).schema
    for file, here in zip(found, local):
      if _open(here).schema.names != schema.names:
        raise ValueError(f"path: {file} has other columns than {found[0]}")
  except (pa.ArrowException, OSError) as error:
    raise ValueError(f"path: {path} cannot be read: {error}") from error
  columns = columns_lib.find(schema.names, image, caption, label)
  told = [(places.name_of(file), places.size(file)) for file in found]
  digest = hashlib.sha256(repr((told, str(schema))).encode()).hexdigest()
  first = next(iter((path,) if isinstance(path, str) else path))
  source = Arrow(local, tuple(map(places.name_of, found)), root or places.folder_of(found[0]), columns, _classes(schema, columns),
                 places.name_of(first), digest)
  if not source._batches or not len(source):
    raise ValueError(f"path: {path} has no records")
  return source


def _files(path, split):
  """The data files at a path, of one split."""
  if not places.is_folder(path):
    if places.ending(path) not in ENDINGS:
      raise ValueError(f"path: {path} is none of {', '.join(ENDINGS)}")
    return [path]
  names = places.names_in(path)
  if "dataset_dict.json" in names:  # several splits of `save_to_disk`
    splits = json.loads(places.read(places.join(path, "dataset_dict.json")))["splits"]
    if split not in splits:
      raise ValueError(f"split: {path} has no {split!r}, but {', '.join(splits)}")
    return _files(places.join(path, split), split)
  if "state.json" in names:  # one of them, whose files it names in their order
    state = json.loads(places.read(places.join(path, "state.json")))
    return [places.join(path, entry["filename"]) for entry in state["_data_files"]]
  files = [places.join(path, name) for name in names if name.endswith(ENDINGS)]
  if not files and "data" in names:  # as folders on the hub are laid out
    return _files(places.join(path, "data"), split)
  if not files:
    raise ValueError(f"path: {path} holds no *{', *'.join(ENDINGS)}")
  known = {places.name_of(file).partition("-")[0] for file in files if "-of-" in file}
  if known and split not in known:
    raise ValueError(f"split: {path} has no {split!r}, but {', '.join(sorted(known))}")
  return [file for file in files if not known or places.name_of(file).startswith(f"{split}-")]


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


def _classes(schema, columns):
  """Names of the label's values, which `datasets` keeps in the schema's metadata."""
  told = (schema.metadata or {}).get(b"huggingface")
  if not told or not columns.label:
    return None
  feature = json.loads(told).get("info", {}).get("features", {}).get(columns.label[0], {})
  return tuple(feature["names"]) if isinstance(feature, dict) and feature.get("names") else None
