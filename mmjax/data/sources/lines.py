"""Tables of text: .jsonl, .csv and .tsv, with one record a line, which name picture files.

A record is a dict of

  image       bytes of the file that the line names, for transforms.Decode
  caption     list of str
  label       int, or the place of a text among all texts of that column
  ...         the other columns, as they are

A line that cannot be read is a bad record; it keeps its row. Where lines begin is found once and
kept in the cache folder.
"""

import array
import csv
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
from typing import Any

import numpy as np

from mmjax.data import columns as columns_lib
from mmjax.data import index_cache, places

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHERS = ";\t|,"  # that a .csv may have instead: a spreadsheet writes what its country uses
ENDINGS = (".jsonl", ".ndjson", *DELIMITERS)
_MOST_CLASSES = 100_000
_MOST_LINES = 1000  # of a record
_PLAIN, _ODD, _BLANK = range(3)  # kinds of lines: see `walk`
_TRIED = 100  # lines that are looked at for the names of columns
csv.field_size_limit(2**27)  # a cell may hold a long text


@dataclasses.dataclass(frozen=True)
class Lines:
  """Record i is the i-th line of all files that is not empty, without the heading.

  Attributes:
    files: of the tables.
    indices: the folder of each one's index.
    headings: names of the columns of each .csv or .tsv; () for .jsonl.
    delimiters: what stands between the cells of each; None for .jsonl.
    root: where the pictures lie that the lines name.
    columns: which of them are image, caption and label.
    classes: texts of the label's column, sorted; None if it holds numbers, or there is none.
    digest: SHA-256 over the tables' content.
  """

  files: tuple[str, ...]
  indices: tuple[str, ...]
  headings: tuple[tuple[str, ...], ...]
  delimiters: tuple[str | None, ...]
  root: str
  columns: columns_lib.Columns
  classes: tuple[str, ...] | None
  digest: str

  @property
  def name(self) -> str:
    return places.name_of(self.files[0])

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    return np.cumsum([len(_index(folder)["begin"]) for folder in self.indices])

  @functools.cached_property
  def _numbers(self) -> dict[str, int]:
    return {name: i for i, name in enumerate(self.classes or ())}

  def __reduce__(self):
    return Lines, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

  def class_names(self, key: str) -> tuple[str, ...] | None:
    """The names of the values of a record's `key`, or None if it is no label."""
    return self.classes if key == "label" else None

  def __len__(self) -> int:
    return int(self._ends[-1])

  def where(self, i: int) -> str:
    """The file of a record and its line there, for errors."""
    number, own = index_cache.place(self._ends, i)
    return f"{places.name_of(self.files[number])}, line {int(_index(self.indices[number])['line'][own])}"

  def row(self, i: int) -> dict[str, Any]:
    """The line's columns under their own names.

    Raises:
      ValueError: the line cannot be read; names the file and the line, counted from 1.
    """
    number, own = index_cache.place(self._ends, i)
    index = _index(self.indices[number])
    file = self.files[number]
    data = places.read(file, int(index["begin"][own]), int(index["end"][own]))
    try:
      return _parse(data, self.headings[number], self.delimiters[number])
    except (ValueError, csv.Error) as error:
      raise ValueError(f"{places.name_of(file)}, line {int(index['line'][own])}: {error}") from error

  def __getitem__(self, i: int) -> dict[str, Any]:
    record = self.columns.renamed(self.row(i))
    if self.columns.caption:
      record["caption"] = columns_lib.captions(record.get("caption"))
    if self.columns.image:
      record["image"] = picture(record.get("image"), self.root)
    if record.get("label") is not None:
      label = record["label"]
      record["label"] = self._numbers[str(label)] if self.classes else int(label)
    return record


def picture(value: Any, root: str) -> bytes:
  """The bytes of the picture that a table's cell names.

  Raises:
    ValueError: the cell is empty, no text, a URL, or names no file.
  """
  if value is None or value == "":
    raise ValueError("no picture is named")
  if isinstance(value, (list, tuple)) and len(value) == 1:
    value = value[0]
  if not isinstance(value, str):
    raise ValueError(f"expected the path of a picture, found {type(value).__name__}")
  if value.startswith(("http://", "https://")):
    raise ValueError(f"{value} is a URL; download the pictures first (img2dataset makes tar shards)")
  path = value if places.is_remote(value) else places.join(root, value)
  try:
    return places.read(path)
  except OSError as error:
    raise ValueError(f"cannot read {path}: {error.strerror or error}") from error


@functools.lru_cache(maxsize=4096)
def _index(folder):
  return index_cache.load(pathlib.Path(folder))


def _parse(data: bytes, heading: tuple[str, ...], delimiter: str | None) -> dict[str, Any]:
  text = data.decode("utf-8")
  if delimiter is None:
    row = json.loads(text)
    if not isinstance(row, dict):
      raise ValueError(f"expected an object {{...}}, found {type(row).__name__}")
    return row
  cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
  if len(cells) != len(heading):
    raise ValueError(f"{len(cells)} cells, but the heading has {len(heading)}")
  return dict(zip(heading, cells))


