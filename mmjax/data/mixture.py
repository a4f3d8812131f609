"""Weighted mixtures of streams in which every prefix holds the right share of each component.

The components take turns by a fixed periodic schedule: component j's k-th turn falls in the window
in which an ideal, fluid sharing would serve it (proportional fairness, Baruah et al. 1996,
"Proportionate Progress"; earliest deadline first meets every window on one processor). The schedule
is a table, so any row is found in one look-up.
"""

import bisect
import dataclasses
import fractions
import functools
import heapq
import math
import typing

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


def shares_by_size(sizes, weights, caps, temperature):
  """Weights that follow from how many records there are.

  Share j is proportional to (weights[j] * min(sizes[j], caps[j])) ** (1 / temperature): in proportion to
  the records at 1, towards equal shares above (Raffel et al. 2020, arXiv:1910.10683, sec. 3.5.2, where
  a cap is the artificial limit K).

  Args:
    sizes: records of each source.
    weights: positive factors.
    caps: records, None for no cap.
    temperature: at least 1.

  Raises:
    ValueError: the temperature is below 1, or a cap below 1.
  """
  if not temperature >= 1:
    raise ValueError(f"temperature: must be at least 1, not {temperature}")
  counts = []
  for size, cap in zip(sizes, caps):
    if cap is not None and cap < 1:
      raise ValueError(f"cap: must be at least 1 record, not {cap}")
    counts.append(size if cap is None else min(size, cap))
  return tuple((weight * count) ** (1 / temperature) for weight, count in zip(weights, counts))


class Phase(typing.NamedTuple):
  """Rows over which the same components take turns.

  Attributes:
    first: the first global row.
    alive: numbers of these components.
    begins: the own row of each component, alive or not, at `first`.
  """

  first: int
  alive: tuple
  begins: tuple


class Share(typing.NamedTuple):
  """What a run reads of a source: `rows` of its `records`, each `least` or `least` + 1 times; `again` of
  them the latter. `ends` is the global row at which its epochs are used up, None if they are not."""

  name: str
  records: int
  rows: int
  least: int
  again: int
  ends: int | None


@dataclasses.dataclass(frozen=True)
class Mixture:
  """Rows of several streams, each with its share of the rows and its own epochs.

  Attributes:
    streams: tuple of Stream, all of one record spec. Give them different seeds, or their draws
      coincide.
    weights: share of each, in any unit.
    epochs: how often each is read at most, None for no limit; () for no limits. When a stream has been
      read so often, the others share its rows in proportion to their weights.
    max_bad_fraction, max_bad: the limit on bad records, as in Stream.
    where: the mixture's place in the config, as in Stream.
  """

  streams: tuple
  weights: tuple
  epochs: tuple = ()
  max_bad_fraction: float = 0.01
  max_bad: int | None = None
  where: str = ""

  def __post_init__(self):
    if len(self.streams) != len(self.weights):
      raise ValueError(f"mixture: {len(self.streams)} streams but {len(self.weights)} weights")
    if self.epochs and len(self.epochs) != len(self.streams):
      raise ValueError(f"mixture: {len(self.streams)} streams but {len(self.epochs)} numbers of epochs")
    for epochs in self.epochs:
      if epochs is not None and not epochs > 0:
        raise ValueError(f"mixture: epochs must be above 0, not {epochs}")
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

  @functools.cached_property
  def limits(self):
    """Rows that each component has at most, or None."""
    epochs = self.epochs or (None,) * len(self.streams)
    return tuple(None if one is None else max(1, round(one * len(stream)))
                 for one, stream in zip(epochs, self.streams))

  @functools.cached_property
  def phases(self):
    """Phases in order; a last one without components if all have limits."""
    alive, begins, first, found = tuple(range(len(self.streams))), (0,) * len(self.streams), 0, []
    while True:
      found.append(Phase(first, alive, begins))
      limited = [j for j in alive if self.limits[j] is not None]
      if not limited:
        return tuple(found)
      rows, j = min((self._row_of(alive, j, self.limits[j] - 1 - begins[j]) + 1, j) for j in limited)
      taken = self._taken(alive, rows)
      begins = tuple(begin + taken[k] for k, begin in enumerate(begins))
      alive, first = tuple(k for k in alive if k != j), first + rows

  def _row_of(self, alive, j, own):
    """The row, counted from the phase's first, at which component j has its turn number `own`."""
    component, rank = schedule(tuple(self.turns[k] for k in alive))
    periods, turn = divmod(own, self.turns[j])
    slots = np.flatnonzero(component == alive.index(j))
    return periods * len(component) + int(slots[rank[slots] == turn][0])

  def _taken(self, alive, rows):
    """Turns of each component among the first `rows` rows of a phase."""
    component, _ = schedule(tuple(self.turns[k] for k in alive))
    periods, rest = divmod(rows, len(component))
    among = np.bincount(component[:rest], minlength=len(alive))
    taken = dict.fromkeys(range(len(self.streams)), 0)
    return taken | {k: periods * self.turns[k] + int(among[i]) for i, k in enumerate(alive)}

  @property
  def rows(self):
    """Rows until every component has reached its limit; None if one has none."""
    return None if self.phases[-1].alive else self.phases[-1].first

  def place(self, row):
    """(component, the component's own row) at a global row.

    Raises:
      IndexError: all components have reached their epochs before.
    """
    phase = self.phases[bisect.bisect_right(self.phases, row, key=lambda phase: phase.first) - 1]
    if not phase.alive:
      raise IndexError(f"row {row}: the mixture ends after {phase.first} rows, when all of its parts have "
                       "been read as often as their epochs say")
    component, rank = schedule(tuple(self.turns[k] for k in phase.alive))
    period, slot = divmod(row - phase.first, len(component))
    j = phase.alive[int(component[slot])]
    return j, phase.begins[j] + period * self.turns[j] + int(rank[slot])

  def record(self, row):
    """The record at a global row, as Stream.record."""
    j, own_row = self.place(row)
    return self.streams[j].record(own_row)

  def write(self, row, places):
    """Writes the record at a global row into a batch, as Stream.write."""
    j, own_row = self.place(row)
    return self.streams[j].write(own_row, places)

  def shares(self, rows):
    """What is read in the first `rows` rows: a Share a component."""
    taken = dict.fromkeys(range(len(self.streams)), 0)
    for i, phase in enumerate(self.phases):
      end = min(rows, self.phases[i + 1].first if i + 1 < len(self.phases) else rows)
      if phase.alive and end > phase.first:
        for k, count in self._taken(phase.alive, end - phase.first).items():
          taken[k] += count
    ends = {k: later.first for earlier, later in zip(self.phases, self.phases[1:])
            for k in set(earlier.alive) - set(later.alive)}
    return [share(stream, taken[k], ends.get(k)) for k, stream in enumerate(self.streams)]


def share(stream, rows, ends=None):
  """The `Share` of a stream of which `rows` rows are read."""
  least, again = divmod(rows, len(stream))
  return Share(stream.name, len(stream), rows, least, again, ends)
