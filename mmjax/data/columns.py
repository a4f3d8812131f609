"""Which column of somebody's data is the image, the caption, the label: by their usual names."""

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

# In the order in which they are tried; compared in small letters.
USUAL = {
    "image": ("image", "img", "jpg", "jpeg", "png", "webp", "picture", "image_bytes", "image_path", "img_path",
              "filepath", "file_path", "file_name", "filename", "image_file", "file", "path", "images", "bmp",
              "gif", "tif", "tiff", "ppm", "url"),
    "caption": ("caption", "captions", "txt", "text", "texts", "sentence", "sentences", "sentences_raw", "raw",
                "description", "alt_text", "alt", "title"),
    "label": ("label", "cls", "class", "target", "labels", "category", "class_id", "fine_label"),
}


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
  return list(value) if isinstance(value, (list, tuple)) else [value]
