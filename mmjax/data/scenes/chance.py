"""Random choices that are the same on every machine and in every Python version.

Only `random.Random.random` is used: Python guarantees its sequence for a given seed, while the
algorithms behind `choice` and `shuffle` may change.
"""

import hashlib
import random


def stream(*names):
  """A random stream that depends on `names` only, e.g. `stream(seed, "train", 7, "layout")`."""
  digest = hashlib.blake2b("/".join(map(str, names)).encode(), digest_size=8).digest()
  return random.Random(int.from_bytes(digest, "big"))


def uniform(rng, low, high):
  """A float in [low, high)."""
  return low + (high - low) * rng.random()


def pick(rng, items):
  """One of `items`, all equally likely."""
  return items[int(rng.random() * len(items))]


def coin(rng, probability=0.5):
  """True with the given probability."""
  return rng.random() < probability


def shuffled(rng, items):
  """A list of `items` in random order (Fisher-Yates)."""
  items = list(items)
  for i in range(len(items) - 1, 0, -1):
    j = int(rng.random() * (i + 1))
    items[i], items[j] = items[j], items[i]
  return items
