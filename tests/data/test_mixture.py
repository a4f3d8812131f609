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


class Numbered:
  """A stream whose record tells its own row."""

  def __init__(self, name, length):
    self.name, self._length = name, length

  def __len__(self):
    return self._length

  def record(self, row):
    return self.name, row


def limited(lengths, weights, epochs):
  streams = tuple(Numbered(f"s{j}", length) for j, length in enumerate(lengths))
  return mixture.Mixture(streams, tuple(weights), tuple(epochs))


@pytest.mark.parametrize("lengths, weights, epochs", (
    ((10, 10, 10), (1, 2, 3), (1, 2, 1)), ((7, 100), (5, 1), (3, None)), ((3, 5, 8), (0.2, 0.3, 0.5), (1.5, 1, 0.1)),
    ((10, 10), (1, 1), (1, 1)), ((4, 4, 400), (1, 1, 7), (2, None, None))))
def test_parts_with_epochs_end_there_and_the_others_go_on_in_their_own_order(lengths, weights, epochs):
  mix = limited(lengths, weights, epochs)
  rows = mix.rows if mix.rows is not None else 500
  seen = [mix.place(row) for row in range(rows)]
  assert seen == [mix.place(row) for row in reversed(range(rows))][::-1]  # of the row alone
  for j, (length, limit) in enumerate(zip(lengths, epochs)):
    own = [row for k, row in seen if k == j]
    assert own == list(range(len(own)))  # no turn is left out, none is had twice
    if limit is not None:
      assert len(own) <= max(1, round(limit * length))
  assert [share.rows for share in mix.shares(rows)] == [sum(k == j for k, _ in seen) for j in range(len(lengths))]
  if mix.rows is not None:
    assert [share.rows for share in mix.shares(rows)] == [
        max(1, round(limit * length)) for length, limit in zip(lengths, epochs)]
    with pytest.raises(IndexError, match=f"the mixture ends after {rows} rows"):
      mix.place(rows)


def test_shares_among_those_that_are_left_are_their_weights():
  mix = limited((10, 1000, 1000), (1, 1, 3), (1, None, None))
  ends = mix.shares(4000)[0].ends
  counts = np.bincount([mix.place(row)[0] for row in range(ends, ends + 400)], minlength=3)
  assert counts.tolist() == [0, 100, 300]
  assert mix.shares(ends)[0].rows == 10 and mix.shares(ends - 1)[0].rows == 9


def test_without_limits_the_order_is_as_before():
  plain, limits = limited((10, 10), (1, 3), ()), limited((10, 10), (1, 3), (None, None))
  assert [plain.place(row) for row in range(99)] == [limits.place(row) for row in range(99)]
  assert plain.rows is None


def test_what_a_run_reads_of_each_record():
  share = limited((10, 30), (1, 1), ()).shares(50)[0]
  assert share == ("s0", 10, 25, 2, 5, None)  # 25 rows: five records are read a third time
  assert mixture.share(Numbered("x", 8), 8) == ("x", 8, 8, 1, 0, None)


@pytest.mark.parametrize("temperature, caps, want", (
    (1, (None, None), (0.1, 0.9)), (1, (None, 300), (0.25, 0.75)), (2, (None, None), (0.25, 0.75)),
    (1e9, (None, None), (0.5, 0.5))))
def test_shares_follow_the_records_their_caps_and_the_temperature(temperature, caps, want):
  weights = np.array(mixture.shares_by_size((100, 900), (1, 1), caps, temperature))
  np.testing.assert_allclose(weights / weights.sum(), want, atol=1e-6)


def test_wrong_limits_and_temperatures_are_refused():
  with pytest.raises(ValueError, match="epochs must be above 0, not 0"):
    limited((3, 3), (1, 1), (0, None))
  with pytest.raises(ValueError, match="2 streams but 1 numbers of epochs"):
    limited((3, 3), (1, 1), (1,))
  with pytest.raises(ValueError, match="temperature: must be at least 1, not 0.5"):
    mixture.shares_by_size((1,), (1,), (None,), 0.5)
  with pytest.raises(ValueError, match="cap: must be at least 1 record, not 0"):
    mixture.shares_by_size((1,), (1,), (0,), 1)
