"""A part of a source's records: which ones is drawn once, so that parts do not follow the order in
which somebody has stored them, such as class after class."""

import dataclasses
import hashlib
import re
from typing import Any

from mmjax.data import order
from mmjax.data import records

_KEY = 0x6D6D6A6178  # of the one permutation that all parts are cut from; never to be changed
HELD_OUT_SHARE, HELD_OUT_MOST = 0.05, 5000
_FORM = re.compile(r"\[?(\d+(?:\.\d+)?%?)?:(\d+(?:\.\d+)?%?)?\]?")


@dataclasses.dataclass(frozen=True)
class Part:
  """Record i is the one at place begin + i of a fixed permutation of the source's records.

  Parts of the same source that do not overlap have no record in common.
  """

  source: Any
  begin: int
  end: int

  @property
  def name(self) -> str:
    return f"{getattr(self.source, 'name', type(self.source).__name__)}[{self.begin}:{self.end}]"

  @property
  def digest(self) -> str:
    return hashlib.sha256(repr((self.source.digest, self.begin, self.end)).encode()).hexdigest()

  def class_names(self, key: str) -> tuple[str, ...] | None:
    """As the source's."""
    names = getattr(self.source, "class_names", None)
    return names(key) if names else None

  def __len__(self) -> int:
    return self.end - self.begin

  def where(self, i: int) -> str:
    """As the source's."""
    return records.where(self.source, self._own(i))

  def _own(self, i):
    if not 0 <= i < len(self):
      raise IndexError(i)
    return order.permute(self.begin + i, len(self.source), _KEY)

  def __getitem__(self, i: int) -> dict[str, Any]:
    return self.source[self._own(i)]


def cut(source: Any, text: str) -> Part:
  """The part that `text` names: "[:95%]", "[95%:]", "[1000:2000]", in counts or shares of the records;
  "[held_out]", the last 5% but no more than 5,000, and "[train]", what comes before these.

  Raises:
    ValueError: it has another form, or the part is empty.
  """
  count = len(source)
  held_out = count - min(HELD_OUT_MOST, max(1, round(count * HELD_OUT_SHARE)))
  text = {"[train]": f"[:{held_out}]", "[held_out]": f"[{held_out}:]"}.get(text, text)
  form = _FORM.fullmatch(text)
  if not form:
    raise ValueError(f"part: expected a form such as [:95%] or [1000:2000], not {text!r}")
  begin, end = (default if bound is None else _place(bound, count)
                for bound, default in zip(form.groups(), (0, count)))
  if not 0 <= begin < end:
    raise ValueError(f"part: {text} of {count:,} records is empty")
  return Part(source, begin, end)


def _place(bound, count):
  if bound.endswith("%"):
    return min(count, round(count * float(bound[:-1]) / 100))
  if not bound.isdigit():
    raise ValueError(f"part: {bound} is neither a whole number nor a share in %")
  return min(count, int(bound))
