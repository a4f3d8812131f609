"""Texts of another source in packs of a fixed number of tokens, isolated from each other.

A record is a dict of `text`, `text_mask`, `text_segments`, `text_positions` [size], see
`mmjax/data/packing.py`. The lengths of all texts are found once and kept in the cache folder.
"""

import dataclasses
import functools
import hashlib
import logging
import pathlib
from typing import Any

import numpy as np

from mmjax.data import columns, index_cache, packing
from mmjax.data import spec as spec_lib
from mmjax.data import records, tokenizers

_log = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Packed:
  """Record i is the i-th pack.

  Attributes:
    source: of the texts.
    tokenizer: a name or path for tokenizers.load.
    size: tokens of a pack.
    key: of the text in a source's record; of several the first counts.
    bos, eos: put the tokenizer's begin and end tokens around each text.
    most: texts of a pack, None for no limit.
    seed: of which texts share a pack.
    lengths: folder of the index of lengths.
  """

  source: Any
  tokenizer: str
  size: int
  key: str
  bos: bool
  eos: bool
  most: int | None
  seed: int
  lengths: str

  @property
  def name(self) -> str:
    return f"{self.source.name} in packs of {self.size}"

  @functools.cached_property
  def digest(self) -> str:
    """SHA-256 over the source's and all that decides the packs."""
    told = (self.source.digest, self.tokenizer, self.size, self.key, self.bos, self.eos, self.most, self.seed)
    return hashlib.sha256(repr(told).encode()).hexdigest()

  @functools.cached_property
  def packs(self) -> packing.Packs:
    return packing.plan(index_cache.load(pathlib.Path(self.lengths))["lengths"], self.size, self.most, self.seed)

  def __reduce__(self):
    return Packed, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

  def __len__(self) -> int:
    return len(self.packs)

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    return packing.pack([_tokens(self.source[int(one)], self) for one in self.packs[i]], self.size)


def _tokens(record, settings):
  """The ids of a record's text."""
  tokenizer = tokenizers.load(settings.tokenizer)
  texts = columns.captions(record.get(settings.key))
  if not texts:
    raise ValueError(f"the record has no text {settings.key!r}; it has {', '.join(sorted(record))}")
  ids = tokenizer.encode(records.text(texts[0]))
  return [tokenizer.bos_id] * settings.bos + ids + [tokenizer.eos_id] * settings.eos


def build(path: str, tokenizer: str, size: int, key: str = "caption", bos: bool = False, eos: bool = True,
          most: int | None = None, seed: int = 0) -> Packed:
  """The source.

  Args:
    path: of the texts' source, a SPEC (`mmjax/data/spec.py`).
    tokenizer, size, key, bos, eos, most, seed: as of `Packed`.

  Raises:
    ValueError: as of `spec.open_source`, or no text has a token.
  """
  source = spec_lib.open_source(path)
  packed = Packed(source, tokenizer, size, key, bos, eos, most, seed, "")
  place = (source.digest, tokenizer, key, bos, eos)

  def make():
    lengths, broken = np.zeros(len(source), np.int64), 0
    for i in range(len(source)):
      try:
        lengths[i] = len(_tokens(source[i], packed))
      except Exception as error:  # a record that cannot be read is in no pack; that is told
        broken += 1
        _log.log(logging.WARNING if broken < 6 else logging.DEBUG, "%s record %d: %s", source.name, i, error)
    if broken:
      _log.warning("%s: %d of %d records have no text that can be read, and are in no pack", source.name,
                   broken, len(source))
    return {"lengths": lengths}
  index_cache.arrays("lengths", place, make)
  packed = dataclasses.replace(packed, lengths=str(index_cache.path_of("lengths", place)))
  _log.info("%s: %d packs, %.1f%% full", packed.name, len(packed), 100 * packed.packs.fill)
  return packed
