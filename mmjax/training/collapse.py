"""Says when a run's features have collapsed: see `Objective.collapsed_below`."""

import math
from collections.abc import Mapping

WINDOWS = 3   # a metric that was low once or twice may recover
SHARE = 0.02  # ... and so may one that begins low


class Watch:
  """Counts for how long each metric has been below what its objective calls collapsed.

  It has collapsed after `WINDOWS` windows in a row that cover at least `SHARE` of the run.
  """

  def __init__(self, total_steps: int):
    self._total_steps = total_steps
    self._below: dict[str, tuple[int, int]] = {}  # {metric: (first step, windows so far)}
    self._told: set[str] = set()

  def look(self, first: int, last: int, scalars: Mapping[str, float],
           least: Mapping[str, float]) -> list[str]:
    """Takes a window of the steps `first` to `last`; lines for what has just collapsed, once each.

    Args:
      scalars: means over the window; a metric that is missing or nan was not measured.
      least: {metric: the value below which it has collapsed}.
    """
    lines = []
    for name, threshold in least.items():
      value = scalars.get(name, math.nan)
      if math.isnan(value):
        continue
      if value >= threshold:
        self._below.pop(name, None)
        continue
      start, windows = self._below.get(name, (first, 0))
      self._below[name] = start, windows + 1
      long = windows + 1 >= WINDOWS and last + 1 - start >= SHARE * self._total_steps
      if long and name not in self._told:
        self._told.add(name)
        lines.append(f"since step {start} {name} = {value:.4g} has been below {threshold:.4g}: the "
                     "features are collapsing, all inputs look alike (learning rate, teacher's "
                     "momentum, centring and variance terms?)")
    return lines
