"""The fast filters are Pillow's."""

import concurrent.futures

import numpy as np
import pytest

from mmjax.data import resampling


def pictures(count, smooth):
  """Pairs (picture, size) of many sizes, of one or three channels."""
  rng = np.random.default_rng(0)
  for _ in range(count):
    height, width, *size = (int(n) for n in rng.integers(1, 300, 4))
    noise = rng.integers(0, 256, (height, width, int(rng.choice([1, 3])))).astype(np.uint8)
    if smooth:  # away from black and white, so that no overshoot is clipped
      rows, columns = np.mgrid[:height, :width]
      noise = (100 + 40 * np.sin(rows / 9 + columns / 7)[..., None] + noise % 16).astype(np.uint8)
    yield noise, tuple(size)


def difference(picture, size, name):
  ours, pillows = (resampling.resize(picture, size, one) for one in (name, f"pillow_{name}"))
  assert ours.shape == pillows.shape == (*size, picture.shape[2]) and ours.dtype == np.uint8
  return np.abs(ours.astype(int) - pillows).max()


def test_bilinear_is_within_one_level_of_pillow_on_noise_of_any_size():
  assert max(difference(*one, "bilinear") for one in pictures(60, smooth=False)) == 1


@pytest.mark.parametrize("name", ("bicubic", "lanczos"))
def test_filters_that_overshoot_are_within_two_levels_of_pillow(name):
  assert max(difference(*one, name) for one in pictures(60, smooth=True)) <= 2


def test_threads_do_not_disturb_each_other():
  todo = list(pictures(40, smooth=False))
  alone = [resampling.resize(*one, "bilinear") for one in todo]
  with concurrent.futures.ThreadPoolExecutor(4) as threads:
    together = list(threads.map(lambda one: resampling.resize(*one, "bilinear"), todo * 3))
  for a, b in zip(alone * 3, together):
    np.testing.assert_array_equal(a, b)


def test_what_is_not_of_eight_bits_is_pillows():
  depth = np.random.default_rng(0).uniform(0, 9, (20, 30, 1)).astype(np.float32)
  np.testing.assert_array_equal(resampling.resize(depth, (7, 9), "bilinear"),
                                resampling.resize(depth, (7, 9), "pillow_bilinear"))
