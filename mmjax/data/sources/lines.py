"""Tables of text: .jsonl, .csv and .tsv, with one record a line, which name picture files.

A record is a dict of

  image       bytes of the file that the line names, for transforms.Decode
  caption     list of str
  label       int, or the place of a text among all texts of that column; left out where there is none
  ...         the other columns, as they are

A line that cannot be read is a bad record; it keeps its row. Where lines begin is found once and
kept in the cache folder.
"""

import array
import codecs
import collections
import contextlib
import csv
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from mmjax.data import columns as columns_lib
from mmjax.data import index_cache, places

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHERS = ";\t|,"  # that a .csv may have instead: a spreadsheet writes what its country uses
ENDINGS = (".jsonl", ".ndjson", *DELIMITERS)
_MOST_LINES = 1000  # of a record
_TRIED = 100  # lines that are looked at for the names of columns
_log = logging.getLogger(__name__)
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
    """Raises ValueError naming file and line if it cannot be read."""
    row = self.row(i)
    try:
      return self._record(row)
    except (ValueError, TypeError) as error:
      raise ValueError(f"{self.where(i)}: {error}") from error

  def _record(self, row):
    record = self.columns.renamed(row)
    if self.columns.caption:
      record["caption"] = columns_lib.captions(record.get("caption"))
    if self.columns.image:
      record["image"] = picture(record.get("image"), self.root)
    if self.columns.label:
      label = columns_lib.label(record.pop("label", None), self._numbers)
      record.pop(self.columns.label[0], None)  # which kept its name if it is None
      record |= {} if label is None else {"label": label}
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
  rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
  cells = next(rows)
  if any(rows):
    raise ValueError("a second row begins in it; write a cell that holds a line break in quotes")
  if len(cells) != len(heading):
    raise ValueError(f"{len(cells)} cells, but the heading has {len(heading)}")
  return dict(zip(heading, cells))


def walk(path: str, delimiter: str | None) -> dict[str, np.ndarray]:
  """Where the records of a table lie: {"begin", "end": bytes, "line": counted from 1}, int64 [N].

  A cell in quotes may have several lines. One whose quote is not closed within `_MOST_LINES` is a
  record of one line (that cannot be read), so that it does not swallow all that follow.

  Args:
    delimiter: what stands between cells; None if no record has several lines.
  """
  opens = delimiter and (delimiter.encode(), b'"')
  begin, end, number = array.array("q"), array.array("q"), array.array("q")
  position, place = 0, 1
  with places.open_file(path) as file:
    if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
      position = len(codecs.BOM_UTF8)
    else:
      file.seek(0)
    ahead = collections.deque()  # lines that were looked at and not yet taken
    for line in _taken(ahead, file):
      count, size = 1, len(line)
      if opens and b'"' in line:
        # A cell stays open only if the line's last quote opens it, or is the second of a doubled one.
        at = line.rindex(b'"')
        if not at or line[at - 1:at] in opens:
          count = _lines_of(itertools.chain((line,), tuple(ahead), _kept(ahead, file)), delimiter)
          size += sum(len(ahead.popleft()) for _ in range(count - 1))
      if count > 1 or line.strip():
        begin.append(position)
        end.append(position + size)
        number.append(place)
      position, place = position + size, place + count
  return {name: np.array(values, np.int64)
          for name, values in (("begin", begin), ("end", end), ("line", number))}


def _taken(ahead, file):
  while line := ahead.popleft() if ahead else file.readline():
    yield line


def _kept(ahead, file):
  while line := file.readline():
    ahead.append(line)
    yield line


def _lines_of(lines, delimiter):
  """How many of the lines are the first record; 1 if it does not end as a record does."""
  count = 0

  def texts():
    nonlocal count
    for line in itertools.islice(lines, _MOST_LINES):
      count += 1
      yield line.decode("latin-1")  # quotes and delimiters are ASCII
  try:
    next(csv.reader(texts(), delimiter=delimiter, strict=True))
  except csv.Error:
    return 1
  return count


