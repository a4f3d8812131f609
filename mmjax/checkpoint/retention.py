"""Which checkpoints stay: the last few, multiples of a number, the best by a metric."""

import math


def kept(metrics, keep_last, keep_every_steps=None, keep_best=None):
  """The steps to keep.

  Args:
    metrics: {step: {metric name: value}} of every complete checkpoint.
    keep_last: how many of the newest stay, at least 1.
    keep_every_steps: multiples of it stay for ever; None for none.
    keep_best: (metric name, "max" or "min", how many); of equal ones the later is better. A
      checkpoint without the metric, or with NaN, is never among the best. None for none.

  Returns:
    A set of steps; the newest is always in it.
  """
  steps = sorted(metrics)
  keep = set(steps[-keep_last:])
  if keep_every_steps:
    keep |= {step for step in steps if step % keep_every_steps == 0}
  if keep_best:
    name, mode, count = keep_best
    sign = 1 if mode == "max" else -1
    value = {step: metrics[step].get(name, math.nan) for step in steps}
    ranked = sorted((sign * value[step], step) for step in steps if not math.isnan(value[step]))
    keep |= {step for _, step in ranked[-count:]}
  return keep


def check(keep_last, keep_every_steps, keep_best):
  """Raises ValueError if a rule of `kept` makes no sense."""
  if keep_last < 1:
    raise ValueError(f"keep_last must be at least 1, not {keep_last}.")
  if keep_every_steps is not None and keep_every_steps < 1:
    raise ValueError(f"keep_every_steps must be at least 1 or None, not {keep_every_steps}.")
  if keep_best is not None:
    well_formed = len(keep_best) == 3 and keep_best[1] in ("max", "min") and keep_best[2] >= 1
    if not well_formed:
      raise ValueError(
        f"keep_best must be (metric name, 'max' or 'min', how many >= 1), not {keep_best!r}.")
