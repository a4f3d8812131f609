"""Know before you pay: what a config's train step takes and can reach on devices that are not here.

  from mmjax import config, plan
  p = plan.plan(config.load("contrastive/siglip:l16"), "v5e:16x16")
  p.memory.peak, p.roofline.step_s, p.to_json()

The very step that `mmjax train` runs is compiled for the named topology; no data are read and no
parameter is made. Quantities are bytes, FLOPs and seconds per jax device; `to_json` and what is
printed are per chip.
"""

import dataclasses
import types
from collections.abc import Sequence
from typing import Any

import jax

from mmjax.parallel import lint
from mmjax.plan import advice as advice_lib
from mmjax.plan import collectives
from mmjax.plan import compile as compile_lib
from mmjax.plan import flops as flops_lib
from mmjax.plan import host
from mmjax.plan import roofline as roofline_lib
from mmjax.plan import tensors as tensors_lib
from mmjax.plan import topology as topology_lib
from mmjax.plan import traffic as traffic_lib
from mmjax.plan.compile import Compiled
from mmjax.plan.memory import Memory
from mmjax.plan.tensors import Tensor
from mmjax.plan.topology import Topology
from mmjax.training.assemble import Run, assemble

GIB, TERA = 2**30, 1e12


@dataclasses.dataclass(frozen=True)
class Plan:
  """A step on a topology.

  Attributes:
    topology: where.
    mesh: of its devices.
    compiled: the program and its memory.
    flops: of a step.
    communication: of a step.
    traffic: to and from a device's memory in a step, at least.
    roofline: lower bounds of the step's time.
    steps: of the whole run.
    run: what was planned; None for a function of the user's.
    warnings: what to know of the figures, and what the lint of the mesh says, a line each.
  """

  topology: Topology
  mesh: jax.sharding.Mesh
  compiled: Compiled
  flops: flops_lib.Flops
  communication: collectives.Communication
  traffic: traffic_lib.Traffic
  roofline: roofline_lib.Roofline
  steps: int
  run: Run | None = None
  warnings: tuple[str, ...] = ()

  @property
  def memory(self) -> Memory:
    return self.compiled.memory

  @property
  def fits(self) -> bool:
    return self.compiled.executable is not None and self.memory.fits

  def largest(self, n: int = 10) -> list[Tensor]:
    """The n largest tensors on a device."""
    return tensors_lib.largest(self.compiled, n)

  def advice(self) -> list[str]:
    """What to change so that it fits, a line each; what dominates the memory if it does."""
    return advice_lib.advice(self)

  def to_json(self) -> dict[str, Any]:
    """The figures as plain values: flat keys per chip; "details" say what they are made of."""
    memory, devices = self.memory, self.topology.chip.devices
    gib = lambda count: None if count is None else count * devices / GIB
    tera = lambda count: None if count is None else count * devices / TERA
    return {
        "topology": self.topology.name, "slices": self.topology.slices,
        "chips": self.topology.chips,
        "mesh": dict(self.mesh.shape), "fits": self.fits,
        "hbm_gib": gib(self.topology.chip.hbm_bytes), "usable_gib": gib(memory.limit),
        "peak_gib": gib(memory.peak), "args_gib": gib(memory.args), "temp_gib": gib(memory.temp),
        "model_tflops_per_chip": tera(self.flops.model),
        "hardware_tflops_per_chip": tera(self.flops.hardware),
        "comm_gib": gib(self.communication.bytes),
        "bound": self.roofline.bound, "step_s_lower_bound": self.roofline.step_s,
        "mfu_upper_bound": self.roofline.mfu, "chip_hours_lower_bound": self.roofline.chip_hours,
        "lower_s": self.compiled.lower_s, "compile_s": self.compiled.compile_s,
        "details": self._details()}

  def _details(self) -> dict[str, Any]:
    """Per jax device, in bytes, FLOPs and seconds."""
    settings = self.run.settings if self.run else None
    return {
        "devices": len(self.topology.devices), "devices_per_chip": self.topology.chip.devices,
        "chip": dataclasses.asdict(self.topology.chip), "platform": self.topology.platform,
        "batch_size": settings.batch_size if settings else None, "total_steps": self.steps,
        "memory": dataclasses.asdict(self.memory),
        "largest": [dataclasses.asdict(tensor) for tensor in self.largest()],
        "advice": self.advice(), "warnings": list(self.warnings),
        "flops": dataclasses.asdict(self.flops),
        "communication": {"source": self.communication.source,
                          "by_network": self.communication.by_network,
                          "rows": [dataclasses.asdict(row) for row in self.communication.rows]},
        "traffic": dataclasses.asdict(self.traffic),
        "roofline": dataclasses.asdict(self.roofline),
        "jax": jax.__version__}


def plan(config: dict[str, Any], topology: str, slices: int = 1) -> Plan:
  """Compiles the train step of a config for devices that are not here, and measures it.

  Args:
    config: as `config.load` gives it.
    topology: see `topology.find`.
    slices: how many of them, joined over the data-centre network.

  Raises:
    ConfigError: the config, or the topology.
    CompileError: the compiler failed, and not for want of the device's memory.
  """
  where = topology_lib.find(topology, slices)
  return plan_run(assemble(config, devices=where.devices, example_data=True), where)


def plan_run(run: Run, topology: Topology) -> Plan:
  """As `plan`, of a run that was assembled on the devices of `topology`."""
  compiled = compile_lib.compile_step(run, topology)
  warnings = [*run.findings.lines(), *lint.activation_lines(compiled.undivided, run.mesh)]
  if topology.platform == "gpu":
    warnings = [*host.notes(run), *warnings]
  return _measure(compiled, topology, run.mesh, run, run.settings.total_steps, warnings, run)


def analyse(fn: Any, args: Sequence[Any], mesh: jax.sharding.Mesh, topology: Topology, *,
            steps: int = 1, model_flops: float | None = None) -> Plan:
  """Plans any jitted function, for instance a step of your own.

  Args:
    fn: from `jax.jit`. If its trace needs a mesh or rules, call this inside their context.
    args: of ShapeDtypeStructs that carry NamedShardings on `mesh`.
    mesh: of `topology.devices`.
    topology: from `topology.find`.
    steps: how often it will be called, for the chip-hours.
    model_flops: of one call, over the whole mesh, for the MFU.
  """
  compiled = compile_lib.compile_jitted(fn, tuple(args), topology)
  own = types.SimpleNamespace(mesh=mesh, model_flops=lambda: model_flops)
  return _measure(compiled, topology, mesh, own, steps, (), None)


def _measure(compiled, topology, mesh, own, steps, warnings, run) -> Plan:
  """`own` has a mesh and `model_flops()`, as a run does."""
  flops = flops_lib.count(own, compiled.jaxpr, compiled.text)
  if compiled.text:
    communication = collectives.read(compiled.text, mesh)
  elif run:
    communication = collectives.from_shardings(run, compiled.jaxpr)
  else:
    communication = collectives.Communication((), "unknown: there is no program")
  memory = compiled.memory
  output = memory.args if memory.output is None else memory.output  # of a step, its state
  traffic = traffic_lib.at_least(memory.args, output,
                                 compiled.text if topology.platform == "tpu" else None)
  roofline = roofline_lib.bounds(topology.chip, flops, traffic.bytes, communication, steps,
                                 mesh.size)
  return Plan(topology, mesh, compiled, flops, communication, traffic, roofline, steps, run,
              tuple(warnings))


def find(name: str, slices: int = 1) -> Topology:
  """The topology of that name, see `topology.find`."""
  return topology_lib.find(name, slices)
