"""Pictures in folders named by their class: ROOT/<class name>/*.png, and in folders within these.

A record is a dict of

  image    bytes of the file, for transforms.Decode
  label    int, the place of the folder's name among the sorted names
"""

import bisect
import dataclasses
import hashlib
import json
import logging
import os
import pathlib

from mmjax.data import places

ENDINGS = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Folder:
  """Record i is the i-th picture, in the order of class and file names.

  Attributes:
    path: the folder of class folders.
    classes: the folders' names, sorted; label i is classes[i].
    names: what the classes are called, if not as their folders.
    files: "class name/file name" of every picture.
    digest: SHA-256 over the names of the classes, and names and sizes of the pictures.
  """

  path: str
  classes: tuple[str, ...]
  files: tuple[str, ...]
  digest: str
  names: tuple[str, ...] | None = None

  @property
  def name(self):
    return pathlib.Path(self.path).name

  def class_names(self, key):
    """The names of the values of a record's `key`, or None if it is no label."""
    return (self.names or self.classes) if key == "label" else None

  def __len__(self):
    return len(self.files)

  def where(self, i):
    """The file of a record, for errors."""
    return self.files[i]

  def __getitem__(self, i):
    file = self.files[i]
    label = bisect.bisect_left(self.classes, file.split("/")[0])
    return {"image": pathlib.Path(self.path, file).read_bytes(), "label": label}


def build(path: str, names: str | None = None):
  """The source of a folder of class folders. What is hidden, or no picture, is passed over.

  Args:
    names: a file that tells what the classes are called, by their folders: JSON {"n01440764": "tench"},
      or lines such as "n01440764 tench, Tinca tinca" (ImageNet's LOC_synset_mapping.txt), of which the
      first name counts.

  Raises:
    ValueError: there is no such folder, no class folder or picture in it, or a class without a name.
  """
  if not path:
    raise ValueError("path: is empty; give a folder that holds a folder of pictures for each class")
  path = os.path.expanduser(path)
  if not os.path.isdir(path):
    raise ValueError(f"path: there is no folder {path}")
  classes = sorted(entry.name for entry in _visible(path) if entry.is_dir())
  if not classes:
    raise ValueError(f"path: {path} holds no folders; put the pictures of each class into "
                     f"{os.path.join(path, 'CLASS NAME')}")
  sizes = {name: size for name, size in places.files_under(path, ENDINGS).items() if "/" in name}
  for name in set(classes) - {file.split("/")[0] for file in sizes}:
    _log.warning("%s has no pictures (*%s)", os.path.join(path, name), ", *".join(ENDINGS))
  if not sizes:
    raise ValueError(f"path: none of the {len(classes)} folders in {path} holds a picture "
                     f"(*{', *'.join(ENDINGS)})")
  if min(file.count("/") for file in sizes) > 1:
    raise ValueError(f"path: the pictures in {path} lie two folders deep, so that its folders are no classes; "
                     f"give one of them, such as {os.path.join(path, classes[0])}")
  digest = hashlib.sha256(repr((classes, list(sizes.items()))).encode()).hexdigest()
  return Folder(path, tuple(classes), tuple(sizes), digest, _called(names, classes) if names else None)


def _called(file, classes):
  """The names of the classes, in their order."""
  try:
    text = pathlib.Path(file).expanduser().read_text(encoding="utf-8")
    called = json.loads(text) if file.endswith(".json") else {
        line.split()[0]: line.split(maxsplit=1)[1].split(",")[0].strip() for line in text.splitlines() if line.strip()}
    return tuple(called[name] for name in classes)
  except KeyError as error:
    raise ValueError(f"names: {file} has no name for the folder {error}") from error
  except (OSError, ValueError, IndexError) as error:
    raise ValueError(f"names: {file} cannot be read: {error}") from error


def _visible(path):
  with os.scandir(path) as entries:
    return [entry for entry in entries if not entry.name.startswith(".")]
