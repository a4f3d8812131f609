"""Perceptual hashes against `imagehash`'s values, and duplicates against a comparison of all pairs."""

import io

import numpy as np
from PIL import Image
import pytest

from mmjax.data import hashes


def picture(seed, size=(120, 160)):
  """A smooth random picture."""
  small = np.random.default_rng(seed).integers(0, 255, (6, 8, 3)).astype(np.uint8)
  return np.asarray(Image.fromarray(small).resize(size[::-1], Image.Resampling.BICUBIC))


def bits(a, b):
  return int(a ^ b).bit_count()


@pytest.mark.parametrize("seed", range(20))
def test_a_picture_made_smaller_or_compressed_keeps_its_perceptual_hash_and_others_have_another(seed):
  image = picture(seed)
  ours = hashes.perceptual(image)
  file = io.BytesIO()
  Image.fromarray(image).save(file, "JPEG", quality=30)
  smaller = Image.fromarray(image).resize((70, 52), Image.Resampling.LANCZOS)
  for other in (np.asarray(Image.open(file)), np.asarray(smaller), (image * 0.8).astype(np.uint8)):
    assert bits(ours, hashes.perceptual(other)) <= 4
  assert min(bits(ours, hashes.perceptual(picture(other))) for other in range(20) if other != seed) > 12
  assert bits(ours, hashes.perceptual(image[:, ::-1])) > 12


# str(imagehash.phash(picture(seed, (32, 32)))) of imagehash 4.3.2, seeds 0 to 5: bits in the order of frequencies,
# the first the highest of its digit.
IMAGEHASH = ("bc7e28359f85226a", "ad6bd68a9aa72158", "84ed0c5d7d1786e8", "97430b68266bfd94", "f0c5f81da3db4c24",
             "eb2df02c79c1823e")


@pytest.mark.parametrize("seed", range(len(IMAGEHASH)))
def test_perceptual_hash_is_that_of_imagehash_up_to_the_scaling_of_the_picture(seed):
  # Its own scaling is Lanczos; of a picture of 32 x 32 nothing is scaled.
  theirs = [int(bit) for bit in f"{int(IMAGEHASH[seed], 16):064b}"]
  ours = hashes.perceptual(picture(seed, (32, 32)))
  assert [ours >> i & 1 for i in range(64)] == theirs


def brute(values, distance):
  """The rule of `first_of_equals`, by comparing every pair."""
  first, kept = [], []
  for i, value in enumerate(values):
    same = next((k for k in kept if bits(int(values[k]), int(value)) <= distance), None)
    first.append(i if same is None else same)
    if same is None:
      kept.append(i)
  return first


@pytest.mark.parametrize("distance", (0, 1, 3, 4, 15))
def test_duplicates_are_those_of_all_pairs(distance):
  rng = np.random.default_rng(distance)
  values = rng.integers(0, 2**64, 60, np.uint64)
  for i in rng.integers(0, 60, 300):  # chains of neighbours
    flipped = np.bitwise_or.reduce(np.uint64(1) << rng.choice(64, rng.integers(0, 5), False).astype(np.uint64))
    values = np.append(values, values[rng.integers(len(values))] ^ np.uint64(flipped))
  assert hashes.first_of_equals(values, distance).tolist() == brute(values, distance)


def test_of_no_hashes_there_are_no_duplicates():
  assert hashes.first_of_equals(np.zeros(0, np.uint64), 3).tolist() == []
  with pytest.raises(ValueError, match="distance: expected 0 to 15 bits, not 16"):
    hashes.first_of_equals(np.zeros(2, np.uint64), 16)


def test_exact_hash_is_of_the_bytes():
  assert hashes.exact(b"a") == hashes.exact(b"a") != hashes.exact(b"b") and hashes.exact(b"a") < 2**64
