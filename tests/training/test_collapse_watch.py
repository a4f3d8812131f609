"""A run says once that a monitor stays below its threshold, and not before it stays there."""

import math

import pytest

from mmjax import train
from mmjax.objectives.contrastive import Contrastive
from mmjax.training import collapse
from tests.training import tiny


def lines(values, total_steps=100, every=5):
  watch = collapse.Watch(total_steps)
  return [line for i, value in enumerate(values) for line in watch.look(
      1 + i * every, (i + 1) * every, {"effective_rank": value}, {"effective_rank": 2.0})]


def test_a_metric_that_stays_low_is_reported_once():
  found = lines([9, 1.5, 1.2, 1.1, 1.0, 1.0])
  assert len(found) == 1
  assert found[0].startswith("since step 6 effective_rank = 1.1 has been below 2: ")


def test_a_metric_that_recovers_is_not_reported():
  assert not lines([1, 1, 3, 1, 1, 3])


def test_a_window_without_a_measurement_does_not_count():
  assert len(lines([1, math.nan, 1, math.nan, 1])) == 1
  assert not lines([1, math.nan, math.nan, math.nan, 1])


def test_a_long_run_may_begin_low_for_longer():
  assert not lines([1] * 5, total_steps=10_000)
  assert len(lines([1] * 40, total_steps=10_000)) == 1


@pytest.mark.slow
def test_a_run_whose_metric_stays_low_warns(tmp_path, caplog, monkeypatch):
  monkeypatch.setattr(Contrastive, "collapsed_below", lambda self, batch_size: {"pair_cosine": 1.5})
  pairs = tiny.write_pairs(tmp_path / "pairs.npz")
  with caplog.at_level("WARNING", logger="mmjax"):
    train.train(tiny.config(pairs, eval_data=None), str(tmp_path / "run"))
  assert caplog.text.count("has been below 1.5: the features are collapsing") == 1
