"""Packs: several short sequences in one row of a fixed length, planned from all lengths beforehand.

Because the plan is made of the lengths alone, pack i can be read at random, and the order of a run
still follows from config and step.
"""

import collections
import dataclasses

import numpy as np

from mmjax.data import order


@dataclasses.dataclass(frozen=True)
class Packs:
  """Which sequences lie in which pack.

  Attributes:
    members: int64 [N], numbers of sequences, pack after pack.
    ends: int64 [P], where each pack's members end.
    fill: share of the places that hold a token.
  """

  members: np.ndarray
  ends: np.ndarray
  fill: float

  def __len__(self) -> int:
    return len(self.ends)

  def __getitem__(self, i: int) -> np.ndarray:
    """Numbers of the sequences of pack i, int64 [k]."""
    if not 0 <= i < len(self):
      raise IndexError(i)
    return self.members[int(self.ends[i - 1]) if i else 0:int(self.ends[i])]


def plan(lengths: np.ndarray, size: int, most: int | None = None, seed: int = 0) -> Packs:
  """Best-fit decreasing over the histogram of lengths: its cost does not grow with their number.

  From the longest down, each sequence goes to the fullest pack that has room; packs of the same content
  are counted, not listed (after Krell et al. 2021, arXiv:2107.02027, algorithm 1, which goes over the
  histogram in the same way). Which sequence of a length goes where is drawn, so that neighbours of the
  stored order do not share packs.

  Args:
    lengths: int [N], tokens of each sequence; those above `size` are counted as `size`, those of 0 are
      left out.
    size: tokens of a pack.
    most: sequences of a pack; None for no limit.
    seed: of what is drawn.

  Raises:
    ValueError: `size` or `most` is below 1, or no sequence has a token.
  """
  if size < 1 or (most is not None and most < 1):
    raise ValueError(f"packs need at least a token and a sequence, not size = {size}, most = {most}")
  lengths = np.minimum(np.asarray(lengths, np.int64), size)
  if not (lengths > 0).any():
    raise ValueError("no sequence has a token")
  kinds = _kinds(np.bincount(lengths, minlength=size + 1), size, most)
  return _filled(kinds, lengths, size, seed)


def _kinds(histogram, size, most):
  """[(lengths of a pack from long to short, number of such packs)]."""
  open_packs = collections.defaultdict(dict)  # {free places: {lengths: number of packs}}
  done = []
  for length in range(size, 0, -1):
    left = int(histogram[length])
    while left:
      free = next((free for free in range(length, size + 1) if open_packs.get(free)), None)
      if free is None:
        # As many equal sequences as fit, or all that are left.
        times = min(size // length, left, most or size)
        packs, content = left // times, (length,) * times
        left -= packs * times
      else:
        before, count = next(iter(open_packs[free].items()))
        packs = min(left, count)
        if packs == count:
          del open_packs[free][before]
        else:
          open_packs[free][before] = count - packs
        left -= packs
        content = (*before, length)
      room = size - sum(content)
      if room and (most is None or len(content) < most):
        open_packs[room][content] = open_packs[room].get(content, 0) + packs
      else:
        done.append((content, packs))
  return done + [kind for kinds in open_packs.values() for kind in kinds.items()]


def _filled(kinds, lengths, size, seed):
  """Sequences of the right lengths in the places of all packs."""
  chosen = np.flatnonzero(lengths > 0)
  drawn = np.random.Generator(np.random.Philox(key=order.mix(seed, size))).permutation(len(chosen))
  chosen = chosen[drawn]
  by_length = chosen[np.argsort(lengths[chosen], kind="stable")]
  first = np.searchsorted(lengths[by_length], np.arange(size + 2))  # of each length in `by_length`
  taken, parts, ends, at = first.copy(), [], [], 0
  for content, packs in kinds:
    block = np.empty((packs, len(content)), np.int64)
    for column, length in enumerate(content):
      block[:, column] = by_length[taken[length]:taken[length] + packs]
      taken[length] += packs
    parts.append(block.reshape(-1))
    ends.append(at + len(content) * np.arange(1, packs + 1))
    at += block.size
  ends = np.concatenate(ends)
  return Packs(np.concatenate(parts), ends, float(lengths.sum() / (len(ends) * size)))


def pack(sequences: list[np.ndarray], size: int) -> dict[str, np.ndarray]:
  """One row of several sequences.

  Args:
    sequences: int [l] each; the last is cut where the row is full.

  Returns:
    {"text": int32 [size], "text_mask": bool [size], True for a token, "text_segments": int32 [size], the
    sequence from 1 that a token belongs to and 0 for padding (what `attention` isolates), and
    "text_positions": int32 [size], the place in its own sequence}.
  """
  row = {name: np.zeros(size, np.int32) for name in ("text", "text_segments", "text_positions")}
  at = 0
  for number, tokens in enumerate(sequences, 1):
    tokens = np.asarray(tokens)[:size - at]
    place = slice(at, at + len(tokens))
    row["text"][place], row["text_segments"][place] = tokens, number
    row["text_positions"][place] = np.arange(len(tokens))
    at += len(tokens)
  return {**row, "text_mask": np.arange(size) < at}
