"""The order of records: which record is read at which global row, without walking to it.

Rows count the records of a run from 0, across epochs: row r lies in epoch r // length. Each epoch
is a permutation of the records, made by a Feistel network over a mixed-radix domain with cycle
walking (Black & Rogaway 2002, "Ciphers with Arbitrary Finite Domains", sections 3 and 4). It is
written here and not taken from a library so that no upgrade can change the order of a running
experiment.
"""

import functools
import math

_WORD = 2**64 - 1
_ROUNDS = 6  # 4 suffice for a pseudorandom permutation with ideal rounds (Luby & Rackoff 1988)


def mix(*words):
  """Hashes integers to one 64-bit word: splitmix64 (Steele et al. 2014, fig. 16), chained."""
  return functools.reduce(_mixed, words, 0)


def _mixed(x, word):
  """The hash of what has the hash `x` and one word more."""
  x = (x + word + 0x9E3779B97F4A7C15) & _WORD
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
  return x ^ (x >> 31)


@functools.lru_cache(maxsize=1024)
def _rounds(key):
  """Hashes of (key, number) for pairs of rounds of the network, which are the same for a whole epoch."""
  return tuple((mix(key, number), mix(key, number + 1)) for number in range(0, _ROUNDS, 2))


def permute(index, length, key):
  """The image of `index` under the pseudorandom permutation of range(length) chosen by `key`."""
  # The domain, rows x columns, is barely larger than `length`, so that cycle walking is short.
  rows = math.isqrt(length - 1) + 1
  columns = -(-length // rows)
  rounds = _rounds(key)
  while True:
    left, right = divmod(index, columns)
    for even, odd in rounds:
      left = (left + _mixed(even, right)) % rows
      right = (right + _mixed(odd, left)) % columns
    index = left * columns + right
    if index < length:
      return index


def record_id(row, length, seed=0, shuffle=True):
  """Which record is read at a global row.

  Args:
    row: place in the run's order, an int in [0, 2**64).
    length: records in the dataset.
    seed: any int; it and the epoch choose the epoch's permutation.
    shuffle: False reads every epoch in stored order.

  Returns:
    int in [0, length). Every record appears once an epoch, i.e. once in each `length` rows.

  Raises:
    ValueError: `length` is not positive or `row` is negative.
  """
  if length < 1:
    raise ValueError(f"cannot order a dataset of {length} records; it needs at least one")
  if row < 0:
    raise ValueError(f"row must be >= 0, got {row}")
  epoch, index = divmod(row, length)
  return permute(index, length, mix(seed, epoch)) if shuffle else index
