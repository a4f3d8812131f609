"""What a source holds, counted: fields, pictures, captions, broken records, duplicates."""

import collections
import dataclasses
import unicodedata
from typing import Any

import numpy as np

from mmjax.data import columns, hashes, image_transforms, records
from mmjax.data.build import pool

BLOCK = 200  # records of a task
SHOWN = 20  # broken records and duplicates that are named
_decode = image_transforms.Decode()
_NUMBERS = ("width", "height", "bytes", "captions", "characters", "words")


@dataclasses.dataclass
class Survey:
  """Of the records that were looked at, in their order.

  Attributes:
    looked_at, total: numbers of records.
    fields: {name: {kind of value: number of records}}.
    forms: {"JPEG RGB": number of pictures}.
    numbers: {name: values}, for their distributions: `width`, `height`, `bytes` of pictures, `captions`
      of a record, `characters` and `words` of a caption.
    texts: {caption: how often}, of the most frequent.
    empty, control: records without a caption; captions with control characters.
    labels: {label: number of records}.
    broken: [(record, error)].
    repeated: {"file" | "picture" | "id": [(record, the first that is equal)]}; "picture": looks alike.
  """

  total: int
  looked_at: int = 0
  fields: dict = dataclasses.field(default_factory=dict)
  forms: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  numbers: dict = dataclasses.field(default_factory=lambda: {name: [] for name in _NUMBERS})
  texts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  empty: int = 0
  control: int = 0
  labels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
  broken: list = dataclasses.field(default_factory=list)
  repeated: dict = dataclasses.field(default_factory=dict)

  def merge(self, other: "Survey") -> None:
    """Adds what was seen of later records."""
    self.looked_at += other.looked_at
    for name, kinds in other.fields.items():
      self.fields.setdefault(name, collections.Counter()).update(kinds)
    for name in ("forms", "texts", "labels"):
      getattr(self, name).update(getattr(other, name))
    for name, values in other.numbers.items():
      self.numbers[name] += values
    self.empty, self.control = self.empty + other.empty, self.control + other.control
    self.broken += other.broken


def survey(source: Any, most: int | None = None, distance: int = 4, processes: int = 0) -> Survey:
  """Reads and decodes records, all of them or `most`, evenly spread.

  Args:
    distance: bits in which the perceptual hashes of pictures that look alike may differ.
    processes: see `pool.run`.
  """
  total = len(source)
  looked_at = np.unique(np.linspace(0, total - 1, min(total, most or total)).astype(np.int64))
  blocks = [looked_at[i:i + BLOCK] for i in range(0, len(looked_at), BLOCK)]
  progress = pool.Progress("inspect", len(looked_at))
  parts = {}
  for part, marks in pool.run(_look, blocks, (source,), processes):
    parts[int(marks["record"][0])] = part, marks
    progress.add(part.looked_at)
  progress.end()
  found, marks = Survey(total), []
  for first in sorted(parts):
    found.merge(parts[first][0])
    marks.append(parts[first][1])
  found.repeated = _repeated({name: np.concatenate([one[name] for one in marks]) for name in marks[0]}, distance)
  return found


def _repeated(marks, distance):
  """{kind: [(record, the first that is equal)]}; a mark of 0 is of a record without one."""
  result = {}
  for kind, bits in (("file", 0), ("picture", distance), ("id", 0)):
    there = np.flatnonzero(marks[kind])
    first = hashes.first_of_equals(marks[kind][there], bits)
    again = np.flatnonzero(first != np.arange(len(there)))
    result[kind] = [(int(marks["record"][there[i]]), int(marks["record"][there[first[i]]])) for i in again]
  return result


def _look(source, looked_at):
  """A survey of some records, and their hashes: {"record", "file", "picture", "id"}."""
  found = Survey(0, looked_at=len(looked_at))
  marks = {name: np.zeros(len(looked_at), np.uint64) for name in ("file", "picture", "id")}
  for place, index in enumerate(map(int, looked_at)):
    where = ""
    try:
      record = source[index]
      where = records.where(source, index)  # what goes wrong before is told with its file
      _fields(found, record)
      if "image" in record:
        marks["file"][place], marks["picture"][place] = _picture(found, record["image"])
      _captions(found, record)
    except Exception as error:  # whatever a reader or a decoder raises
      found.broken.append((index, f"{where}{where and ': '}{type(error).__name__}: {error}"[:300]))
      continue
    if isinstance(record.get("id"), (str, bytes)):
      marks["id"][place] = hashes.exact(str(record["id"]).encode("utf-8", "surrogatepass"))
  return found, {"record": looked_at, **marks}


