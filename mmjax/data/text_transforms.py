"""Text transforms, and the two that choose and name a record's keys."""

import dataclasses
import html
import re

import numpy as np

from mmjax.data import folder_tokenizers
from mmjax.data import records
from mmjax.data import tokenizers


@dataclasses.dataclass(frozen=True)
class SampleCaption:
  """Chooses one of a record's captions: `choose` is "random", "first", "longest" or an index.

  A record without captions, or too few for the index, is a bad record.
  """

  choose: str | int = "random"
  key: str = "caption"
  out: str = "caption"

  def __post_init__(self):
    good = self.choose in ("random", "first", "longest") or (
        isinstance(self.choose, int) and not isinstance(self.choose, bool) and self.choose >= 0)
    records.require(self, "choose", good, "expected 'random', 'first', 'longest' or an index")

  def __call__(self, record, rng):
    captions = records.texts(record, self.key)
    if not captions:
      raise ValueError(f"{self.key!r} is empty")
    if self.choose == "random":
      caption = captions[rng.integers(len(captions))]
    elif self.choose == "longest":
      caption = max(captions, key=len)
    else:
      index = 0 if self.choose == "first" else self.choose
      if index >= len(captions):
        raise ValueError(f"caption {index} is asked for but {self.key!r} has {len(captions)}")
      caption = captions[index]
    return {**record, self.out: caption}

  def leaves(self, key):
    return key not in (self.key, self.out)


def _whitespace(text):
  return re.sub(r"\s+", " ", html.unescape(html.unescape(text)).strip()).strip()


# As OpenCLIP's tokenizers name them; without its repair of wrongly decoded text (ftfy).
_CLEAN = {
    "whitespace": _whitespace,
    "lower": lambda text: _whitespace(text).lower(),
    "canonical": lambda text: folder_tokenizers.canonical(_whitespace(text).replace("_", " ")),
}


@dataclasses.dataclass(frozen=True)
class Tokenise:
  """Text to `out` int32 [L] and `out`_mask bool [L] (True = real token), cut or padded to `length`.

  With captions = K the key holds a list: `out` is [K, L], `out`_mask [K, L] and `out`_count int32
  [] the number of captions there were, at most K; further rows are padding. A caption that is cut
  keeps its end token. A caption that gives no token at all (empty, and neither `bos` nor `eos`)
  makes a bad record.

  Attributes:
    tokenizer: a name or path for tokenizers.load.
    bos, eos: put the tokenizer's begin and end tokens around the text.
    pad: the token id that fills up; default the tokenizer's pad token, or 0.
    side: where the padding goes, "right" or "left" of the text.
    reads_padding: the model was trained to read the padding as text: the mask is True everywhere.
    keep_empty: a caption without any token is kept, masked all over.
    clean: what is done to the text first: "whitespace" (HTML entities are resolved, runs of white
      space become one space), "lower" (that, in small letters), "canonical" (in small letters
      without punctuation, "_" becomes a space).
  """

  tokenizer: str
  length: int
  bos: bool = False
  eos: bool = True
  captions: int = 0
  pad: int | None = None
  side: str = "right"
  reads_padding: bool = False
  keep_empty: bool = False
  clean: str | None = None
  key: str = "caption"
  out: str = "text"

  def __post_init__(self):
    records.require(self, "length", self.length > self.bos + self.eos,
                    "no room for a token of the text")
    records.require(self, "captions", self.captions >= 0, "expected a count, 0 for a single text")
    records.require(self, "side", self.side in ("right", "left"), "expected 'right' or 'left'")
    records.require(self, "clean", self.clean is None or self.clean in _CLEAN,
                    f"expected one of {', '.join(_CLEAN)}")
    tokenizer = tokenizers.load(self.tokenizer)
    records.require(self, "bos", not self.bos or tokenizer.bos_id is not None,
                    f"the tokenizer {self.tokenizer!r} has no begin token")
    records.require(self, "eos", not self.eos or tokenizer.eos_id is not None,
                    f"the tokenizer {self.tokenizer!r} has no end token")

  def __call__(self, record, rng):
    tokenizer = tokenizers.load(self.tokenizer)
    if not self.captions:
      ids, mask = self._padded(tokenizer, records.text(records.get(record, self.key)))
      return {**record, self.out: ids, f"{self.out}_mask": mask}
    texts = records.texts(record, self.key)[:self.captions]
    if not texts:
      raise ValueError(f"{self.key!r} is empty")
    ids = np.full((self.captions, self.length), self._pad(tokenizer), np.int32)
    mask = np.zeros((self.captions, self.length), bool)
    for i, text in enumerate(texts):
      ids[i], mask[i] = self._padded(tokenizer, text)
    count = np.int32(len(texts))
    return {**record, self.out: ids, f"{self.out}_mask": mask, f"{self.out}_count": count}

  def leaves(self, key):
    return key not in (self.key, self.out, f"{self.out}_mask", f"{self.out}_count")

  def _pad(self, tokenizer):
    return self.pad if self.pad is not None else tokenizer.pad_id or 0

  def _padded(self, tokenizer, text):
    text = _CLEAN[self.clean](text) if self.clean else text
    tokens = tokenizer.encode(text)[:self.length - self.bos - self.eos]
    tokens = [tokenizer.bos_id] * self.bos + tokens + [tokenizer.eos_id] * self.eos
    if not tokens and not self.keep_empty:
      raise ValueError(f"{self.key!r} is empty; set eos = True to keep such records")
    ids = np.full(self.length, self._pad(tokenizer), np.int32)  # the mask tells what is padding
    begin = 0 if self.side == "right" else self.length - len(tokens)
    ids[begin:begin + len(tokens)] = tokens
    mask = np.full(self.length, self.reads_padding)
    mask[begin:begin + len(tokens)] = True
    return ids, mask


@dataclasses.dataclass(frozen=True)
class Keep:
  """Leaves only these keys in the record: what goes into the batch."""

  keys: tuple

  def __post_init__(self):
    good = isinstance(self.keys, (tuple, list)) and len(self.keys) > 0
    records.require(self, "keys", good, "expected a tuple of key names")

  def __call__(self, record, rng):
    return {key: records.get(record, key) for key in self.keys}

  def leaves(self, key):
    return True


@dataclasses.dataclass(frozen=True)
class Rename:
  """Renames keys: {"old": "new"}. A name that is taken is an error, not overwritten."""

  names: dict

  def __post_init__(self):
    good = len(set(self.names.values())) == len(self.names)
    records.require(self, "names", good, "two keys would get the same name")

  def __call__(self, record, rng):
    rest = {key: value for key, value in record.items() if key not in self.names}
    for old, new in self.names.items():
      if new in rest:
        raise ValueError(f"cannot rename {old!r} to {new!r}: the record has one")
      rest[new] = records.get(record, old)
    return rest

  def leaves(self, key):
    return key not in self.names and key not in self.names.values()
