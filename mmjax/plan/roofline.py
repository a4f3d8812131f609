"""Lower bounds of the step time, and what follows from them (Williams et al. 2009, the roofline).

Each bound supposes that one resource works at its published peak all the time and everything else
hides behind it. The step cannot be faster than the largest of them.
"""

import dataclasses
import itertools

from mmjax.parallel.chips import Chip
from mmjax.plan.collectives import Communication
from mmjax.plan.flops import Flops


@dataclasses.dataclass(frozen=True)
class Roofline:
  """Lower bounds of a step's time in seconds, and what they allow.

  Attributes:
    compute_s: hardware FLOPs at the peak; those that the partitioned program executes where they
      are more, and it is the one that runs (TPU; what stands for a GPU's is not optimised yet).
    memory_s: bytes that the memory must move, at its bandwidth.
    ici_s, dcn_s: what is sent inside a slice and between slices.
    bound: the name of the largest: "compute", "memory", "ici" or "dcn".
    step_s: the largest.
    mfu: model FLOPs over what the peak does in `step_s`: no tuning can exceed it. None if the model
      FLOPs are unknown.
    chip_hours: of the whole run, at least.
  """

  compute_s: float
  memory_s: float
  ici_s: float
  dcn_s: float
  bound: str
  step_s: float
  mfu: float | None
  chip_hours: float


def bounds(chip: Chip, flops: Flops, traffic_bytes: float, communication: Communication,
           steps: int, devices: int) -> Roofline:
  """The roofline of a run.

  Args:
    chip: of the topology.
    flops: of a step, per device.
    traffic_bytes: that a step moves to and from a device's memory, at least.
    communication: of a step, per device.
    steps: of the whole run.
    devices: jax devices of the whole mesh.
  """
  done = max(flops.hardware, flops.executed or 0) if chip.torus_axes else flops.hardware
  seconds = {
      "compute": done / chip.flops,
      "memory": traffic_bytes / chip.hbm_bytes_per_s,
      "ici": _ici_seconds(chip, communication),
      "dcn": sum(row.off_chip for row in communication.rows if row.network == "dcn")
             / chip.dcn_bytes_per_s,
  }
  bound = max(seconds, key=seconds.get)
  step = seconds[bound]
  mfu = flops.model / chip.flops / step if flops.model is not None and step else None
  return Roofline(compute_s=seconds["compute"], memory_s=seconds["memory"], ici_s=seconds["ici"],
                  dcn_s=seconds["dcn"], bound=bound, step_s=step, mfu=mfu,
                  chip_hours=step * steps * devices / chip.devices / 3600)


def _ici_seconds(chip, communication):
  """The links of some dimensions of the torus carry at least the collectives of these dimensions.

  A dimension has two links a chip, one to each side, which its devices share. Collectives over
  different dimensions may run at the same time, so the bound is the largest over all sets of them.
  """
  rows = [row for row in communication.rows if row.network == "ici"]
  if not chip.torus_axes:
    return sum(row.off_chip for row in rows) / chip.ici_bytes_per_s
  every = tuple(range(chip.torus_axes))
  worst = 0.0
  for size in range(1, chip.torus_axes + 1):
    for some in itertools.combinations(every, size):
      # Where it is not known along which dimensions a collective goes, it may use all.
      there = sum(row.off_chip for row in rows if set(row.torus or every) <= set(some))
      worst = max(worst, there * chip.devices / (2 * size * chip.link_bytes_per_s))
  return worst
