"""Know before you pay: what a config's train step takes and can reach on devices that are not here.

  from mmjax import config, plan
  p = plan.plan(config.load("contrastive/siglip:l16"), "v5e:16x16")
  p.memory.peak, p.to_json()

The very step that `mmjax train` runs is compiled for the named topology; no data are read and no
parameter is made. Quantities are bytes, FLOPs and seconds per jax device; `to_json` and what is
printed are per chip.
"""

import dataclasses
from typing import Any

from mmjax.plan import compile as compile_lib
from mmjax.plan import topology as topology_lib
from mmjax.plan.compile import Compiled
from mmjax.plan.memory import Memory
from mmjax.plan.topology import Topology
from mmjax.training.assemble import Run, assemble

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Plan:
  """A step on a topology."""

  topology: Topology
  run: Run
  compiled: Compiled

  @property
  def memory(self) -> Memory:
    return self.compiled.memory

  def to_json(self) -> dict[str, Any]:
    """The figures as plain values, per chip."""
    memory, devices = self.memory, self.topology.chip.devices
    gib = lambda count: None if count is None else count * devices / GIB
    return {"chips": self.topology.chips, "fits": memory.fits,
            "hbm_gib": gib(self.topology.chip.hbm_bytes), "peak_gib": gib(memory.peak),
            "args_gib": gib(memory.args), "temp_gib": gib(memory.temp),
            "compile_s": self.compiled.compile_s}


def plan(config: dict[str, Any], topology: str, slices: int = 1) -> Plan:
  """Compiles the train step of `config` for `slices` of `topology` and measures it."""
  where = topology_lib.find(topology, slices)
  run = assemble(config, devices=where.devices, example_data=True)
  return Plan(where, run, compile_lib.compile_step(run, where))
