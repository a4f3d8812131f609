"""`mmjax plan --search`: which batch, remat policy and mesh suit a topology.

All candidates are estimated (`mmjax/plan/estimate.py`); few are compiled, those that may matter.
What is compiled corrects the estimates of the others. Batches differ, so FLOPs and communication
are compared by the row, and speeds in rows a second.
"""

import copy
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mmjax import config as config_lib
from mmjax.config import ConfigError
from mmjax.parallel.mesh import AXES
from mmjax.plan import cache
from mmjax.plan.compile import CompileError
from mmjax.plan.estimate import Candidate, Costs, Estimator
from mmjax.training.assemble import assemble

Node = dict[str, Any]
Planner = Callable[[Node, str, int], Node]  # (config, topology, slices) -> JSON form of a plan

MAX_COMPILES = 12
GIB, TERA = 2**30, 1e12
# An estimate drops a candidate if it exceeds the memory by more than this factor: before anything
# is compiled, and once measurements have corrected it.
FIRST_MARGIN, MARGIN = 2.0, 1.25
HEADROOM = 0.1   # of the memory that a recommended setting leaves for evaluation and input
TIE = 0.02       # speeds that differ by less are the same; the config's batch and memory decide
NEAR = 0.05      # settings that differ by less from a compiled one in everything teach nothing new
SLOW = 0.5       # of another's speed: what is slower by the estimate is not compiled

CANNOT_FIT_STATE = "the state alone does not fit"
CANNOT_FIT = "cannot fit by the estimate"
DOMINATED = "another of the same batch is at least as good by the estimate"
TOO_SLOW = f"less than {SLOW} times as fast as another of this or the config's batch"
NO_BUDGET = "may be good, but --max_compiles ran out"


@dataclasses.dataclass(frozen=True)
class Trial:
  """A candidate that was compiled.

  Attributes:
    candidate, overrides: the setting, and {config path: text} that make it.
    estimate: what it was thought to cost before.
    plan: JSON form of its plan, per chip; {} if `error`.
    cached: the plan was read from the cache.
    error: why there is no plan: the config, the model or the compiler refuses this setting.
  """

  candidate: Candidate
  overrides: dict[str, str]
  estimate: Costs
  plan: Node
  cached: bool = False
  error: str = ""

  @property
  def fits(self) -> bool:
    return bool(self.plan.get("fits"))

  @property
  def per_row(self) -> tuple[float, float, float]:
    """GiB a chip at the peak; TFLOPs a row; GiB communicated a row."""
    rows = self.candidate.batch_size / self.plan["chips"]
    return (self.plan["peak_gib"], self.plan["hardware_tflops_per_chip"] / rows,
            self.plan["comm_gib"] / rows)

  @property
  def rows_per_s(self) -> float:
    """Upper bound, of all chips."""
    return self.candidate.batch_size / self.plan["step_s_lower_bound"]


@dataclasses.dataclass(frozen=True)
class Search:
  """What a search found.

  Attributes:
    topology, slices, chips: where.
    trials: in the order in which they were compiled.
    best: those of the trials that fit which no other beats in all of memory, FLOPs and
      communication.
    recommended: the highest bound of rows a second that leaves `HEADROOM` of the memory; None if
      nothing does.
    considered: number of all candidates.
    untried: {reason: number of candidates}.
  """

  topology: str
  slices: int
  chips: int
  trials: tuple[Trial, ...]
  best: tuple[Trial, ...]
  recommended: Trial | None
  considered: int
  untried: dict[str, int]

  def to_json(self) -> Node:
    return {
        "topology": self.topology, "slices": self.slices, "chips": self.chips,
        "considered": self.considered, "untried": self.untried,
        "recommended": None if self.recommended is None else self.trials.index(self.recommended),
        "trials": [self._row(trial) for trial in self.trials]}

  def _row(self, trial: Trial) -> Node:
    candidate = trial.candidate
    mesh = dict(zip(AXES, candidate.mesh))
    row = {"batch_size": candidate.batch_size, "remat": candidate.remat, "mesh": mesh,
           "overrides": trial.overrides, "cached": trial.cached, "error": trial.error or None,
           "estimated_peak_bytes_per_device": trial.estimate.peak, "pareto": trial in self.best}
    if complete(trial):
      peak, flops, sent = trial.per_row
      row |= {"tflops_per_row": flops, "comm_gib_per_row": sent, "rows_per_s": trial.rows_per_s}
    return row | {"plan": trial.plan or None}