def walk(path: str) -> dict[str, np.ndarray]:
  """Where the records of a table lie: {"begin", "end": bytes, "line": counted from 1}, int64 [N].

  A cell in quotes may have several lines. One whose quote is not closed within `_MOST_LINES` is a
  record of one line (that cannot be read), so that it does not swallow all that follow.
  """
  quoted = places.ending(path) in DELIMITERS
  ends, kinds, position = array.array("q"), bytearray(), 0
  with places.open_file(path) as file:
    for line in file:
      position += len(line)
      ends.append(position)
      # Quotes are doubled inside of quotes, so that an odd number opens or closes a cell of several lines.
      kinds.append(_BLANK if not line.strip() else _ODD if quoted and line.count(b'"') % 2 else _PLAIN)
  begin, end, number = array.array("q"), array.array("q"), array.array("q")
  i = 0
  while i < len(kinds):
    last = i
    if kinds[i] == _ODD:
      closing = kinds.find(_ODD, i + 1, i + _MOST_LINES)
      last = i if closing < 0 else closing
    if kinds[i] != _BLANK:
      begin.append(ends[i - 1] if i else 0)
      end.append(ends[last])
      number.append(i + 1)
    i = last + 1
  return {name: np.array(values, np.int64)
          for name, values in (("begin", begin), ("end", end), ("line", number))}


def build(path: str | tuple, root: str | None = None, image: str | None = None,
          caption: str | None = None, label: str | None = None) -> Lines:
  """The source of one table, or of several with the same columns.

  Args:
    path: files, or patterns for them.
    root: where the pictures lie; default beside the table.
    image, caption, label: names of these columns; default those that have usual names.

  Raises:
    ValueError: no such file, another ending, no records, no such column, or too many classes.
  """
  files = [file for one in ((path,) if isinstance(path, str) else path) for file in places.expand(one)]
  indices, headings, delimiters, digest = [], [], [], hashlib.sha256()
  for file in files:
    if places.ending(file) not in ENDINGS:
      raise ValueError(f"path: {file} is none of {', '.join(ENDINGS)}")
    key = places.stamp(file)
    index = index_cache.arrays("lines", key, lambda: _checked(walk(file), file))
    indices.append(str(index_cache.path_of("lines", key)))
    heading, delimiter = _heading(file, index)
    headings.append(heading)
    delimiters.append(delimiter)
    digest.update(index["sha256"].tobytes())
  # The heading is no record.
  indices = [_without_heading(folder) if heading else folder
             for folder, heading in zip(indices, headings)]
  source = Lines(tuple(files), tuple(indices), tuple(headings), tuple(delimiters), root or places.folder_of(files[0]),
                 columns_lib.Columns(), None, digest.hexdigest())
  if not len(source):
    raise ValueError(f"path: {path} has no records")
  columns = columns_lib.find(_names(source), image, caption, label)
  classes = None
  if columns.label:  # found in all lines, so it is kept as the indices are
    key = source.digest, source.headings, columns.label[0]
    names = index_cache.arrays("classes", key, lambda: {"names": np.array(_classes(source, columns.label[0]), str)})
    classes = tuple(map(str, names["names"])) or None
  return dataclasses.replace(source, columns=columns, classes=classes)


def _checked(index, file):
  """The index and the content's SHA-256."""
  content = hashlib.sha256()
  with places.open_file(file) as opened:
    while part := opened.read(2**22):
      content.update(part)
  return {**index, "sha256": np.frombuffer(content.digest(), np.uint8)}


def _heading(file, index):
  """Names of the columns, and what stands between them: what the ending says unless that makes one column only."""
  usual = DELIMITERS.get(places.ending(file))
  if usual is None:
    return (), None
  if not len(index["begin"]):
    raise ValueError(f"path: {file} is empty; its first line should name the columns")
  line = places.read(file, int(index["begin"][0]), int(index["end"][0]))
  try:
    text = line.decode("utf-8-sig")
    cells = {one: next(csv.reader(io.StringIO(text, newline=""), delimiter=one)) for one in usual + _OTHERS}
  except UnicodeDecodeError as error:
    raise ValueError(f"path: {file} is not UTF-8 ({error}); save it as UTF-8") from error
  except csv.Error as error:
    raise ValueError(f"path: the heading of {file} cannot be read: {error}") from error
  delimiter = usual if len(cells[usual]) > 1 else max(cells, key=lambda one: len(cells[one]))
  return tuple(cell.strip() for cell in cells[delimiter]), delimiter


def _without_heading(folder):
  def make():
    return {name: array[1:] for name, array in index_cache.load(pathlib.Path(folder)).items()
            if name != "sha256"}
  index_cache.arrays("lines", folder, make)
  return str(index_cache.path_of("lines", folder))


def _names(source):
  """Columns of the first lines that can be read, in their order."""
  names = {name: None for heading in source.headings for name in heading}
  for i in range(min(_TRIED, len(source)) if not names else 0):
    try:
      names |= dict.fromkeys(source.row(i))
    except ValueError:
      continue
  return list(names)


def _classes(source, column):
  """The texts of a column, sorted; () if all are whole numbers."""
  found, numbers = set(), True
  for i in range(len(source)):
    try:
      value = source.row(i).get(column)
    except ValueError:
      continue
    if value is None or value == "":
      continue
    found.add(str(value))
    numbers = numbers and str(value).removeprefix("-").isdigit()
    if not numbers and len(found) > _MOST_CLASSES:
      raise ValueError(f"label: the column {column!r} has more than {_MOST_CLASSES:,} values; give another")
  return () if numbers else tuple(sorted(found))
