"""Pixels as targets: their way to patches and back."""

import numpy as np
import pytest

from mmjax.targets.pixels import Pixels

RNG = np.random.default_rng(0)
IMAGE = {"image": RNG.normal(size=(2, 16, 24, 3)).astype(np.float32)}
VIDEO = {"video": RNG.normal(size=(2, 4, 16, 8, 3)).astype(np.float32)}


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("data, grid", [(IMAGE, (2, 3)), (VIDEO, (2, 2, 1))])
def test_what_is_predicted_perfectly_is_the_picture(normalise, data, grid):
  key = next(iter(data))
  target = Pixels(key=key, normalise=normalise)
  values, guide = target({}, data, grid)
  assert guide is None and values.shape == (2, np.prod(grid), target.size(data, grid))
  np.testing.assert_allclose(target.pixels(values, data, grid), data[key], atol=1e-5)


def test_normalised_patches_have_mean_zero_and_unbiased_variance_one():
  values = np.asarray(Pixels()({}, IMAGE, (2, 3))[0], np.float64)
  np.testing.assert_allclose(values.mean(-1), 0, atol=1e-6)
  np.testing.assert_allclose(values.var(-1, ddof=1), 1, atol=1e-5)


def test_the_first_frame_stands_for_its_patch():
  target = Pixels(key="video", normalise=False, frames=1)
  values, _ = target({}, VIDEO, (2, 2, 1))
  assert target.size(VIDEO, (2, 2, 1)) == 8 * 8 * 3 == values.shape[-1]
  np.testing.assert_array_equal(
      target.pixels(values, VIDEO, (2, 2, 1)), np.repeat(VIDEO["video"][:, ::2], 2, axis=1))


@pytest.mark.parametrize("fields, grid, message", [
    (dict(frames=0), (2, 3), "frames: at least 1"),
    (dict(frames=1), (2, 3), "target.frames: 1 of a patch of 8x8"),
    ({}, (2, 5), "16x24 does not divide into the encoder's grid of 2x5"),
    ({}, (1, 2, 3), "does not divide into the encoder's grid of 1x2x3"),
])
def test_what_does_not_fit_is_an_error(fields, grid, message):
  with pytest.raises(ValueError, match=message):
    Pixels(**fields)({}, IMAGE, grid)
