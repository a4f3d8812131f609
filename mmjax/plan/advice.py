"""What to change so that a step fits: overrides of the config, each with what it would take.

The estimates are those of the search (`estimate.py`), scaled by what the compiler found for the
config as it is. The one that is recommended leaves a margin for what they miss.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from mmjax.parallel.mesh import AXES
from mmjax.plan import memory as memory_lib
from mmjax.plan.estimate import OWN, Candidate, Estimator

MARGIN = 0.8         # of the memory, that an advised setting may take by the estimate
WORTH = 0.9          # a single change is told if it leaves at most so much of the peak
ROOM = 0.5           # of the memory; less than it used is told
MOST_MICRO = 64      # micro-batches; more leave each pass with too little work
FULL = "full"        # of `nn.transformer.REMAT_POLICIES` the one that stores the least
GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Change:
  """Overrides and the bytes on a device that are expected with them."""

  overrides: dict[str, str]
  peak: float

  def line(self, devices: int) -> str:
    flags = " ".join(f"--config.{path}={text}" for path, text in self.overrides.items())
    return f"{flags}: about {self.peak * devices / GIB:.3g} GiB a chip"


def advice(plan: Any) -> list[str]:
  """How a `plan.Plan` would fit if it does not, or that there is much room; lines of text."""
  if plan.fits and plan.memory.peak < ROOM * plan.memory.limit:
    return [f"{1 - plan.memory.peak / plan.memory.limit:.0%} of the memory is free: a larger batch "
            "or less recomputation may be faster, see --search"]
  if plan.fits or plan.run is None:
    return []
  devices = plan.topology.chip.devices
  changes = _Changes(plan)
  lines = [f"{change.line(devices)} (this alone)" for change in changes.single()]
  together = changes.enough()
  if together:
    lines.append(f"fits by the estimate: {together.line(devices)}")
  else:
    state = memory_lib.bytes_of(plan.compiled.args.get("state", ()))
    lines.append(f"no setting of remat, micro-batches, batch and fsdp makes it fit "
                 f"{plan.topology.chips} chips: the state alone takes {state * devices / GIB:.3g} "
                 "GiB a chip; take more chips, a chip with more memory or a smaller model")
  return lines


def shares(plan: Any) -> dict[str, float]:
  """What takes the memory: bytes on a device by argument, and of all else; largest first."""
  sizes = {name: memory_lib.bytes_of(tree) for name, tree in plan.compiled.args.items()}
  rest = max(plan.memory.peak - sum(sizes.values()), 0)
  sizes["activations, gradients and other temporaries"] = rest
  return dict(sorted(sizes.items(), key=lambda item: -item[1]))


class _Changes:
  """Settings near the one that was planned, with estimates of their peaks."""

  def __init__(self, plan):
    self.run, self.slices = plan.run, plan.topology.slices
    self.limit, self.peak = plan.memory.limit, plan.memory.peak
    self.base = Estimator(self.run, self.slices)
    self.own, self.own_micro = self.base.own, self.run.settings.micro_batches
    estimated = self.base.estimate(self.own)
    self.scale = max(self.peak - estimated.state, 0) / max(estimated.temp, 1)

  def single(self) -> Iterator[Change]:
    """Each change alone that helps: more fsdp, less stored, more micro-batches, half the batch."""
    own = self.own
    half = dataclasses.replace(own, batch_size=own.batch_size // 2)
    tried = [(self._divided(own), self.own_micro), (self._recomputed(own), self.own_micro),
             (own, 2 * self.own_micro), (half, self.own_micro)]
    for candidate, micro in tried:
      if (candidate, micro) != (own, self.own_micro) and self._possible(candidate, micro):
        change = self._change(candidate, micro)
        if change.peak <= WORTH * self.peak:
          yield change

  def enough(self) -> Change | None:
    """The fewest changes that should fit, with the largest batch."""
    batch = self.own.batch_size
    while batch >= 1:
      own = dataclasses.replace(self.own, batch_size=batch)
      found = []
      for recompute in (False, True):
        for divide in (False, True):
          candidate = self._recomputed(own) if recompute else own
          candidate = self._divided(candidate) if divide else candidate
          for doublings in range(int(math.log2(MOST_MICRO)) + 1):
            micro = self.own_micro * 2**doublings
            if self._possible(candidate, micro):
              change = self._change(candidate, micro)
              if change.peak <= MARGIN * self.limit:
                found.append((recompute + (doublings > 0), doublings, divide, change))
                break
      if found:
        return min(found, key=lambda one: one[:3])[-1]
      if batch % 2:
        return None
      batch //= 2
    return None

  def _recomputed(self, candidate: Candidate) -> Candidate:
    known = FULL in self.base.remats
    return dataclasses.replace(candidate, remat=FULL) if known else candidate

  def _divided(self, candidate: Candidate) -> Candidate:
    """With the devices of `data` given to `fsdp`, as far as they divide the parameters."""
    mesh = dict(zip(AXES, candidate.mesh))
    inside = mesh["data"] * mesh["fsdp"] // math.gcd(mesh["data"], self.slices)
    fsdp = math.gcd(inside, self.run.findings.fsdp_fits)
    if fsdp <= mesh["fsdp"]:
      return candidate
    mesh["data"], mesh["fsdp"] = mesh["data"] * mesh["fsdp"] // fsdp, fsdp
    return dataclasses.replace(candidate, mesh=tuple(mesh[axis] for axis in AXES))

  def _possible(self, candidate: Candidate, micro: int) -> bool:
    parts = self.base.layout(candidate.mesh).parts
    return candidate.batch_size > 0 and candidate.batch_size % (parts * micro) == 0

  def _change(self, candidate: Candidate, micro: int) -> Change:
    settings = dataclasses.replace(self.run.settings, micro_batches=micro)
    estimator = Estimator(dataclasses.replace(self.run, settings=settings), self.slices)
    estimator.layouts, estimator.policies = self.base.layouts, self.base.policies
    if candidate.remat == OWN:
      estimator.policies.setdefault(OWN, self.base.policy(OWN))
    costs = estimator.estimate(candidate)
    # Cut into micro-batches, the batch lies in memory twice: as it came and as the loop takes it.
    twice = self._rows_bytes(candidate) if micro > 1 and self.own_micro == 1 else 0
    overrides = estimator.overrides(candidate)
    if micro != self.own_micro:
      overrides["micro_batches"] = str(micro)
    return Change(overrides, costs.state + costs.temp * self.scale + twice)

  def _rows_bytes(self, candidate: Candidate) -> float:
    """Of the batch, on a device."""
    whole = sum(x.size * x.dtype.itemsize for x in self.run.abstract_batch.values())
    share = candidate.batch_size / self.own.batch_size
    return whole * share / self.base.layout(candidate.mesh).parts
