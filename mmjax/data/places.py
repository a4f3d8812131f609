"""Files by path, on this machine or behind a URL that fsspec knows (gs://, s3://, https://, ...)."""

import concurrent.futures
import contextlib
import errno
import glob
import hashlib
import os
import pathlib
import re
import shutil
import urllib.parse

import braceexpand
import fsspec

EXTRAS = {"gs": "gcs", "gcs": "gcs", "s3": "s3", "s3a": "s3", "http": "http", "https": "http"}  # of setup.py
_MAGIC = re.compile(r"[*?\[]")
_ASKED = 32  # questions to a server at a time


def is_remote(path: str) -> bool:
  """Whether it is a URL."""
  return "://" in path


def is_web(path: str) -> bool:
  """Whether it is an address in which "?" begins a query, and is no pattern."""
  return path.startswith(("http://", "https://"))


@contextlib.contextmanager
def reaching(path: str):
  """Makes whatever goes wrong with a file one line, a ValueError, that names it and what to install, if that is it."""
  try:
    yield
  except ImportError as error:
    extra = EXTRAS.get(path.partition("://")[0])
    hint = f"pip install 'mmjax[{extra}]'" if extra else "install it"
    raise ValueError(f"{path}: needs a package ({error}); {hint}") from error
  except ValueError as error:
    if path in str(error):
      raise
    raise ValueError(f"{path}: {error}") from error
  except Exception as error:
    if not is_remote(path) and not isinstance(error, OSError):
      raise
    told = getattr(error, "strerror", None) or f"{type(error).__name__} {error}".rstrip()
    raise ValueError(f"{path} cannot be {'reached' if is_remote(path) else 'read'}: {told}") from error


@contextlib.contextmanager
def _remote(path):
  """(file system, path in it) of a URL, with errors as of `reaching`."""
  with reaching(path):
    yield fsspec.core.url_to_fs(path)


def expand(path: str) -> list[str]:
  """The files or folders that a path stands for, in order: braces `{000..099}`, `{a,b}`, then globs.

  Raises:
    ValueError: there is none, or a server cannot be asked.
  """
  each = list(braceexpand.braceexpand(path)) if "{" in path else [path]
  found = []
  for one, names in zip(each, _at_once(_matching, each)):
    if not names:
      raise ValueError(f"there is no {one}")
    found += names
  return found


def _at_once(ask, paths):
  """ask(path) of each; of several URLs many at a time, for a server takes its time."""
  if len(paths) < 2 or not is_remote(paths[0]):
    return map(ask, paths)
  with concurrent.futures.ThreadPoolExecutor(_ASKED) as pool:
    return list(pool.map(ask, paths))


def _matching(path):
  """What is there of one path or pattern."""
  if not is_remote(path):
    path = os.path.expanduser(path)
    # A folder may be called "what [sic]": a pattern is one only if nothing has that name.
    globbed = _MAGIC.search(path) and not os.path.exists(path)
    return sorted(glob.glob(path, recursive=True)) if globbed else [path] * os.path.exists(path)
  with _remote(path) as (files, inner):
    if is_web(path) and not _MAGIC.search(urllib.parse.urlsplit(path).path):
      return [path] * _exists(files, inner)
    return [files.unstrip_protocol(name) for name in (
        sorted(files.glob(inner)) if _MAGIC.search(inner) else [inner] * _exists(files, inner))]


def _exists(files, inner):
  """Whether it is there; fsspec's own `exists` says no of a server that does not answer, too."""
  try:
    files.info(inner)
    return True
  except FileNotFoundError:
    return False


def is_folder(path: str) -> bool:
  """Whether a folder lies there; behind a URL a prefix of names counts as one."""
  if not is_remote(path):
    return os.path.isdir(path)
  with _remote(path) as (files, inner):
    return files.isdir(inner)


def names_in(path: str) -> list[str]:
  """The names in a folder, sorted, without hidden ones."""
  if not is_remote(path):
    names = os.listdir(path)
  else:
    with _remote(path) as (files, inner):
      found = files.ls(inner, detail=False)
    names = [name.rstrip("/").rpartition("/")[2] for name in found]
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
  """The last part of a path, without a query."""
  return (path.partition("?")[0] if is_web(path) else path).rstrip("/").rpartition("/")[2]


def ending(path: str) -> str:
  """".jpg" of "a/b.JPG"; "" without a dot."""
  return pathlib.PurePosixPath(name_of(path)).suffix.lower()


def size(path: str) -> int:
  """Bytes."""
  if not is_remote(path):
    return os.stat(path).st_size
  with _remote(path) as (files, inner):
    told = files.size(inner)
  if told is None:
    raise ValueError(f"{path}: the server does not tell the file's size; download it")
  return int(told)


def stamp(path: str) -> str:
  """Changes when the file does, as far as a look at its entry tells."""
  if not is_remote(path):
    entry = os.stat(path)
    told = (os.path.abspath(path), entry.st_size, entry.st_mtime_ns)
  else:
    with _remote(path) as (files, inner):
      told = (path, files.size(inner), files.ukey(inner))
  return hashlib.sha256(repr(told).encode()).hexdigest()


def stamps(paths: list[str]) -> list[str]:
  """`stamp` of each."""
  return list(_at_once(stamp, paths))


def open_file(path: str):
  """The file to read, in bytes, with `seek`."""
  if not is_remote(path):
    return open(path, "rb")
  with _remote(path) as (files, inner):
    return files.open(inner, "rb")


def read(path: str, begin: int = 0, end: int | None = None) -> bytes:
  """The bytes [begin, end) of a file, or all of it; fewer if it is shorter."""
  if is_remote(path):
    with _remote(path) as (files, inner):
      return files.cat_file(inner, begin or None, end)
  with open(path, "rb") as file:
    if begin:
      file.seek(begin)
    return file.read() if end is None else file.read(end - begin)


def is_there(path: str) -> bool:
  """Whether something lies there."""
  if not is_remote(path):
    return os.path.exists(path)
  with _remote(path) as (files, inner):
    return _exists(files, inner)


def write(path: str, data: bytes) -> None:
  """Writes a file whole or not at all, and the folder for it."""
  if is_remote(path):
    with _remote(path) as (files, inner):
      files.pipe_file(inner, data)
    return
  with _in_place_of(path) as temporary:
    pathlib.Path(temporary).write_bytes(data)


def put(file: str, path: str) -> None:
  """Copies a file of this machine there, whole or not at all."""
  if is_remote(path):
    with _remote(path) as (files, inner):
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
