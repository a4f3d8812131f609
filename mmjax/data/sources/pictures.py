"""A folder of pictures, in folders or not, with a text file of the same name beside each, or without.

A record is a dict of

  id          str, the picture's path in the folder, without its ending
  image       bytes of the file, for transforms.Decode
  caption     list of str, the lines of NAME.txt that are not empty; [] if there is no such file.
              Left out if no picture has one.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
from typing import Any

from mmjax.data import places
from mmjax.data.sources.folder import ENDINGS

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pictures:
  """Record i is the i-th picture, in the order of paths.

  Attributes:
    path: the folder.
    files: of the pictures, in it.
    captioned: pictures have text files beside them.
    digest: SHA-256 over names and sizes of pictures and texts.
  """

  path: str
  files: tuple[str, ...]
  captioned: bool
  digest: str

  @property
  def name(self) -> str:
    return places.name_of(self.path)

  def __len__(self) -> int:
    return len(self.files)

  def where(self, i: int) -> str:
    """The file of a record, and its place there, for errors."""
    return self.files[i]

  def __getitem__(self, i: int) -> dict[str, Any]:
    file = pathlib.Path(self.path, self.files[i])
    record = {"id": os.path.splitext(self.files[i])[0], "image": file.read_bytes()}
    return {**record, "caption": _lines(file.with_suffix(".txt"))} if self.captioned else record


def _lines(file):
  try:
    text = file.read_bytes().decode("utf-8-sig")
  except FileNotFoundError:
    return []
  except UnicodeDecodeError as error:
    raise ValueError(f"{file} is not UTF-8: {error}") from error
  return [line.strip() for line in text.splitlines() if line.strip()]


def listing(path: str) -> dict[str, int]:
  """{path in the folder: bytes} of pictures and text files, sorted."""
  return dict(sorted(places.files_under(path, (*ENDINGS, ".txt")).items()))


def build(path: str) -> Pictures:
  """The source of a folder.

  Raises:
    ValueError: there is no such folder, or no picture in it.
  """
  path = os.path.expanduser(path)
  if not os.path.isdir(path):
    raise ValueError(f"path: there is no folder {path}")
  found = listing(path)
  files = tuple(name for name in found if not name.endswith(".txt"))
  if not files:
    raise ValueError(f"path: {path} holds no picture (*{', *'.join(ENDINGS)})")
  stems = {os.path.splitext(name)[0] for name in found if name.endswith(".txt")}
  without = [name for name in files if os.path.splitext(name)[0] not in stems]
  if stems and without:
    _log.warning("%s: %d of %d pictures have no text file beside them, the first is %s", path,
                 len(without), len(files), without[0])
  digest = hashlib.sha256(repr(list(found.items())).encode()).hexdigest()
  return Pictures(path, files, len(without) < len(files), digest)
