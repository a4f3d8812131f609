"""A folder of pictures, in folders or not, with a text file of the same name beside each, or without.

A record is a dict of

  id          str, the picture's path in the folder, without its ending
  image       bytes of the file, for transforms.Decode
  caption     list of str, the lines of NAME.txt that are not empty; [] if there is no such file.
              Left out if no picture has one.
"""

import dataclasses
import functools
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
    texts: the ending of the text file beside each, "" if there is none.
    digest: SHA-256 over names and sizes of pictures and texts.
  """

  path: str
  files: tuple[str, ...]
  texts: tuple[str, ...]
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
    stem = os.path.splitext(self.files[i])[0]
    record = {"id": stem, "image": pathlib.Path(self.path, self.files[i]).read_bytes()}
    if self._captioned:
      record["caption"] = _lines(pathlib.Path(self.path, stem + self.texts[i])) if self.texts[i] else []
    return record

  @functools.cached_property
  def _captioned(self):
    return any(self.texts)


def _lines(file):
  try:
    text = file.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise ValueError(f"{file} is not UTF-8: {error}") from error
  return [line.strip() for line in text.splitlines() if line.strip()]


def listing(path: str) -> dict[str, int]:
  """{path in the folder: bytes} of pictures and text files, sorted."""
  return dict(sorted(places.files_under(path, (*ENDINGS, ".txt")).items()))


def is_text(name: str) -> bool:
  """Whether it is a text file's, not a picture's."""
  return name.lower().endswith(".txt")


def build(path: str) -> Pictures:
  """The source of a folder.

  Raises:
    ValueError: there is no such folder, or no picture in it.
  """
  path = os.path.expanduser(path)
  if not os.path.isdir(path):
    raise ValueError(f"path: there is no folder {path}")
  found = listing(path)
  files = tuple(name for name in found if not is_text(name))
  if not files:
    raise ValueError(f"path: {path} holds no picture (*{', *'.join(ENDINGS)})")
  endings = dict(os.path.splitext(name) for name in found if is_text(name))
  texts = tuple(endings.get(os.path.splitext(name)[0], "") for name in files)
  without = [name for name, text in zip(files, texts) if not text]
  if endings and without:
    _log.warning("%s: %d of %d pictures have no text file beside them, the first is %s", path,
                 len(without), len(files), without[0])
  digest = hashlib.sha256(repr(list(found.items())).encode()).hexdigest()
  return Pictures(path, files, texts, digest)
