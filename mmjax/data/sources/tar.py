"""WebDataset shards: .tar files in which members of one name make a record.

The members "000/a.jpg", "000/a.txt" and "000/a.seg.png" are the record "000/a" with the columns
"jpg", "txt" and "seg.png". A record is a dict of

  id          str, the members' common name
  image       bytes of the file, for transforms.Decode
  caption     list of str
  label       int, of "cls", or of a column that is asked for
  ...         what else there is: the values of "json" by their keys, other columns as bytes

Shards are read at random: where each member lies is found once by walking through the headers, and
kept in the cache folder (mmjax/data/tar_index.py). They may lie behind a URL; a record whose members
are neighbours is one request. They need not be: `tar` itself packs a folder in whatever order it lists it.
"""

import concurrent.futures
import dataclasses
import functools
import json
import pathlib
from typing import Any

import numpy as np

from mmjax.data import columns as columns_lib
from mmjax.data import index_cache, places, tar_index

_SCANS = 8  # shards that are walked through at a time
_TRIED = 16  # records of a shard whose "json" is looked at for names of columns
_GAP = 2**18  # bytes that are read in vain rather than asking for each member


@dataclasses.dataclass(frozen=True)
class Tar:
  """Record i is the i-th of all shards, in their order.

  Attributes:
    shards: paths or URLs.
    index: the folder of their joined index.
    columns: which of the members' endings are image, caption and label.
    digest: SHA-256 over names, sizes and places of all members.
  """

  shards: tuple[str, ...]
  index: str
  columns: columns_lib.Columns
  digest: str

  @property
  def name(self) -> str:
    first = places.name_of(self.shards[0])
    return first if len(self.shards) == 1 else f"{first} and {len(self.shards) - 1} more"

  def __len__(self) -> int:
    return int(_index(self.index)["shard_ends"][-1])

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Raises ValueError naming shard and record if it is damaged, or a member is there twice."""
    index = _index(self.index)
    shard, own = index_cache.place(index["shard_ends"], i)
    try:
      return self._record(self.shards[shard], index, i)
    except ValueError as error:
      raise ValueError(f"{places.name_of(self.shards[shard])}, record {own}: {error}") from error

  def where(self, i: int) -> str:
    """The shard of a record, its number there and its name, for errors."""
    index = _index(self.index)
    shard, own = index_cache.place(index["shard_ends"], i)
    return f"{places.name_of(self.shards[shard])}, record {own}, {_key(index, i)}"

  def _record(self, shard, index, i):
    bad = int(np.searchsorted(index["bad"], i))
    if bad < len(index["bad"]) and index["bad"][bad] == i:
      raise ValueError(str(index["why"][bad]))
    key, there = _key(index, i), _members(index, i)
    begins, sizes = index["begin"][there], index["size"][there]
    endings = [str(index["endings"][ending]) for ending in index["ending"][there]]
    if (sizes == tar_index.TWICE).any():
      raise ValueError(f"the tar holds two files {key}.{endings[int((sizes == tar_index.TWICE).argmax())]}")
    first, last = int(begins.min()), int((begins + sizes).max())
    near = last - first - int(sizes.sum()) <= _GAP
    data = places.read(shard, first, last) if near else b""
    members = {}
    for ending, at, size in zip(endings, begins.tolist(), sizes.tolist()):
      members[ending] = data[at - first:at - first + size] if near else places.read(shard, at, at + size)
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
    return value.decode("utf-8").strip() if isinstance(value, bytes) else value
  except UnicodeDecodeError as error:
    raise ValueError(f"the caption of {key} is not UTF-8: {error}") from error


@functools.lru_cache(maxsize=4096)
def _index(path):
  return index_cache.load(pathlib.Path(path))


def _key(index, i):
  return bytes(index["keys"][_between(index["key_ends"], i)]).decode("utf-8", "replace")


def _members(index, i):
  return _between(index["member_ends"], i)


def _between(ends, i):
  """What is the i-th's among things that end at `ends`."""
  return slice(int(ends[i - 1]) if i else 0, int(ends[i]))


def build(path: str | tuple, image: str | None = None, caption: str | None = None,
          label: str | None = None) -> Tar:
  """The source of some shards.

  Args:
    path: a .tar, a folder of them, a pattern ("shards/*.tar", "s3://bucket/{000..099}.tar"), or
      several of these.
    image, caption, label: the endings that are these (also a key of "json"); default those with the
      usual names.

  Raises:
    ValueError: there are none, one cannot be reached or is compressed, none holds a record, or an ending is in none.
  """
  shards = [shard for one in ((path,) if isinstance(path, str) else path) for shard in _shards(one)]

  def prepare(shard, stamp):
    def fill(folder):
      with places.reaching(shard):
        index = tar_index.walk(shard)
      for name, array in index.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    return index_cache.prepare("tar", stamp, fill)
  stamps = places.stamps(shards)

  def join(folder):
    with concurrent.futures.ThreadPoolExecutor(_SCANS) as pool:
      tar_index.join(list(pool.map(prepare, shards, stamps)), list(map(places.name_of, shards)), folder)
  joined = str(index_cache.prepare("tars", stamps, join))
  index = _index(joined)
  if not index["shard_ends"][-1]:
    raise ValueError(f"path: {path} holds no record; a record's files are called NAME.jpg, NAME.txt")
  known = sorted(set(map(str, index["endings"])) | _json_keys(shards, index))
  found = columns_lib.find(known, image, caption, label, several=True)
  return Tar(tuple(shards), joined, found, bytes(index["sha256"]).hex())


def _json_keys(shards, index):
  """Keys of the first readable "json" member."""
  if "json" not in index["endings"]:
    return set()
  for number, shard in enumerate(shards):
    own = _between(index["shard_ends"], number)
    for i in range(own.start, min(own.stop, own.start + _TRIED)):
      there = _members(index, i)
      of_json = (index["endings"][index["ending"][there]] == "json") & (index["size"][there] >= 0)
      for begin, size in zip(index["begin"][there][of_json].tolist(), index["size"][there][of_json].tolist()):
        data = places.read(shard, begin, begin + size)
        try:
          told = json.loads(data)
        except ValueError:
          continue
        if isinstance(told, dict):
          return set(told)
  return set()


def _shards(path):
  found = []
  for one in places.expand(path):
    if not (places.is_remote(one) and one.endswith(".tar")) and places.is_folder(one):  # that would be a request each
      found += [places.join(one, name) for name in places.names_in(one) if name.endswith(".tar")]
      if not found:
        raise ValueError(f"path: {one} holds no *.tar")
    else:
      found.append(one)
  return found