def search(config: Node, topology: Any, *, estimator: Estimator | None = None,
           planner: Planner | None = None, max_compiles: int = MAX_COMPILES,
           tell: Callable[[str], None] = lambda line: None) -> Search:
  """Searches batch, remat policy and mesh for a config on a topology.

  Args:
    config: as `config.load` gives it.
    topology: from `topology.find`.
    estimator: of `config` assembled for the topology's devices; default it is made here.
    planner: what compiles one candidate; default `mmjax.plan.plan`.
    max_compiles: plans to make at most, those from the cache included.
    tell: called with a line about each candidate as it is compiled.

  Raises:
    ConfigError: the config itself is wrong, or `max_compiles` below 1.
  """
  if max_compiles < 1:
    raise ConfigError(f"--max_compiles={max_compiles}: must be at least 1")
  if estimator is None:
    run = assemble(config, devices=topology.devices, example_data=True)
    estimator = Estimator(run, topology.slices)
  estimates = {c: estimator.estimate(c) for c in estimator.candidates()}
  chip, own, trials = topology.chip, estimator.own, []
  while max(_count(trials)) < max_compiles:
    left, _ = _worth_trying(estimates, trials, own, chip)
    tried = [corrected(t.candidate, t.estimate, trials, chip.devices) for t in trials]
    candidate = _next(left, tried, own, chip)
    if candidate is None:
      break
    overrides = estimator.overrides(candidate)
    trial = _try(config, topology, Trial(candidate, overrides, estimates[candidate], {}),
                 planner or _plan)
    trials.append(trial)
    tell(f"{_count(trials)[0]}/{max_compiles} {candidate}: {outcome(trial)}")
  left, dropped = _worth_trying(estimates, trials, own, chip)
  untried = dict(dropped) | ({NO_BUDGET: len(left)} if left else {})
  fitting = [trial for trial in trials if trial.fits and complete(trial)]
  best = [fitting[i] for i in pareto([trial.per_row for trial in fitting])]
  return Search(topology.name, topology.slices, topology.chips, tuple(trials), tuple(best),
                recommend(fitting, own.batch_size), len(estimates), untried)


def _count(trials: Sequence[Trial]) -> tuple[int, int]:
  """How many have a plan, and how many were refused."""
  refused = sum(bool(trial.error) for trial in trials)
  return len(trials) - refused, refused


def _plan(config: Node, topology: str, slices: int) -> Node:
  from mmjax import plan
  figures = plan.plan(config, topology, slices).to_json()
  return json.loads(json.dumps(figures, default=str))  # as the cache will give it back


def _try(config: Node, topology: Any, trial: Trial, planner: Planner) -> Trial:
  """The trial with its plan, from the cache or made now."""
  config = copy.deepcopy(config)
  for path, text in trial.overrides.items():
    config_lib.override(config, path, text)
  slices = topology.slices if topology.platform == "tpu" else 1  # a GPU's nodes are in its name
  key = cache.key(config, topology.name, slices)
  plan = cache.get(key)
  if plan is not None:
    return dataclasses.replace(trial, plan=plan, cached=True)
  try:
    plan = planner(config, topology.name, slices)
  except (ValueError, CompileError) as error:  # ConfigErrors are ValueErrors
    return dataclasses.replace(trial, error=" ".join(str(error).split())[:300])
  cache.put(key, plan)
  return dataclasses.replace(trial, plan=plan)


def complete(trial: Trial) -> bool:
  """Whether the plan has all figures; that of a program which does not fit may lack some."""
  keys = ("peak_gib", "hardware_tflops_per_chip", "comm_gib", "step_s_lower_bound")
  return all(trial.plan.get(key) is not None for key in keys)


