"""Schedules of parallel decoding: how many tokens a step decodes, and at which temperature.

All are NumPy arrays made before anything is traced. The formulas are those of 4M's code (Mizrahi et
al. 2023, arXiv:2312.06647).
"""

import math

import numpy as np

LEAST_TEMPERATURE = 1e-9
ONE_OVER_X = (1, 100)  # the stretch of x ** -power that `one_over_x` follows


def cosine(steps, tokens):
  """Tokens a step, int [steps]; about tokens * (1 + cos(pi i / steps)) / 2 are left before step i.

  Each is rounded, and the last step gets what is left. With more steps than tokens the last may be
  negative: see `check`.
  """
  left = [0.5 * (1 + math.cos(math.pi * i / steps)) for i in range(steps)]
  counts = [round(tokens * (now - after)) for now, after in zip(left, left[1:])]
  return np.array([*counts, tokens - sum(counts)])


def linear(steps, tokens):
  """Tokens a step, as equal as can be, the larger first; steps without any are left out."""
  counts = np.diff(np.linspace(0, tokens, steps + 1, dtype=int))
  return np.sort(counts[counts > 0])[::-1]


TOKENS = {"cosine": cosine, "linear": linear}


def constant_temperature(highest, counts):
  """The same temperature `highest` in all steps, float [len(counts)]."""
  return np.full(len(counts), float(highest))


def linear_temperature(highest, counts):
  """Falls from `highest` with the share of tokens that are not decoded yet, float [len(counts)]."""
  before = np.cumsum(counts) - counts
  return np.maximum(highest * (1 - before / np.sum(counts)), LEAST_TEMPERATURE)


def one_over_x(highest, counts, lowest=0.5, power=0.5):
  """Falls from below `highest` to `lowest` as x ** -power, and with the share decoded.

  4M's schedule "onex": of a curve with a value a token, the first len(counts) values are taken.
  """
  curve = np.linspace(*ONE_OVER_X, num=np.sum(counts)) ** -power
  curve = (curve - curve.min()) / (curve - curve.min()).max()
  left = 1 - np.cumsum(counts) / np.sum(counts)
  high = lowest + (highest - lowest) * left * curve[:len(counts)]
  return np.maximum(high, LEAST_TEMPERATURE)


TEMPERATURES = {"constant": constant_temperature, "linear": linear_temperature,
                "one_over_x": one_over_x}


def check(key, counts, tokens):
  """Raises ValueError, naming the setting `key`, if `counts` do not divide `tokens` into steps."""
  if np.sum(counts) != tokens or np.min(counts) < 0:
    raise ValueError(f"{key}: {len(counts)} steps cannot decode {tokens} tokens; take fewer steps")
