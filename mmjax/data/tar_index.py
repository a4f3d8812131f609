"""Where the members of tar shards lie: found by a walk through the headers, joined over all shards of a set.

A damaged place costs what lies there. The walk goes on at the next block that is a header, also behind zeros:
a download into a file of full length leaves them, and so do tars that are joined end to end.
"""

import hashlib
import logging
import pathlib
import tarfile
from collections.abc import Sequence

import numpy as np

from mmjax.data import index_cache, places

BLOCK = tarfile.BLOCKSIZE  # bytes: headers and members begin at multiples of it
RECORD = tarfile.RECORDSIZE  # bytes: tars are padded to multiples of it, or end with two blocks of zeros
TWICE = -2  # instead of a member's size
_CHUNK = 2**22  # bytes that are looked through at a time
_MOST_ENDINGS = 16  # of a shard; beyond, about as many as files are none
_OCTAL = np.isin(np.arange(256), np.frombuffer(b"01234567 \0", np.uint8))
_log = logging.getLogger(__name__)


def walk(path: str) -> dict[str, np.ndarray]:
  """The index of a shard.

  Returns:
    {"endings": str [E], "member_ends": int64 [N] up to which member a record's go, "ending": int32 [M] of each
    member, "begin", "size": int64 [M] bytes, TWICE in place of a size, "keys": the records' names one after
    another in UTF-8, uint8 [...], "key_ends": int64 [N], "bad": int64 [K] records that cannot be read, ascending,
    "why": str [K]}. A place at which there is no header is one bad record: how many it were cannot be known. If
    the record before or behind it lacks what others have, it is that one.

  Raises:
    ValueError: the shard is compressed, or dots in its names make endings of what are records.
  """
  total, members = places.size(path), _Members()
  if places.read(path, 0, 2) == b"\x1f\x8b":
    raise ValueError(f"path: {path} is compressed, so that nothing in it can be found without reading all before; "
                     "unpack it with gunzip")
  with places.open_file(path) as file:
    at = start = 0  # of the next header, and of the tar that it is in
    while at < total:
      at = _read(file, at, total, members)
      if at == total and not members.why:
        _log.warning("%s ends without the empty block that closes a tar; if it was cut short, records are "
                     "missing", path)
      if at >= total:
        break
      found, zeros = _search(file, at, total)
      if not _is_end(at, start, zeros, found, total):
        members.gap(_told(at, zeros, found, total), bool(zeros) and _ends_in_zero(file, members.end))
      elif found:
        start = found
      at = found or total
  records, why = members.finished()
  for record, reason in why.items():
    _log.warning("%s, record %d: %s", path, record, reason)
  index = _arrays(records, why)
  files, endings = len(index["ending"]), len(index["endings"])
  if endings > _MOST_ENDINGS and 2 * endings >= files:
    key, of_key = max(records, key=lambda record: len(record[1]))
    raise ValueError(f"path: {path} holds {files:,} files of {endings:,} endings: a record's name goes to the first dot "
                     f"of the file's, so that {key}.{next(iter(of_key))} is of the record {key}; rename the files, as "
                     "laion.0001.jpg to laion_0001.jpg")
  return index


class _Members:
  """Members by records, in the order of their first ones.

  Attributes:
    records: (name, {ending: (begin, size)}) of each.
    why: {record: what is wrong with it}.
    end: byte behind the last one.
  """

  def __init__(self):
    self.records, self.why, self.end = [], {}, 0
    self._latest = {}  # {name: number of the newest record that has it}
    self._last, self._gaps = None, []  # of [records before it, last one before, first one behind, why, torn]

  def add(self, member: tarfile.TarInfo, total: int) -> None:
    """Adds a file to its record; one without an ending is no part of a record, nor one that is hidden."""
    self.end = member.offset_data + member.size
    broken = f"the file ends within {member.name} (truncated?)" if self.end > total else None
    folder, slash, name = member.name.rpartition("/")
    stem, dot, ending = name.partition(".")
    if dot and stem:
      number = self._record(folder + slash + stem, ending.lower(), member)
      if broken:
        self.why[number] = broken
    elif broken:
      self.gap(broken)

  def _record(self, key, ending, member):
    number, newest = self._latest.get(key, len(self.records)), len(self.records) - 1
    if number == len(self.records) or number < newest and ending in self.records[number][1]:
      # A name that comes again later with the same endings is another record: tars are joined end to end.
      number = self._latest[key] = len(self.records)
      self.records.append((key, {}))
    there = self.records[number][1]
    there[ending] = (member.offset_data, TWICE if ending in there else member.size)
    if self._gaps and self._gaps[-1][2] is None:
      self._gaps[-1][2] = number
    self._last = number
    return number

  def gap(self, why: str, torn: bool = False) -> None:
    """Nothing could be read between the last member, which may be torn, and the next."""
    if not self._gaps or self._gaps[-1][2] is not None:
      self._gaps.append([len(self.records), self._last, None, why, torn])

  def finished(self) -> tuple[list, dict[int, str]]:
    """(records, why), each gap among them: a record of its own, unless one beside it lacks what others have."""
    beside = {number for _, before, behind, *_ in self._gaps for number in (before, behind)}
    whole = {frozenset(members) for i, (_, members) in enumerate(self.records) if i not in beside}
    own = {}
    for place, before, behind, reason, torn in self._gaps:
      lacking = [number for number in {before, behind} - {None}
                 if before == behind or torn and number == before or self._lacks(number, whole)]
      for number in lacking:
        self.why.setdefault(number, reason)
      if not lacking:
        own.setdefault(place, []).append(reason)
    records, why = [], {}
    for i in range(len(self.records) + 1):
      for reason in own.get(i, ()):
        why[len(records)] = reason
        records.append(("", {}))
      if i in self.why:
        why[len(records)] = self.why[i]
      records += self.records[i:i + 1]
    return records, why

  def _lacks(self, number, whole):
    endings = frozenset(self.records[number][1])
    return endings not in whole and any(endings < other for other in whole)