def build(path: str | tuple, root: str | None = None, image: str | None = None,
          caption: str | None = None, label: str | None = None) -> Lines:
  """The source of one table, or of several with the same columns.

  Args:
    path: files, or patterns for them.
    root: where the pictures lie; default beside the table.
    image, caption, label: names of these columns, "" for none; default those that have usual names.

  Raises:
    ValueError: no such file, another ending, no records, no such column, or `label` is none.
  """
  files = [file for one in ((path,) if isinstance(path, str) else path) for file in places.expand(one)]
  indices, headings, delimiters, digest = [], [], [], hashlib.sha256()
  for file in files:
    if places.ending(file) not in ENDINGS:
      raise ValueError(f"path: {file} is none of {', '.join(ENDINGS)}")
    key = places.stamp(file)
    heading, delimiter = _heading(file)
    index = index_cache.arrays("lines", key, lambda: _checked(walk(file, delimiter), file))
    indices.append(str(index_cache.path_of("lines", key)))
    headings.append(heading)
    delimiters.append(delimiter)
    digest.update(index["sha256"].tobytes())
  # The heading is no record.
  indices = [_without_heading(folder) if heading else folder
             for folder, heading in zip(indices, headings)]
  source = Lines(tuple(files), tuple(indices), tuple(headings), tuple(delimiters), os.path.expanduser(root) if root else places.folder_of(files[0]),
                 columns_lib.Columns(), None, digest.hexdigest())
  if not len(source):
    raise ValueError(f"path: {path} has no records")
  columns = columns_lib.find(_names(source), image, caption, label)
  classes = None
  if columns.label:
    key = source.digest, source.headings, columns.label[0]
    columns, classes = with_classes(columns, key, lambda: _values(source, columns.label[0]), source.name, label)
  return dataclasses.replace(source, columns=columns, classes=classes)


def with_classes(columns: columns_lib.Columns, key: object, values: Callable[[], Iterable[Any]], name: str,
                 label: str | None) -> tuple[columns_lib.Columns, tuple[str, ...] | None]:
  """The columns, without the label if it can be none, and the names of its classes; None if they are numbers.

  What is found in all records is kept as indices are.

  Args:
    key: what the values follow from.
    name: of the data.
    label: the column if it was asked for.

  Raises:
    ValueError: it was, and cannot be a label.
  """
  def make():
    names, why = columns_lib.classes(values())
    return {"names": np.array(names, str), "why": np.array(why, str)}
  column = columns.label[0]
  found = index_cache.arrays("labels", key, make)
  why = str(found["why"])
  if why and label:
    raise ValueError(f"label: the column {column!r} {why}; give another, or ?label=None for none")
  if why:
    _log.warning("%s: the column %r is not read as label, for it %s", name, column, why)
    return dataclasses.replace(columns, label=()), None
  return columns, tuple(map(str, found["names"])) or None


def first(path: str, count: int) -> list[dict[str, Any]]:
  """The first records of a table that can be read, under its own names, without an index of it.

  Raises:
    ValueError: it names no columns.
  """
  heading, delimiter = _heading(path)
  found = []
  with places.open_file(path) as file:
    head = (line.removeprefix(codecs.BOM_UTF8) for line in itertools.islice(file, _MOST_LINES))
    if heading:
      rows = filter(None, csv.reader((line.decode("utf-8", "replace") for line in head), delimiter=delimiter))
      with contextlib.suppress(csv.Error):  # of a record that is bad
        for cells in itertools.islice(rows, count + 1):
          found.append(dict(zip(heading, cells)))
      found = found[1:]  # without the heading
    for line in () if heading else itertools.islice(head, count):
      try:
        found.append(_parse(line, (), None))
      except ValueError:
        continue
  return found


def _checked(index, file):
  """The index and the content's SHA-256."""
  content = hashlib.sha256()
  with places.open_file(file) as opened:
    while part := opened.read(2**22):
      content.update(part)
  return {**index, "sha256": np.frombuffer(content.digest(), np.uint8)}


def _heading(file):
  """Names of the columns, and what stands between them: what the ending says unless that makes one column only."""
  usual = DELIMITERS.get(places.ending(file))
  if usual is None:
    return (), None
  with places.open_file(file) as opened:
    first = (line.removeprefix(codecs.BOM_UTF8) if not i else line for i, line in enumerate(opened))
    head = list(itertools.islice(itertools.dropwhile(lambda line: not line.strip(), first), _MOST_LINES))
  if not head:
    raise ValueError(f"path: {file} is empty; its first line should name the columns")
  cells = {}
  try:
    for one in usual + _OTHERS:
      text = b"".join(head[:_lines_of(head, one)]).decode("utf-8")
      cells[one] = next(csv.reader(io.StringIO(text, newline=""), delimiter=one))
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


def _values(source, column):
  """Those of a column, of the lines that can be read."""
  for i in range(len(source)):
    try:
      yield source.row(i).get(column)
    except ValueError:
      continue
