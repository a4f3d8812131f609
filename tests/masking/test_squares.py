"""Masks of squares of tokens (SimMIM)."""

import jax
import numpy as np
import pytest

from mmjax.masking.squares import Squares


def test_squares_are_masked_as_a_whole_and_in_the_exact_share():
  mask = Squares(ratio=0.6, side=2)(jax.random.split(jax.random.key(0), 5), (4, 6))
  squares = np.asarray(mask.masked).reshape(5, 2, 2, 3, 2).transpose(0, 1, 3, 2, 4).reshape(5, 6, 4)
  assert (squares.all(axis=2) | ~squares.any(axis=2)).all()
  assert (squares.all(axis=2).sum(axis=1) == 4).all()  # 6 - floor(6 * 0.4)
  both = np.sort(np.concatenate([mask.keep, mask.drop], axis=1), axis=1)
  np.testing.assert_array_equal(both, np.tile(np.arange(24), (5, 1)))
  assert len(np.unique(mask.masked, axis=0)) > 1


@pytest.mark.parametrize("grid", [(3, 4), (4, 3), (2, 4, 4)])
def test_a_side_that_does_not_divide_the_grid_is_refused(grid):
  with pytest.raises(ValueError, match="side=2: does not divide a grid of " + "x".join(map(str, grid))):
    Squares(side=2)(jax.random.split(jax.random.key(0), 1), grid)


def test_a_side_of_nothing_is_refused():
  with pytest.raises(ValueError, match="side=0: must be at least 1"):
    Squares(side=0)
