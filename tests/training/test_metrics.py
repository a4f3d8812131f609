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
  host = HostMetrics(lag=0)
  host.push(0, {"x": Term(np.float32(2**24), np.float32(2**24))})
  for step in range(1, 4):
    host.push(step, {"x": Term(np.float32(1), np.float32(0))})   # lost if added in float32
  assert host.take().values["x"] == (2**24 + 3) / 2**24


def test_host_reads_a_step_only_after_lag_later_ones():
  host = HostMetrics(lag=2)

  class Unfinished:
    """A value that the device has not computed yet."""
    sum = property(lambda self: pytest.fail("read the step just launched"))
    weight = sum

  host.push(0, {"loss": weigh(jnp.ones(3))})
  host.push(1, {"loss": Unfinished()})
  host.push(2, {"loss": Unfinished()})
  assert host.take() == (0, 0, {"loss": 1.0})
  assert host.take() == (None, None, {})


def test_windows_cover_each_step_once():
  host, windows = HostMetrics(lag=1), []
  for step in range(10):
    host.push(step, {"step": weigh(jnp.float32(step))})
    if step % 4 == 3:
      windows.append(host.take())
  host.drain()
  windows.append(host.take())
  assert [(w.first, w.last) for w in windows] == [(0, 2), (3, 6), (7, 9)]
  assert [w.values["step"] for w in windows] == [1.0, 4.5, 8.0]


def test_nothing_weighed_is_nan():
  host = HostMetrics(lag=0)
  host.push(0, {"loss": Term.empty()})
  assert np.isnan(host.take().values["loss"])
