"""Which column of somebody's data is the image, the caption, the label: by their usual names."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

# In the order in which they are tried; compared in small letters.
USUAL = {
    "image": ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "image_bytes", "image_path", "img_path",
              "filepath", "file_path", "file_name", "filename", "image_file", "image_filename", "image_name",
              "img_name", "file", "path", "images", "image/encoded", "image.jpg", "image.jpeg", "image.png",
              "image.webp", "bmp", "gif", "tif", "tiff", "ppm", "url"),
    "caption": ("caption", "captions", "txt", "text", "texts", "sentence", "sentences", "sentences_raw", "raw",
                "description", "alt_text", "alt", "title", "image/caption", "caption.txt", "text.txt", "comment",
                "prompt"),
    "label": ("label", "cls", "class", "target", "labels", "category", "class_id", "fine_label", "label_id",
              "category_id", "class_name", "image/class/label"),
}
MOST_CLASSES = 100_000
_WHOLE = re.compile(r"[+-]?\d+(\.0*)?")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?|nan", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Columns:
  """Names of the columns that become `image`, `caption` and `label`, the first that a record has; none: ()."""

  image: tuple[str, ...] = ()
  caption: tuple[str, ...] = ()
  label: tuple[str, ...] = ()

  def renamed(self, record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with these columns under our names; the others keep theirs."""
    ours, used = {}, set()
    for key, names in (("image", self.image), ("caption", self.caption), ("label", self.label)):
      name = next((name for name in names if record.get(name) is not None), None)
      if name is not None:
        ours[key], used = record[name], used | {name}
    rest = {name: value for name, value in record.items() if name not in used and name not in ours}
    return {**rest, **ours}


def find(known: Iterable[str], image: str | None = None, caption: str | None = None,
         label: str | None = None, several: bool = False) -> Columns:
  """The columns among `known`: those that are given, else those that have usual names.

  Args:
    image, caption, label: names of columns, "" for none of them.
    several: all that have one, for records that do not all have the same; else the first of them.

  Raises:
    ValueError: one that is given is not there; names the nearest and all.
  """
  known = list(known)
  small = {}
  for name in known:
    small.setdefault(name.lower(), name)
  found = {}
  for ours, name in (("image", image), ("caption", caption), ("label", label)):
    if name == "":
      found[ours] = ()
      continue
    if name is not None and name not in known:
      near = difflib.get_close_matches(name, known, 1)
      hint = f"; did you mean {near[0]!r}?" if near else ""
      raise ValueError(f"{ours}: there is no column {name!r}{hint} (there are {', '.join(known)})")
    usual = tuple(small[one] for one in USUAL[ours] if one in small)
    found[ours] = (name,) if name is not None else usual if several else usual[:1]
  return Columns(**found)


def captions(value: Any) -> list:
  """A record's captions as a list, from one text, several, or none (None, "")."""
  if value is None or (isinstance(value, (str, bytes)) and not value.strip()):
    return []
  if isinstance(value, np.ndarray):  # as tfds has them, in bytes
    value = value.tolist()
    texts = value if isinstance(value, list) else [value]
    return [one.decode("utf-8") if isinstance(one, bytes) else one for one in texts]
  return list(value) if isinstance(value, (list, tuple)) else [value]


def classes(values: Iterable[Any]) -> tuple[tuple[str, ...], str]:
  """What the values of a label's column are.

  Returns:
    (their names, sorted, or () if all are whole numbers; why the column cannot be a label, or "").
  """
  found, whole, numbers = set(), True, True
  for value in values:
    if _is_none(value):
      continue
    if not isinstance(value, (str, int, float)):
      return (), f"holds {type(value).__name__}, neither numbers nor texts"
    text = str(value)
    if text in found:
      continue
    whole = whole and _WHOLE.fullmatch(text) is not None
    numbers = numbers and (whole or _NUMBER.fullmatch(text) is not None)
    if len(found) <= MOST_CLASSES:
      found.add(text)
    if not numbers and len(found) > MOST_CLASSES:
      return (), f"has more than {MOST_CLASSES:,} values"
  if numbers and not whole:
    return (), "holds numbers that are not whole"
  return () if whole else tuple(sorted(found)), ""


def label(value: Any, numbers: Mapping[str, int]) -> int | None:
  """A record's label as a number, or None if it has none (None, "", NaN).

  Args:
    numbers: {name of a class: its number}; {} if the column holds numbers.
  """
  if _is_none(value):
    return None
  return numbers[str(value)] if numbers else int(str(value).partition(".")[0])


def _is_none(value):
  return value is None or (isinstance(value, str) and not value) or (isinstance(value, float) and value != value)
