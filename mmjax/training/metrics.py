"""Metrics on the host: the device's float32 (sum, weight) pairs, merged in float64.

A mean is divided only where it is reported, so that it is the same whatever the micro-batches, the
padding, the devices and the number of steps it was taken over.
"""

import collections
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np


class Window(NamedTuple):
  """Means over the steps `first` to `last`; what had no weight in any of them is left out."""

  first: int
  last: int
  values: dict[str, float]


class HostMetrics:
  """Merges metrics in float64 on the host, some steps behind the device.

  The values of a step are read when `lag` later steps have been launched. Waiting for them then
  leaves the device with work, so the loop never waits for the step that it has just launched.
  A window ends at every multiple of `every`, whenever it is read, so windows depend on steps alone.

  Args:
    every: steps a window.
    lag: how many steps behind the newest one the host reads.
  """

  def __init__(self, every: int, lag: int = 1):
    if every < 1 or lag < 0:
      raise ValueError(f"every={every} must be positive, lag={lag} must not be negative")
    self._every, self._lag = every, lag
    self._pending = collections.deque()      # (step, {name: sum and weight, on the device})
    self._first, self._last, self._sums = None, None, {}

  def push(self, step: int, metrics: Mapping[str, Any]) -> list[Window]:
    """Takes a step's metrics (scalar `.sum` and `.weight`), reads older ones; the windows that ended."""
    for leaf in jax.tree.leaves(metrics):
      if isinstance(leaf, jax.Array):
        leaf.copy_to_host_async()
    self._pending.append((step, dict(metrics)))
    return self._read(self._lag)

  def drain(self) -> list[Window]:
    """Reads all that is pending, which waits for the device; the last window may be cut short."""
    windows = self._read(0)
    return windows + [self._end(self._last)] if self._sums else windows

  def _read(self, leave: int) -> list[Window]:
    windows = []
    while len(self._pending) > leave:
      step, metrics = self._pending.popleft()
      self._first = step if self._first is None else self._first
      self._last = step
      for name, metric in metrics.items():
        pair = np.array([np.asarray(metric.sum), np.asarray(metric.weight)], np.float64)
        self._sums[name] = self._sums.get(name, 0) + pair
      if step % self._every == 0:
        windows.append(self._end(step))
    return windows

  def _end(self, last: int) -> Window:
    values = {name: float(total / weight) for name, (total, weight) in self._sums.items() if weight}
    window = Window(self._first, last, values)
    self._first, self._sums = None, {}
    return window
