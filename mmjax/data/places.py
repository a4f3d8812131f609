"""Files by path, on this machine or behind a URL that fsspec knows (gs://, s3://, https://, ...)."""

import contextlib
import errno
import glob
import hashlib
import os
import pathlib
import re
import shutil

import braceexpand
import fsspec

_MAGIC = re.compile(r"[*?\[]")


def is_remote(path: str) -> bool:
  """Whether it is a URL."""
  return "://" in path


def expand(path: str) -> list[str]:
  """The files or folders that a path stands for, in order: braces `{000..099}`, `{a,b}`, then globs.

  Raises:
    ValueError: there is none.
  """
  found = []
  for one in braceexpand.braceexpand(path) if "{" in path else [path]:
    if not is_remote(one):
      one = os.path.expanduser(one)
      # A folder may be called "what [sic]": a pattern is one only if nothing has that name.
      globbed = _MAGIC.search(one) and not os.path.exists(one)
      names = sorted(glob.glob(one, recursive=True)) if globbed else [one] * os.path.exists(one)
    else:
      files, inner = fsspec.core.url_to_fs(one)
      names = [files.unstrip_protocol(name) for name in (
          sorted(files.glob(inner)) if _MAGIC.search(inner) else [inner] * files.exists(inner))]
    if not names:
      raise ValueError(f"there is no {one}")
    found += names
  return found


def is_folder(path: str) -> bool:
  """Whether a folder lies there; behind a URL a prefix of names counts as one."""
  if not is_remote(path):
    return os.path.isdir(path)
  files, inner = fsspec.core.url_to_fs(path)
  return files.isdir(inner)


def names_in(path: str) -> list[str]:
  """The names in a folder, sorted, without hidden ones."""
  if not is_remote(path):
    names = os.listdir(path)
  else:
    files, inner = fsspec.core.url_to_fs(path)
    names = [name.rstrip("/").rpartition("/")[2] for name in files.ls(inner, detail=False)]
  return sorted(name for name in names if not name.startswith("."))


def files_under(folder: str, endings: tuple[str, ...]) -> dict[str, int]:
  """{path in the folder: bytes} of the files at any depth whose names end so, in the order of folders and names.

  Links to folders are followed, hidden files and folders passed over. A link to nothing has -1 bytes: it is
  for the reader to find it broken.
  """
  found = {}

  def visit(path, inside, above):
    here = os.path.realpath(path)
    if here in above:  # a link to a folder that it lies in
      return
    with os.scandir(path) as entries:
      for entry in sorted(entries, key=lambda one: one.name):
        if entry.name.startswith("."):
          continue
        size = -1
        try:
          if entry.is_dir():
            visit(entry.path, f"{inside}{entry.name}/", (*above, here))
            continue
          size = entry.stat().st_size
        except OSError as error:
          if error.errno not in (errno.ENOENT, errno.ELOOP):  # a link to nothing, or to itself
            raise
        if entry.name.lower().endswith(endings):
          found[inside + entry.name] = size
  visit(folder, "", ())
  return found


def join(folder: str, name: str) -> str:
  """The path of a name in a folder."""
  return f"{folder.rstrip('/')}/{name}" if is_remote(folder) else os.path.join(folder, name)


def folder_of(path: str) -> str:
  """The folder in which a file lies, absolute on this machine."""
  return path.rpartition("/")[0] if is_remote(path) else os.path.dirname(os.path.abspath(path))


def name_of(path: str) -> str:
  """The last part of a path."""
  return path.rstrip("/").rpartition("/")[2]


def ending(path: str) -> str:
  """".jpg" of "a/b.JPG"; "" without a dot."""
  return pathlib.PurePosixPath(name_of(path)).suffix.lower()


def size(path: str) -> int:
  """Bytes."""
  if not is_remote(path):
    return os.stat(path).st_size
  files, inner = fsspec.core.url_to_fs(path)
  return int(files.size(inner))


def stamp(path: str) -> str:
  """Changes when the file does, as far as a look at its entry tells."""
  if not is_remote(path):
    entry = os.stat(path)
    told = (os.path.abspath(path), entry.st_size, entry.st_mtime_ns)
  else:
    files, inner = fsspec.core.url_to_fs(path)
    told = (path, files.size(inner), files.ukey(inner))
  return hashlib.sha256(repr(told).encode()).hexdigest()


def open_file(path: str):
  """The file to read, in bytes, with `seek`."""
  return fsspec.open(path, "rb").open() if is_remote(path) else open(path, "rb")


def read(path: str, begin: int = 0, end: int | None = None) -> bytes:
  """The bytes [begin, end) of a file, or all of it; fewer if it is shorter."""
  if is_remote(path):
    files, inner = fsspec.core.url_to_fs(path)
    return files.cat_file(inner, begin or None, end)
  with open(path, "rb") as file:
    if begin:
      file.seek(begin)
    return file.read() if end is None else file.read(end - begin)


def is_there(path: str) -> bool:
  """Whether something lies there."""
  if not is_remote(path):
    return os.path.exists(path)
  files, inner = fsspec.core.url_to_fs(path)
  return files.exists(inner)


def write(path: str, data: bytes) -> None:
  """Writes a file whole or not at all, and the folder for it."""
  if is_remote(path):
    files, inner = fsspec.core.url_to_fs(path)
    files.pipe_file(inner, data)
    return
  with _in_place_of(path) as temporary:
    pathlib.Path(temporary).write_bytes(data)


def put(file: str, path: str) -> None:
  """Copies a file of this machine there, whole or not at all."""
  if is_remote(path):
    files, inner = fsspec.core.url_to_fs(path)
    files.put_file(file, inner)
    return
  with _in_place_of(path) as temporary:
    shutil.copyfile(file, temporary)


@contextlib.contextmanager
def _in_place_of(path):
  """A name beside `path` to write to, which takes its place at the end."""
  folder, name = os.path.split(os.path.abspath(path))
  os.makedirs(folder, exist_ok=True)
  temporary = os.path.join(folder, f".{name}.{os.getpid()}")
  yield temporary
  os.replace(temporary, path)
