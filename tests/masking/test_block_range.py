"""Blockwise masks whose ratio each row draws."""

import jax
import numpy as np
import pytest

from mmjax.masking.block_range import BlockRange

GRID = (14, 14)


@pytest.fixture(scope="module")
def mask():
  keys = jax.random.split(jax.random.key(0), 200)
  return jax.device_get(jax.jit(lambda keys: BlockRange()(keys, GRID))(keys))


def test_half_the_rows_are_masked_by_ratios_of_the_range(mask):
  ratio = mask.used.sum(1) / 196
  some = ratio > 0
  assert some.mean() == pytest.approx(0.5, abs=0.11)  # three standard deviations of 200 draws
  assert 0.1 <= ratio[some].min() < 0.14 and 0.46 < ratio[some].max() <= 0.5
  assert ratio[some].mean() == pytest.approx(0.3, abs=0.03)


def test_parts_make_the_whole_and_only_used_tokens_are_masked(mask):
  places = np.concatenate([mask.keep, mask.drop], axis=1)
  np.testing.assert_array_equal(np.sort(places, axis=1), np.tile(np.arange(196), (200, 1)))
  assert (np.diff(mask.drop, axis=1) > 0).all()
  masked = np.asarray(jax.device_get(type(mask)(*map(jax.numpy.asarray, mask)).masked))
  np.testing.assert_array_equal(np.take_along_axis(masked, mask.drop, 1), mask.used)
  np.testing.assert_array_equal(masked.sum(1), mask.used.sum(1))


def test_what_is_masked_lies_in_blocks(mask):
  masked = np.zeros((200, 196), bool)
  np.put_along_axis(masked, mask.drop, mask.used, axis=1)
  masked = masked[masked.any(1)].reshape(-1, *GRID)
  alike = (masked[:, :, 1:] & masked[:, :, :-1]).sum() / masked[:, :, :-1].sum()
  assert alike > 0.7  # of independent tokens 0.3, their ratio


@pytest.mark.parametrize("bad, message", [
    (dict(low=0.6), "low=0.6"), (dict(high=1.5), "high=1.5"),
    (dict(probability=0.0), "probability=0"),
    (dict(least=0), "least=0"), (dict(aspect=2.0), "aspect=2")])
def test_bad_numbers_are_named(bad, message):
  with pytest.raises(ValueError, match=message):
    BlockRange(**bad)


def test_a_range_that_leaves_no_token_is_named():
  with pytest.raises(ValueError, match="high=1.0: masks 16 of 16 tokens"):
    BlockRange(high=1.0)(jax.random.split(jax.random.key(0), 2), (4, 4))