def _worth_trying(estimates: dict[Candidate, Costs], trials: Sequence[Trial], own: Candidate,
                  chip: Any) -> tuple[dict[Candidate, Costs], Counter]:
  """What is left to compile, with corrected estimates, and {reason: number} of what was dropped.

  `own`, the config as it is, is dropped only if it cannot fit.
  """
  tried = {trial.candidate for trial in trials}
  left, dropped = {}, Counter()
  margin = MARGIN if any(complete(trial) for trial in trials) else FIRST_MARGIN
  for candidate, costs in estimates.items():
    if candidate in tried:
      continue
    costs = corrected(candidate, costs, trials, chip.devices)
    if costs.state > chip.hbm_bytes:
      dropped[CANNOT_FIT_STATE] += 1
    elif costs.peak > margin * chip.hbm_bytes or _more_than_failed(candidate, trials):
      dropped[CANNOT_FIT] += 1
    else:
      left[candidate] = costs
  known = {trial.candidate: corrected(trial.candidate, trial.estimate, [trial], chip.devices)
           for trial in trials if trial.fits and complete(trial)}
  everything = left | known
  good = {own}
  for batch in {candidate.batch_size for candidate in everything}:
    same = [candidate for candidate in everything if candidate.batch_size == batch]
    good.update(same[i] for i in pareto([everything[candidate].per_row for candidate in same]))
  speed = {candidate: costs.rows / costs.seconds(chip) for candidate, costs in everything.items()}
  fitting = [candidate for candidate, costs in everything.items() if costs.peak <= chip.hbm_bytes]
  for candidate in list(left):
    # Fewer rows than the config's have to be worth it; more are compared among themselves.
    rows = {candidate.batch_size, own.batch_size if candidate.batch_size < own.batch_size else 0}
    fastest = max((speed[other] for other in fitting if other.batch_size in rows), default=0)
    slow = speed[candidate] < SLOW * fastest and candidate != own
    if slow or candidate not in good:
      dropped[TOO_SLOW if slow else DOMINATED] += 1
      del left[candidate]
  return left, dropped


def _more_than_failed(candidate: Candidate, trials: Sequence[Trial]) -> bool:
  """Whether a setting that differs from this one by fewer rows alone did not fit."""
  return any(trial.plan and not trial.fits and trial.candidate.batch_size <= candidate.batch_size
             and (trial.candidate.remat, trial.candidate.mesh) == (candidate.remat, candidate.mesh)
             for trial in trials)


def corrected(candidate: Candidate, costs: Costs, trials: Sequence[Trial], devices: int) -> Costs:
  """The estimate times what measurements were of theirs, on (geometric) average.

  Temporaries and FLOPs follow the trials of the same remat policy, traffic and communication those
  of the same mesh, as far as there are any. `devices` are those of one chip, of which plans tell.
  """
  known = [trial for trial in trials if complete(trial)]
  same_remat = [t for t in known if t.candidate.remat == candidate.remat] or known
  same_mesh = [t for t in known if t.candidate.mesh == candidate.mesh] or known
  temp = _ratio([(t.plan["peak_gib"] * GIB / devices - t.estimate.state, t.estimate.temp)
                 for t in same_remat])
  flops = _ratio([(t.plan["hardware_tflops_per_chip"] * TERA / devices, t.estimate.flops)
                  for t in same_remat])
  sent = _ratio([(t.plan["comm_gib"] * GIB / devices, t.estimate.ici + t.estimate.dcn)
                 for t in same_mesh])
  traffic = _ratio([(_traffic(t.plan), t.estimate.traffic) for t in same_mesh])
  return dataclasses.replace(
      costs, temp=costs.temp * temp, flops=costs.flops * flops, traffic=costs.traffic * traffic,
      ici=costs.ici * sent, dcn=costs.dcn * sent)


def _traffic(plan: Node) -> float:
  """Bytes that a device moves to and from its memory; 0 if the plan does not say."""
  return plan.get("details", {}).get("traffic", {}).get("bytes") or 0


def _ratio(pairs: Sequence[tuple[float, float]]) -> float:
  """Geometric mean of measured / estimated; 1 where nothing tells."""
  logs = [math.log(measured / estimated) for measured, estimated in pairs
          if measured > 0 and estimated > 0]
  return math.exp(sum(logs) / len(logs)) if logs else 1.0


def _next(left: dict[Candidate, Costs], tried: Sequence[Costs], own: Candidate, chip: Any
          ) -> Candidate | None:
  """Which candidate to compile: the config as it is, then by turns the fastest that should fit, and
  the one that is least like those already tried; None if none is left."""
  if not left:
    return None
  if not tried and own in left:
    return own
  room = (1 - HEADROOM) * chip.hbm_bytes
  roomy = {c: costs for c, costs in left.items() if costs.peak <= room} or left
  new = {c: min((_distance(roomy[c], t) for t in tried), default=math.inf) for c in roomy}
  if len(tried) % 2 == 0 or max(new.values()) < NEAR:
    return max(new, key=new.get)
  speed = {c: roomy[c].rows / roomy[c].seconds(chip) for c in roomy if new[c] >= NEAR}
  fast = [c for c in speed if speed[c] >= (1 - TIE) * max(speed.values())]
  return min(fast, key=lambda c: (c.batch_size != own.batch_size, roomy[c].peak))


def _distance(a: Costs, b: Costs) -> float:
  """How unlike two candidates are: the log of the greatest ratio of peaks, FLOPs or traffic."""
  return max(abs(math.log(max(x, 1) / max(y, 1))) for x, y in zip(a.per_row, b.per_row))


