"""The manifest `mmjax.json` of a checkpoint: what is in it, and the SHA-256 of each of its files.

Orbax commits a checkpoint by one atomic rename (on object stores: by one last file). The manifest
is written just before, so a committed checkpoint always has one; what differs from it is damage.
"""

from concurrent import futures
import hashlib
import json

NAME = "mmjax.json"
FORMAT_VERSION = 1
# Orbax rewrites these after the manifest is made. Nothing of the state is in them.
NOT_LISTED = ("_CHECKPOINT_METADATA", "commit_success.txt", NAME)
CHUNK = 1 << 22  # bytes read at a time
READERS = 4  # files hashed at a time; an object store is slow per stream


class CheckpointError(Exception):
  """A checkpoint cannot be used; the message says which one, why, and what to do."""


class DamagedError(CheckpointError):
  """A committed checkpoint is not what was written; the message names the file."""


def write(directory, header):
  """Hashes every file under `directory` and writes the manifest.

  Args:
    directory: epath.Path of a checkpoint in which everything else has been written.
    header: JSON-able dict with `step`, `tensors`, `metrics`, `extra`.
  """
  files = [path for path in _files(directory) if path.name not in NOT_LISTED]
  with futures.ThreadPoolExecutor(READERS) as pool:
    digests = list(pool.map(_digest, files))
  names = [str(path.relative_to(directory)) for path in files]
  body = {"format_version": FORMAT_VERSION, **header, "files": dict(zip(names, digests))}
  text = json.dumps({"sha256": _body_digest(body), "manifest": body}, indent=1)
  (directory / NAME).write_text(text)


def read(directory):
  """The manifest of a checkpoint as a dict, its own digest checked.

  Raises:
    DamagedError: it is missing or not what was written.
    CheckpointError: a newer mmjax wrote it.
  """
  path = directory / NAME
  try:
    document = json.loads(path.read_text())
    body = document["manifest"]
    intact = document["sha256"] == _body_digest(body)
  except FileNotFoundError:
    raise DamagedError(f"{path} is missing") from None
  except (ValueError, KeyError, TypeError) as error:
    raise DamagedError(f"{path} is not a manifest ({error})") from None
  if not intact:
    raise DamagedError(f"{path} does not have the SHA-256 it was written with")
  if body["format_version"] != FORMAT_VERSION:
    raise CheckpointError(
      f"{directory} has format_version {body['format_version']}; this mmjax reads "
      f"{FORMAT_VERSION}. Use the version of mmjax that wrote it.")
  return body


def verify(directory, body):
  """Reads every file that the manifest lists and compares it with what was written.

  Raises:
    DamagedError: a file is missing, has another size or another SHA-256.
  """
  def check(item):
    name, (size, sha256) = item
    path = directory / name
    if not path.exists():
      return f"{path} is missing"
    now_size, now_sha256 = _digest(path)
    if now_size != size:
      return f"{path} has {now_size} bytes, {size} were written"
    if now_sha256 != sha256:
      return f"{path} does not have the SHA-256 it was written with"

  with futures.ThreadPoolExecutor(READERS) as pool:
    found = [problem for problem in pool.map(check, body["files"].items()) if problem]
  if found:
    raise DamagedError("; ".join(found))


def _files(directory):
  for path in sorted(directory.iterdir()):
    if path.is_dir():
      yield from _files(path)
    else:
      yield path


def _digest(path):
  size, sha256 = 0, hashlib.sha256()
  with path.open("rb") as file:
    while chunk := file.read(CHUNK):
      size += len(chunk)
      sha256.update(chunk)
  return [size, sha256.hexdigest()]


def _body_digest(body):
  return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