def _fields(found, record):
  for name, value in record.items():
    kind = records.describe(value)
    if isinstance(value, (list, tuple)):
      kind = f"list of {records.describe(value[0])}" if value else "empty list"
    found.fields.setdefault(name, collections.Counter())[kind] += 1
  if isinstance(record.get("label"), (int, np.integer)):
    found.labels[int(record["label"])] += 1


def _picture(found, value):
  """Counts a picture; its exact and perceptual hash."""
  image = _decode({"image": value}, None)["image"]
  if isinstance(value, bytes):
    with records.open_picture(value) as opened:
      moving = " animated" if getattr(opened, "is_animated", False) else ""
      found.forms[f"{opened.format} {opened.mode}{moving}"] += 1
    found.numbers["bytes"].append(len(value))
  else:
    found.forms["pixels"] += 1
  found.numbers["height"].append(image.shape[0])
  found.numbers["width"].append(image.shape[1])
  return hashes.exact(value if isinstance(value, bytes) else image.tobytes()), hashes.perceptual(image)


def _captions(found, record):
  if "caption" not in record:
    return
  texts = [text for text in columns.captions(record["caption"])]
  texts = [text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text) for text in texts]
  found.numbers["captions"].append(len(texts))
  found.empty += not any(text.strip() for text in texts)
  found.texts.update(texts)
  for text in texts:
    found.numbers["characters"].append(len(text))
    found.numbers["words"].append(len(text.split()))
    found.control += any(unicodedata.category(one) in ("Cc", "Cs") and one not in "\t\n\r" for one in text)


def table(found: Survey, names: tuple[str, ...] | None = None) -> list[tuple[str, str]]:
  """(what, how much) in lines, for the console and the page.

  Args:
    names: of the labels' values.
  """
  count = lambda number: f"{number:,} ({100 * number / max(1, found.looked_at):.3g}%)"
  lines = [("records", f"{found.total:,}" + ("" if found.looked_at == found.total
                                             else f", {found.looked_at:,} of them looked at"))]
  for name, kinds in found.fields.items():
    lines.append((f"field {name}", "; ".join(
        f"{kind}" + ("" if number == found.looked_at else f": {number:,}") for kind, number in kinds.most_common(4))))
  lines += [("pictures", ", ".join(f"{form}: {number:,}" for form, number in found.forms.most_common(8)))]
  for name, unit in (("width", "pixels"), ("height", "pixels"), ("bytes", "a file"), ("captions", "a record"),
                     ("words", "a caption"), ("characters", "a caption")):
    if found.numbers[name]:
      low, quarter, middle, three, high = np.percentile(found.numbers[name], (0, 25, 50, 75, 100))
      lines.append((name, f"{low:,.0f} to {high:,.0f}, half of them {quarter:,.0f} to {three:,.0f}, "
                          f"median {middle:,.0f} {unit}"))
  if found.numbers["captions"]:
    lines += [("without caption", count(found.empty)), ("captions with control characters", f"{found.control:,}"),
              ("most frequent captions", "; ".join(
                  f"{text[:60]!r} {number:,} times" for text, number in found.texts.most_common(3)))]
  if found.labels:
    lines.append(("labels", f"{len(found.labels)} values; " + ", ".join(
        f"{names[label] if names and label < len(names) else label}: {number:,}"
        for label, number in found.labels.most_common(8)) + (", ..." if len(found.labels) > 8 else "")))
  lines.append(("broken", count(len(found.broken))))
  for kind, what in (("file", "files that are in it before"), ("picture", "pictures that look like one before"),
                     ("id", "names that are in it before")):
    lines.append((what, count(len(found.repeated[kind])) + "".join(
        f"; record {again} as {first}" for again, first in found.repeated[kind][:3])))
  return [(what, value) for what, value in lines if value]
