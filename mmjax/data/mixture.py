"""Weighted mixtures of streams in which every prefix holds the right share of each component.

The components take turns by a fixed periodic schedule: component j's k-th turn falls in the window
in which an ideal, fluid sharing would serve it (proportional fairness, Baruah et al. 1996,
"Proportionate Progress"; earliest deadline first meets every window on one processor). The schedule
is a table, so any row is found in one look-up.
"""

import dataclasses
import fractions
import functools
import heapq
import math

import numpy as np

# Six decimals of a weight are exact. A longer period costs memory and start-up time (1 s at this
# length).
MAX_PERIOD = 1_000_000


def exact_weights(weights):
  """Weights as integers whose sum is the schedule's period.

  Args:
    weights: positive numbers, in any unit; a float stands for its shortest decimal, so 0.1 is one
      tenth.

  Returns:
    tuple of int, in lowest terms. If the period would exceed MAX_PERIOD the shares are rounded to
    multiples of 1 / MAX_PERIOD (each at least one).

  Raises:
    ValueError: no weights, or one that is not a positive finite number.
  """
  if not weights:
    raise ValueError("a mixture needs at least one component")
  for i, weight in enumerate(weights):
    if not (math.isfinite(weight) and weight > 0):
      raise ValueError(f"mixture weight {i} is {weight}; weights must be positive and finite")
  exact = [fractions.Fraction(str(weight)) for weight in weights]
  shares = [weight / sum(exact) for weight in exact]
  if not _fits(shares):
    shares = [_simplest(share) for share in shares]
  if not _fits(shares) or sum(shares) != 1:
    shares = [fractions.Fraction(max(1, round(share * MAX_PERIOD))) for share in shares]
  scale = math.lcm(*(share.denominator for share in shares))
  turns = [int(share * scale) for share in shares]
  return tuple(turn // math.gcd(*turns) for turn in turns)


def _fits(shares):
  return math.lcm(*(share.denominator for share in shares)) <= MAX_PERIOD


def _simplest(share):
  """The simple fraction that a float was meant to be: 0.3333333333333333 is one third."""
  simple = share.limit_denominator(1000)
  return simple if abs(share - simple) < 1e-12 else share


@functools.lru_cache(maxsize=16)
def schedule(turns):
  """One period of turns.

  Args:
    turns: tuple of int, each component's turns in a period.

  Returns:
    (component, rank): int32 [T] arrays over the period; slot t is the rank[t]-th turn (from 0) of
    component[t]. After any n slots component j has had more than n * share - 1 and less than
    n * share + 1 turns.
  """
  period = sum(turns)
  windows = sorted((k * period // a, -(-(k + 1) * period // a), j, k)
                   for j, a in enumerate(turns) for k in range(a))
  component, rank = np.zeros(period, np.int32), np.zeros(period, np.int32)
  ready, next_window = [], 0
  for slot in range(period):
    while next_window < period and windows[next_window][0] <= slot:
      heapq.heappush(ready, windows[next_window][1:])
      next_window += 1
    _, component[slot], rank[slot] = heapq.heappop(ready)
  return component, rank


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Rows of several streams, each with its share of the rows and its own epochs.

  Attributes:
    streams: tuple of Stream, all of one record spec. Give them different seeds, or their draws
      coincide.
    weights: share of each, in any unit.
    max_bad_fraction, max_bad: the limit on bad records, as in Stream.
  """

  streams: tuple
  weights: tuple
  max_bad_fraction: float = 0.01
  max_bad: int | None = None

  def __post_init__(self):
    if len(self.streams) != len(self.weights):
      raise ValueError(f"mixture: {len(self.streams)} streams but {len(self.weights)} weights")
    exact_weights(tuple(self.weights))

  @functools.cached_property
  def turns(self):
    """Each component's exact integer weight; its share is turns[j] / sum(turns)."""
    return exact_weights(tuple(self.weights))

  @functools.cached_property
  def spec(self):
    """{key: (shape, dtype)} of a record, the same for every component (see Stream.spec)."""
    first = self.streams[0].spec
    for j, stream in enumerate(self.streams):
      if stream.spec != first:
        raise ValueError(
            f"mixture: component {j} ({stream.name}) has records {stream.spec}, "
            f"component 0 ({self.streams[0].name}) has {first}; make their transforms end alike")
    return first

  def place(self, row):
    """(component, the component's own row) at a global row."""
    component, rank = schedule(self.turns)
    period, slot = divmod(row, len(component))
    j = int(component[slot])
    return j, period * self.turns[j] + int(rank[slot])

  def record(self, row):
    """The record at a global row, as Stream.record."""
    j, own_row = self.place(row)
    return self.streams[j].record(own_row)