def pareto(points: Sequence[tuple[float, ...]]) -> list[int]:
  """Places of the points that no other beats: not larger in anything and smaller in something.

  Of equal points the first stays.
  """
  table, kept = np.array(points, dtype=float), []
  for j, point in enumerate(table):
    no_larger = (table <= point).all(axis=1)
    equal = (table == point).all(axis=1)
    if not (no_larger & ~equal).any() and not equal[:j].any():
      kept.append(j)
  return kept


def recommend(fitting: Sequence[Trial], batch_size: int) -> Trial | None:
  """The most rows a second by the bound, with `HEADROOM`.

  Of nearly equal ones those of `batch_size` (the config's), then the one of least memory; None if
  none leaves so much room.
  """
  roomy = [t for t in fitting if t.plan["peak_gib"] <= (1 - HEADROOM) * t.plan["hbm_gib"]]
  if not roomy:
    return None
  most = max(trial.rows_per_s for trial in roomy)
  fast = [trial for trial in roomy if trial.rows_per_s >= (1 - TIE) * most]
  return min(fast, key=lambda t: (t.candidate.batch_size != batch_size, t.plan["peak_gib"]))


def outcome(trial: Trial) -> str:
  """One trial's result in words."""
  cached = " (from cache)" if trial.cached else ""
  if trial.error:
    return f"refused: {trial.error}"
  peak = trial.plan.get("peak_gib")
  if not trial.fits:
    needs = f", needs {peak:.2f} GiB a chip" if peak is not None else ""
    return f"does not fit{needs}{cached}"
  speed = f", at most {trial.rows_per_s:.4g} rows/s" if complete(trial) else ""
  return f"{peak:.2f} of {trial.plan['hbm_gib']:.2f} GiB a chip{speed}{cached}"


def show(found: Search, config: str = "") -> str:
  """The search as text: a table of what was compiled, what was not tried, what to take.

  Args:
    config: what `--config` held, for the command that is printed.
  """
  lines = [f"{len(found.trials)} of {found.considered} settings compiled for {found.topology}"
           + (f" x {found.slices} slices" if found.slices > 1 else "") + f", {found.chips} chips"]
  lines += [f"  {count:5} not tried: {reason}" for reason, count in found.untried.items()]
  lines += ["", *_table(found)]
  refused = [f"refused: {trial.candidate}: {trial.error}" for trial in found.trials if trial.error]
  lines += ["", *refused] if refused else []
  if found.recommended is None:
    return "\n".join([*lines, "", f"none fits with {HEADROOM:.0%} of the memory to spare; take "
                      "more chips or a smaller batch"])
  flags = [f"--config.{path}={text}" for path, text in found.recommended.overrides.items()]
  command = " ".join([f"--config={config}"] if config else [])
  lines += ["", "recommended (the most rows a second that the bound allows, with "
            f"{HEADROOM:.0%} of the memory to spare): {found.recommended.candidate}",
            "  " + " ".join([command, *flags]).strip() if flags else "  the config as it is"]
  if "batch_size" in found.recommended.overrides:
    lines.append("  another batch size may need another learning rate; that is not looked at here")
  return "\n".join(lines)


COLUMNS = ("", "batch", "remat", "mesh", "peak GiB", "TFLOPs/row", "comm MiB/row", "rows/s <=",
           "bound", "")


def _table(found: Search) -> list[str]:
  rows = [COLUMNS]
  planned = [trial for trial in found.trials if trial.plan]
  for trial in sorted(planned, key=lambda trial: trial.plan.get("peak_gib") or math.inf):
    candidate = trial.candidate
    mark = ">" if trial is found.recommended else "*" if trial in found.best else ""
    mesh = " ".join(f"{axis}={n}" for axis, n in zip(AXES, candidate.mesh) if n > 1) or "1"
    figures = ["-"] * 4
    if complete(trial):
      peak, flops, sent = trial.per_row
      figures = [f"{peak:.2f}", f"{flops:.4g}", f"{sent * 1024:.4g}", f"{trial.rows_per_s:.4g}"]
    notes = ["" if trial.fits else "does not fit", "from cache" if trial.cached else ""]
    rows.append((mark, str(candidate.batch_size), candidate.remat, mesh, *figures,
                 str(trial.plan.get("bound") or "-"), ", ".join(note for note in notes if note)))
  widths = [max(map(len, column)) for column in zip(*rows)]
  lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
  return [*lines, "> recommended   * beaten by none in all of peak, FLOPs and communication a row"]
