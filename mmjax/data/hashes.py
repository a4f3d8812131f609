"""Hashes by which equal and nearly equal pictures are found."""

import hashlib

import cv2
import numpy as np
import scipy.fft

SIDE, LOW = 32, 8  # pixels of the small picture, and frequencies of it that are kept


def exact(data: bytes) -> int:
  """64 bits of a file's BLAKE2b."""
  return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def perceptual(image: np.ndarray) -> int:
  """64 bits that stay nearly the same when a picture is scaled or compressed anew.

  The signs, about their median, of the lowest 8 x 8 frequencies of the grey picture at 32 x 32 pixels
  ("pHash", Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions",
  sec. 3.2.1).

  Args:
    image: uint8 [H, W, 3].
  """
  grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
  small = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
  low = scipy.fft.dctn(small, norm="ortho")[:LOW, :LOW]
  bits = (low > np.median(low)).reshape(-1)
  return int(np.packbits(bits, bitorder="little").view("<u8")[0])


def first_of_equals(hashes: np.ndarray, distance: int = 0) -> np.ndarray:
  """For each hash the place of the first one that it is a duplicate of, or its own.

  Going through the hashes in order, one is a duplicate of the earliest kept one within `distance`, so
  that what is kept depends on the order of the hashes alone. Two hashes that differ in at most d bits
  agree in one of d + 1 pieces of their bits, so that only those are compared.

  Args:
    hashes: uint64 [N].
    distance: bits in which duplicates may differ, 0 to 15.

  Returns:
    int64 [N]. Those with result[i] == i are kept.

  Raises:
    ValueError: `distance` is out of range.
  """
  if not 0 <= distance <= 15:
    raise ValueError(f"distance: expected 0 to 15 bits, not {distance}")
  distinct, places, inverse = np.unique(hashes, return_index=True, return_inverse=True)
  order = np.argsort(places, kind="stable")  # of the distinct ones, by their first place
  representative = np.arange(len(distinct))
  if distance:
    near = _neighbours(distinct, distance)
    rank = np.empty(len(distinct), np.int64)
    rank[order] = np.arange(len(distinct))
    kept = np.ones(len(distinct), bool)
    for one in order:
      if kept[one]:
        later = [other for other in near.get(int(one), ()) if kept[other] and rank[other] > rank[one]]
        kept[later] = False
        representative[later] = one
  return places[representative][inverse].astype(np.int64)


def _neighbours(distinct, distance):
  """{place: places of the others within `distance`}."""
  near = {}
  edges = np.linspace(0, 64, distance + 2).astype(int)
  for low, high in zip(edges[:-1], edges[1:]):
    piece = (distinct >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
    order = np.argsort(piece, kind="stable")
    ends = np.flatnonzero(np.diff(piece[order])) + 1
    for group in np.split(order, ends):
      if len(group) < 2:
        continue
      for i, one in enumerate(group[:-1]):
        others = group[i + 1:]
        for other in others[np.bitwise_count(distinct[others] ^ distinct[one]) <= distance]:
          near.setdefault(int(one), set()).add(int(other))
          near.setdefault(int(other), set()).add(int(one))
  return {one: sorted(others) for one, others in near.items()}
