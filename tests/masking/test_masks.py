"""What all masks are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import masking
from mmjax.masking.random import Random


def keys(rows, seed=0):
  return jax.random.split(jax.random.key(seed), rows)


@pytest.mark.parametrize("size, ratio, count", [(196, 0.75, 147), (10, 0.3, 3), (64, 0.98, 63)])
def test_ratios_are_exact(size, ratio, count):
  mask = Random(ratio)(keys(3), (1, size))
  assert masking.dropped(size, ratio) == count == mask.drop.shape[1] == mask.masked.sum(1).max()
  both = np.concatenate([mask.keep, mask.drop], axis=1)
  np.testing.assert_array_equal(np.sort(both, 1), np.tile(np.arange(size), (3, 1)))
  np.testing.assert_array_equal(np.sort(mask.keep, 1), mask.keep)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.99, -1.0])
def test_a_ratio_that_leaves_nothing_seen_or_masked_is_refused(ratio):
  with pytest.raises(ValueError, match=f"ratio={ratio}: masks .* of 16 tokens"):
    masking.dropped(16, ratio)


def test_drop_and_restore_is_the_identity():
  x = jnp.arange(2 * 12 * 3, dtype=jnp.float32).reshape(2, 12, 3)
  mask = Random(0.5)(keys(2), (3, 4))
  take = lambda places: jnp.take_along_axis(x, places[:, :, None], axis=1)
  np.testing.assert_array_equal(masking.restore(mask, take(mask.keep), take(mask.drop)), x)
  filled = masking.restore(mask, take(mask.keep), -jnp.ones(3))
  np.testing.assert_array_equal(filled, np.where(mask.masked[..., None], -1, x))
