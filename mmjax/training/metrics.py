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
  """Means over consecutive steps, nan where nothing had weight; `first`, `last`: None if empty."""

  first: int | None
  last: int | None
  values: dict[str, float]


class HostMetrics:
  """Merges metrics in float64 on the host, some steps behind the device.

  The values of a step are read when `lag` later steps have been launched. Waiting for them then
  leaves the device with work, so the loop never waits for the step that it has just launched; and
  which steps a window covers depends on the order of calls alone, not on timing.
  """

  def __init__(self, lag: int = 1):
    if lag < 0:
      raise ValueError(f"lag={lag} must not be negative")
    self._lag = lag
    self._pending = collections.deque()      # (step, {name: sum and weight, on the device})
    self._clear()

  def push(self, step: int, metrics: Mapping[str, Any]) -> None:
    """Takes a step's metrics (scalar `.sum` and `.weight`); reads those of `lag` steps ago."""
    for leaf in jax.tree.leaves(metrics):
      if isinstance(leaf, jax.Array):
        leaf.copy_to_host_async()
    self._pending.append((step, dict(metrics)))
    while len(self._pending) > self._lag:
      self._read()

  def drain(self) -> None:
    """Reads all that is pending; waits for the device: before checkpoints, evaluations, the end."""
    while self._pending:
      self._read()

  def take(self) -> Window:
    """The means of the steps read since the last `take`. Never waits."""
    with np.errstate(divide="ignore", invalid="ignore"):
      values = {name: float(total / weight) for name, (total, weight) in self._sums.items()}
    window = Window(self._first, self._last, values)
    self._clear()
    return window

  def _read(self):
    step, metrics = self._pending.popleft()
    self._first = step if self._first is None else self._first
    self._last = step
    for name, metric in metrics.items():
      pair = np.array([np.asarray(metric.sum), np.asarray(metric.weight)], np.float64)
      self._sums[name] = self._sums.get(name, 0) + pair

  def _clear(self):
    self._first, self._last, self._sums = None, None, {}