def _read(file, at, total, members):
  """Adds all members from byte `at` on; the byte at which there is no further header."""
  file.seek(at)
  try:
    archive = tarfile.open(fileobj=file, mode="r:")
  except (tarfile.TarError, EOFError, ValueError):
    return at
  try:
    for member in archive:
      if member.isreg():
        members.add(member, total)
  except (tarfile.TarError, EOFError, ValueError):
    pass
  return archive.offset


def _search(file, at, total):
  """(place of the first header behind the block `at`, or None; bytes of zeros from `at` on)."""
  zeros, position = 0, at
  file.seek(at)
  while position < total and (data := file.read(_CHUNK)):
    blocks = np.frombuffer(data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0"), np.uint8).reshape(-1, BLOCK)
    if zeros == position - at:
      filled = np.flatnonzero(blocks.any(axis=1))
      zeros += min(len(data), int(filled[0]) * BLOCK) if len(filled) else len(data)
    for i in np.flatnonzero(_OCTAL[blocks[:, 148:156]].all(axis=1)):  # a header's checksum, in octal digits
      if position + i * BLOCK > at and _is_header(blocks[i].tobytes()):
        return int(position + i * BLOCK), zeros
    position += len(data)
  return None, zeros


def _ends_in_zero(file, end):
  """Whether the byte before `end` is zero, as where a hole begins within a file; pictures and texts end otherwise."""
  file.seek(max(0, end - 1))
  return file.read(1) == b"\0"


def _is_header(block):
  try:
    header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
  except (tarfile.TarError, ValueError):
    return False
  return bool(header.name) and header.size >= 0


def _is_end(at, start, zeros, found, total):
  """Whether these zeros close the tar that begins at `start`, rather than stand for what was never written."""
  if zeros < (found or total) - at:
    return False
  if found is None:
    return zeros <= RECORD + BLOCK
  return zeros == 2 * BLOCK or zeros <= RECORD + BLOCK and (found - start) % RECORD == 0


def _told(at, zeros, found, total):
  on = f"; what follows byte {found:,} is read" if found else "; no header follows"
  if zeros == total - at:
    return f"{zeros:,} bytes of zeros end the {total:,} of the file: was it cut short and padded?"
  if zeros:
    return f"{zeros:,} bytes of zeros at byte {at:,} of {total:,}, where a file should begin{on}"
  return f"{'' if at else 'cannot be read as a tar: '}what follows byte {at:,} of {total:,} is no tar header{on}"


def _arrays(records, why):
  endings = sorted({ending for _, members in records for ending in members})
  number = {ending: i for i, ending in enumerate(endings)}
  members = [(number[ending], at, size) for _, members in records for ending, (at, size) in members.items()]
  ending, begin, size = np.array(members, np.int64).reshape(-1, 3).T
  keys = [key.encode("utf-8", "surrogateescape") for key, _ in records]
  return {"endings": np.array(endings, str), "ending": ending.astype(np.int32), "begin": begin, "size": size,
          "member_ends": np.cumsum([len(members) for _, members in records], dtype=np.int64),
          "keys": np.frombuffer(b"".join(keys), np.uint8),
          "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
          "bad": np.array(list(why), np.int64), "why": np.array(list(why.values()), str)}


def join(indices: Sequence[pathlib.Path], names: Sequence[str], folder: pathlib.Path) -> None:
  """Writes the indices of some shards as one, so that a set of thousands takes a few open files.

  As of `walk`, numbers counted over all shards, with "shard_ends": int64 [shards] records up to each one's end, and
  "sha256": uint8 [32] over names, sizes and places of all members.

  Args:
    indices: the folder of each; one at a time is read.
    names: of the shards.
    folder: to write to.
  """
  counts = {name: 0 for name in ("ending", "begin", "size", "member_ends", "keys", "key_ends")}
  endings, bad, why, ends, digest = set(), [], [], [], hashlib.sha256(repr(list(names)).encode())
  for index in map(index_cache.read, indices):
    endings.update(map(str, index["endings"]))
    bad += [int(number) + (ends[-1] if ends else 0) for number in index["bad"]]
    why += map(str, index["why"])
    ends.append((ends[-1] if ends else 0) + len(index["member_ends"]))
    for name in counts:
      counts[name] += len(index[name])
    for name in ("endings", "member_ends", "ending", "begin", "size", "keys"):
      digest.update(np.ascontiguousarray(index[name]))
  number = {ending: i for i, ending in enumerate(sorted(endings))}
  types = {"ending": np.int32, "keys": np.uint8}
  written = {name: index_cache.empty(folder, name, types.get(name, np.int64), count) for name, count in counts.items()}
  done = dict.fromkeys(counts, 0)
  for index in map(index_cache.read, indices):
    own = np.array([number[str(ending)] for ending in index["endings"]], np.int32)
    moved = {**index, "ending": own[index["ending"]] if len(own) else index["ending"],
             "member_ends": index["member_ends"] + done["ending"], "key_ends": index["key_ends"] + done["keys"]}
    for name in counts:
      written[name][done[name]:done[name] + len(index[name])] = moved[name]
    for name in counts:
      done[name] += len(index[name])
  for name, array in (("endings", np.array(sorted(endings), str)), ("bad", np.array(bad, np.int64)),
                      ("why", np.array(why, str)), ("shard_ends", np.array(ends, np.int64)),
                      ("sha256", np.frombuffer(digest.digest(), np.uint8))):
    np.save(folder / f"{name}.npy", array, allow_pickle=False)
