"""WebDataset shards: .tar files in which members of one name make a record.

The members "000/a.jpg", "000/a.txt" and "000/a.seg.png" are the record "000/a" with the columns
"jpg", "txt" and "seg.png". A record is a dict of

  id          str, the members' common name
  image       bytes of the file, for transforms.Decode
  caption     list of str
  label       int, of "cls", or of a column that is asked for
  ...         what else there is: the values of "json" by their keys, other columns as bytes

Shards are read at random: where each member lies is found once by walking through the headers, and
kept in the cache folder (mmjax/data/index_cache.py). They may lie behind a URL; a record whose members
are neighbours is one request. They need not be: `tar` itself packs a folder in whatever order it lists it.
"""

import concurrent.futures
import dataclasses
import functools
import hashlib
import json
import logging
import pathlib
import tarfile
from typing import Any

import numpy as np

from mmjax.data import columns as columns_lib
from mmjax.data import index_cache, places

BLOCK = 512  # bytes: members begin at multiples of it
MISSING, TWICE = -1, -2  # instead of a member's size
_SCANS = 8  # shards that are walked through at a time
_GAP = 2**18  # bytes that are read in vain rather than asking for each member
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Tar:
  """Record i is the i-th of all shards, in their order.

  Attributes:
    shards: paths or URLs.
    indices: the folder of each shard's index.
    columns: which of the members' endings are image, caption and label.
    digest: SHA-256 over names, sizes and places of all members.
  """

  shards: tuple[str, ...]
  indices: tuple[str, ...]
  columns: columns_lib.Columns
  digest: str

  @property
  def name(self) -> str:
    first = places.name_of(self.shards[0])
    return first if len(self.shards) == 1 else f"{first} and {len(self.shards) - 1} more"

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """Number of records up to each shard's end: int64 [shards]."""
    return np.cumsum([len(_index(path)["begin"]) for path in self.indices])

  def __reduce__(self):
    return Tar, (self.shards, self.indices, self.columns, self.digest)

  def __len__(self) -> int:
    return int(self._ends[-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Raises ValueError naming shard and record if it is damaged, or a member is there twice."""
    shard, own = index_cache.place(self._ends, i)
    try:
      return self._record(self.shards[shard], _index(self.indices[shard]), own)
    except ValueError as error:
      raise ValueError(f"{places.name_of(self.shards[shard])}, record {own}: {error}") from error

  def where(self, i: int) -> str:
    """The shard of a record, its number there and its name, for errors."""
    shard, own = index_cache.place(self._ends, i)
    return f"{places.name_of(self.shards[shard])}, record {own}, {_key(_index(self.indices[shard]), own)}"

  def _record(self, shard, index, i):
    if (index["bad"] == i).any():
      raise ValueError(str(index["why"][index["bad"] == i][0]))
    key = _key(index, i)
    begins, sizes = np.asarray(index["begin"][i]), np.asarray(index["size"][i])
    if (sizes == TWICE).any():
      twice = index["endings"][int((sizes == TWICE).argmax())]
      raise ValueError(f"the tar holds two files {key}.{twice}")
    there = np.flatnonzero(sizes != MISSING)
    first, last = int(begins[there].min()), int((begins + sizes)[there].max())
    near = last - first - int(sizes[there].sum()) <= _GAP
    data = places.read(shard, first, last) if near else b""
    members = {}
    for column in there:
      at, size = int(begins[column]), int(sizes[column])
      members[str(index["endings"][column])] = (
          data[at - first:at - first + size] if near else places.read(shard, at, at + size))
    return {"id": key, **self._named(key, members)}

  def _named(self, key, members):
    """The columns by our names; "json" spread out where its keys are free."""
    if "json" in members:
      try:
        told = json.loads(members.pop("json"))
      except ValueError as error:
        raise ValueError(f"{key}.json: {error}") from error
      if not isinstance(told, dict):
        raise ValueError(f"{key}.json: expected an object {{...}}, found {type(told).__name__}")
      members = {**told, **members}
    record = self.columns.renamed(members)
    if self.columns.caption:
      record["caption"] = [_text(one, key) for one in columns_lib.captions(record.get("caption"))]
    if isinstance(record.get("label"), bytes):
      record["label"] = int(record["label"])
    return record


def _text(value, key):
  try:
    return value.decode("utf-8") if isinstance(value, bytes) else value
  except UnicodeDecodeError as error:
    raise ValueError(f"the caption of {key} is not UTF-8: {error}") from error


@functools.lru_cache(maxsize=4096)
def _index(path):
  return index_cache.load(pathlib.Path(path))


def _key(index, i):
  end = index["key_ends"]
  return bytes(index["keys"][int(end[i - 1]) if i else 0:int(end[i])]).decode("utf-8", "replace")


def walk(path: str) -> dict[str, np.ndarray]:
  """The index of a shard.

  Returns:
    {"endings": str [E], "begin", "size": int64 [N, E] of each record's members, MISSING or TWICE in
    place of a size, "keys": their names one after another in UTF-8, uint8 [...], "key_ends": int64
    [N], "bad": int64 [K] records that cannot be read, "why": str [K]}. What follows a damaged place
    is one bad record: how many it were cannot be known.
  """
  records, latest, why = [], {}, {}
  total = places.size(path)
  with places.open_file(path) as file:
    try:
      archive = tarfile.open(fileobj=file, mode="r:")
      for member in archive:
        if member.isreg():
          record = _add(records, latest, member)
          if member.offset_data + member.size > total:
            why[record] = f"the file ends within {member.name} (truncated?)"
      tail = places.read(path, archive.offset, archive.offset + BLOCK)
      if not tail and not why:
        _log.warning("%s ends without the empty block that closes a tar; if it was cut short, records are "
                     "missing", path)
      elif (len(tail) < BLOCK or any(tail)) and not why:
        why[len(records)] = f"what follows byte {archive.offset} of {total} is no tar header"
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
      if not why:
        why[len(records)] = f"cannot be read as a tar from here on: {error}"
  if len(records) in why:
    records.append(("", {}))
  for record, reason in why.items():
    _log.warning("%s, record %d: %s", path, record, reason)
  return _arrays(records, why)


def _add(records, latest, member):
  """Adds a member {ending: (begin, size)} to its record; the record's number, the next one's if it is in none.

  Args:
    latest: {key: number of the newest record of that name}.
  """
  folder, slash, name = member.name.rpartition("/")
  stem, dot, ending = name.partition(".")
  if not dot or not stem or name.startswith("."):
    return len(records)  # a file without ending is no part of a record, nor one that is hidden
  key, ending = folder + slash + stem, ending.lower()
  number, newest = latest.get(key, len(records)), len(records) - 1
  if number == len(records) or number < newest and ending in records[number][1]:
    # A name that comes again later with the same endings is another record: tars are joined end to end.
    number = latest[key] = len(records)
    records.append((key, {}))
  members = records[number][1]
  members[ending] = (member.offset_data, TWICE if ending in members else member.size)
  return number


def _arrays(records, why):
  endings = sorted({ending for _, members in records for ending in members})
  column = {ending: i for i, ending in enumerate(endings)}
  begin = np.zeros((len(records), len(endings)), np.int64)
  size = np.full((len(records), len(endings)), MISSING, np.int64)
  for i, (_, members) in enumerate(records):
    for ending, (at, length) in members.items():
      begin[i, column[ending]], size[i, column[ending]] = at, length
  keys = [key.encode("utf-8", "surrogateescape") for key, _ in records]
  return {"endings": np.array(endings, str), "begin": begin, "size": size,
          "keys": np.frombuffer(b"".join(keys), np.uint8),
          "key_ends": np.cumsum([len(key) for key in keys], dtype=np.int64),
          "bad": np.array(list(why), np.int64), "why": np.array(list(why.values()), str)}


def build(path: str | tuple, image: str | None = None, caption: str | None = None,
          label: str | None = None) -> Tar:
  """The source of some shards.

  Args:
    path: a .tar, a folder of them, a pattern ("shards/*.tar", "s3://bucket/{000..099}.tar"), or
      several of these.
    image, caption, label: the endings that are these (also a key of "json"); default those with the
      usual names.

  Raises:
    ValueError: there are none, one is compressed, none holds a record, or an ending is in none.
  """
  shards = [shard for one in ((path,) if isinstance(path, str) else path) for shard in _shards(one)]
  for shard in shards:
    if places.read(shard, 0, 2) == b"\x1f\x8b":
      raise ValueError(f"path: {shard} is compressed, so that nothing in it can be found without "
                       "reading all before; unpack it with gunzip")

  def prepare(shard):
    def fill(folder):
      for name, array in walk(shard).items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return str(index_cache.prepare("tar", places.stamp(shard), fill))
  with concurrent.futures.ThreadPoolExecutor(_SCANS) as pool:
    indices = list(pool.map(prepare, shards))
  loaded = [_index(folder) for folder in indices]
  if not any(len(index["begin"]) for index in loaded):
    raise ValueError(f"path: {path} holds no record; a record's files are called NAME.jpg, NAME.txt")
  known = {str(ending) for index in loaded for ending in index["endings"]}
  found = columns_lib.find(sorted(known | _json_keys(shards, loaded)), image, caption, label, several=True)
  digest = hashlib.sha256(repr([places.name_of(shard) for shard in shards]).encode())
  for index in loaded:
    for name in ("endings", "begin", "size", "keys"):
      digest.update(np.ascontiguousarray(index[name]))
  return Tar(tuple(shards), tuple(indices), found, digest.hexdigest())


def _json_keys(shards, loaded):
  """Keys of the first readable "json" member."""
  for shard, index in zip(shards, loaded):
    for column in np.flatnonzero(index["endings"] == "json"):
      sizes = index["size"][:16, column]
      for i in np.flatnonzero(sizes >= 0):
        begin = int(index["begin"][i, column])
        try:
          told = json.loads(places.read(shard, begin, begin + int(sizes[i])))
        except ValueError:
          continue
        if isinstance(told, dict):
          return set(told)
  return set()


def _shards(path):
  found = []
  for one in places.expand(path):
    if places.is_folder(one):
      found += [places.join(one, name) for name in places.names_in(one) if name.endswith(".tar")]
      if not found:
        raise ValueError(f"path: {one} holds no *.tar")
    else:
      found.append(one)
  return found
