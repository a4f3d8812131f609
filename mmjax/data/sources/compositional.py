"""Tests of composition, as released: a picture, the caption that is right, and one that is nearly so.

  SugarCrepe (Hsieh et al. 2023, arXiv:2306.14610): add_att.json, ..., swap_obj.json, or their folder
  Winoground (Thrush et al. 2022, arXiv:2204.03162): examples.jsonl; each example gives two records

A record is a dict of

  image       bytes of the file, for transforms.Decode
  caption     [the right one, the wrong one]
  category    int: SugarCrepe's file, in the order of names; Winoground's tag
  group       int: two records of an example of Winoground have the same
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

from mmjax.data import places
from mmjax.data.sources import lines

ENDINGS = ("", ".png", ".jpg", ".jpeg")  # Winoground names pictures without one


@dataclasses.dataclass(frozen=True)
class Compositional:
  """Record i is the i-th of `items`, in the released order: (picture, right, wrong, category, group)."""

  root: str
  items: tuple[tuple, ...]
  categories: tuple[str, ...]
  name: str
  digest: str

  def class_names(self, key: str) -> tuple[str, ...] | None:
    """The names of the values of a record's `key`, or None if it is no label."""
    return self.categories if key == "category" else None

  def __len__(self) -> int:
    return len(self.items)

  def __getitem__(self, i: int) -> dict[str, Any]:
    picture, right, wrong, category, group = self.items[i]
    return {"image": self._picture(picture), "caption": [right, wrong], "category": category, "group": group}

  def _picture(self, name):
    errors = []
    for ending in ENDINGS:
      try:
        return lines.picture(name + ending, self.root)
      except ValueError as error:
        errors.append(error)
    raise errors[0]


def build(path: str, root: str | None = None) -> Compositional:
  """The source.

  Args:
    path: a .json of SugarCrepe or a folder of them, or Winoground's examples.jsonl.
    root: where the pictures lie (SugarCrepe's are COCO's val2017); default beside the file, of
      Winoground in `images` there.

  Raises:
    ValueError: no such file, or another form.
  """
  path, root = os.path.expanduser(path), os.path.expanduser(root) if root else None
  if places.is_folder(path):
    files = [places.join(path, name) for name in places.names_in(path) if name.endswith(".json")]
    root = root or path
  else:
    files = [path]
  if not files:
    raise ValueError(f"path: {path} holds no *.json")
  try:
    if files[0].endswith(".jsonl"):
      root = root or places.join(places.folder_of(path), "images")
      items, categories = _winoground(path)
    else:
      items, categories = _sugarcrepe(files)
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    raise ValueError(f"path: {path} is neither SugarCrepe's nor Winoground's: {type(error).__name__}: {error}"
                     ) from error
  if not items:
    raise ValueError(f"path: {path} has no records")
  digest = hashlib.sha256(json.dumps([items, categories]).encode()).hexdigest()
  return Compositional(root or places.folder_of(path), tuple(items), tuple(categories), places.name_of(path), digest)


def _sugarcrepe(files):
  items = []
  for category, file in enumerate(files):
    told = dict(json.loads(places.read(file)))
    for key in sorted(told, key=int):
      one = told[key]
      items.append((one["filename"], one["caption"], one["negative_caption"], category, len(items)))
  return items, [places.name_of(file).removesuffix(".json") for file in files]


def _winoground(file):
  examples = [json.loads(line) for line in places.read(file).decode("utf-8").splitlines() if line.strip()]
  tags = sorted({one.get("collapsed_tag") or one["tag"] for one in examples})
  items = []
  for group, one in enumerate(examples):
    category = tags.index(one.get("collapsed_tag") or one["tag"])
    for own, other in ((0, 1), (1, 0)):
      items.append((one[f"image_{own}"], one[f"caption_{own}"], one[f"caption_{other}"], category, group))
  return items, tags
