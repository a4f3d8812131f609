"""Mixtures are exact in every prefix, and any row is found without walking to it."""

import numpy as np
import pytest

from mmjax.data import mixture

WEIGHTS = [(1,), (0.7, 0.3), (1, 1, 1), (1 / 3, 2 / 3), (0.12345, 0.5, 0.37655), (5, 3, 3, 1, 1),
           (0.9, 0.02, 0.02, 0.02, 0.02, 0.02)]


def place(weights, rows):
  mixed = mixture.Mixture(streams=(None,) * len(weights), weights=weights)
  return np.array([mixed.place(row) for row in rows])


@pytest.mark.parametrize("weights", WEIGHTS)
def test_every_prefix_holds_each_share_to_within_one(weights):
  n = 3000
  component = place(weights, range(n))[:, 0]
  counts = np.cumsum(component[:, None] == np.arange(len(weights)), axis=0)  # [n, components]
  ideal = np.arange(1, n + 1)[:, None] * np.array(weights) / sum(weights)
  assert np.max(np.abs(counts - ideal)) <= 1


@pytest.mark.parametrize("weights", WEIGHTS)
def test_a_component_reads_its_own_rows_in_order_without_gaps(weights):
  placed = place(weights, range(2000))
  for j in range(len(weights)):
    own = placed[placed[:, 0] == j, 1]
    np.testing.assert_array_equal(own, np.arange(len(own)))


def test_a_row_far_away_continues_the_count():
  weights, far = (5, 3, 1), 2**50
  j, own = place(weights, [far])[0]
  assert abs(own - far * weights[j] / 9) <= 1
  following = place(weights, range(far, far + 18))
  for j in range(3):
    assert np.all(np.diff(following[following[:, 0] == j, 1]) == 1)


def test_weights_are_reduced_and_exact_to_six_decimals():
  assert mixture.exact_weights((0.1, 0.2)) == (1, 2)
  assert mixture.exact_weights((0.123457, 0.876543)) == (123457, 876543)
  assert mixture.exact_weights((1 / 3, 2 / 3)) == (1, 2)


def test_irrational_weights_are_rounded_to_the_period():
  turns = np.array(mixture.exact_weights((2**0.5, 3**0.5, 1.0)))
  weights = np.array((2**0.5, 3**0.5, 1.0))
  assert np.max(np.abs(turns / turns.sum() - weights / weights.sum())) < 2 / mixture.MAX_PERIOD


@pytest.mark.parametrize("weights", [(), (1, 0), (1, -2), (1, float("nan")), (1, float("inf"))])
def test_bad_weights_are_refused(weights):
  with pytest.raises(ValueError):
    mixture.exact_weights(weights)


def test_streams_and_weights_must_pair_up():
  with pytest.raises(ValueError, match="2 streams but 1 weights"):
    mixture.Mixture(streams=(None, None), weights=(1,))
