"""Metrics: exact under accumulation, padding and lag."""

import clu.metrics
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.objectives.contract import Term, weigh
from mmjax.training.metrics import HostMetrics


def test_metric_is_a_clu_metric_and_a_pytree():
  metric = weigh(jnp.arange(4.0))
  assert isinstance(metric, clu.metrics.Metric)
  assert [leaf.dtype for leaf in jax.tree.leaves(metric)] == [jnp.float32, jnp.float32]
  assert float(jax.jit(lambda m: m.compute())(metric)) == 1.5


def test_merged_unequal_parts_equal_the_whole():
  values, weights = jnp.asarray([1.0, 2, 3, 4, 5, 6]), jnp.asarray([1.0, 1, 0.5, 2, 1, 0.25])
  whole = weigh(values, weights)
  first, rest = (weigh(values[part], weights[part]) for part in (slice(1), slice(1, None)))
  parts = Term.empty().merge(first).merge(rest)
  assert float(parts.compute()) == float(whole.compute())
  assert float(whole.compute()) == pytest.approx(np.average(values, weights=weights), rel=1e-6)


def test_weight_zero_hides_even_nan():
  metric = weigh(jnp.asarray([2.0, jnp.nan]), jnp.asarray([True, False]))
  assert float(metric.compute()) == 2.0


def test_reduce_over_a_leading_axis_is_the_sum():
  stacked = Term(jnp.asarray([1.0, 2, 6]), jnp.asarray([1.0, 1, 1]))
  assert float(stacked.reduce().compute()) == 3.0


def test_host_merges_in_float64():
  host = HostMetrics(every=4, lag=0)
  host.push(1, {"x": Term(np.float32(2**24), np.float32(2**24))})
  for step in range(2, 4):
    host.push(step, {"x": Term(np.float32(1), np.float32(0))})   # lost if added in float32
  window, = host.push(4, {"x": Term(np.float32(1), np.float32(0))})
  assert window.values["x"] == (2**24 + 3) / 2**24


def test_host_reads_a_step_only_after_lag_later_ones():
  host = HostMetrics(every=1, lag=2)

  class Unfinished:
    """A value that the device has not computed yet."""
    sum = property(lambda self: pytest.fail("read the step just launched"))
    weight = sum

  assert host.push(1, {"loss": weigh(jnp.ones(3))}) == []
  assert host.push(2, {"loss": Unfinished()}) == []
  assert host.push(3, {"loss": Unfinished()}) == [(1, 1, {"loss": 1.0})]


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_windows_end_at_multiples_and_cover_each_step_once(lag):
  host, windows = HostMetrics(every=4, lag=lag), []
  for step in range(3, 11):  # as after a resume from step 2
    windows += host.push(step, {"step": weigh(jnp.float32(step))})
  windows += host.drain()
  assert [(w.first, w.last) for w in windows] == [(3, 4), (5, 8), (9, 10)]
  assert [w.values["step"] for w in windows] == [3.5, 6.5, 9.5]
  assert host.drain() == []


def test_what_nobody_weighed_is_left_out_and_what_is_not_finite_stays():
  host = HostMetrics(every=2, lag=0)
  nan = weigh(jnp.float32(jnp.nan))
  assert not host.push(1, {"rank": Term.empty(), "often": weigh(jnp.float32(2)), "loss": nan})
  window, = host.push(2, {"rank": Term.empty(), "often": Term.empty(), "loss": nan})
  assert window.values.keys() == {"often", "loss"}
  assert window.values["often"] == 2 and np.isnan(window.values["loss"])
