"""Compiles a step for devices that are not here, whether or not it fits them."""

import dataclasses
import inspect
import pathlib
import tempfile
import time
from typing import Any

import jax
from jax.extend import core

from mmjax.parallel import mesh as mesh_lib
from mmjax.plan import host
from mmjax.plan import memory as memory_lib
from mmjax.plan.memory import Memory
from mmjax.plan.topology import Topology


class CompileError(RuntimeError):
  """The compiler failed, and not for want of the device's memory: one line."""


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step for a topology.

  Attributes:
    jaxpr: of the step, for the topology's platform.
    lowered: before partitioning.
    executable: None if it does not fit.
    text: of the partitioned program (HLO), for one device; None if there is none.
    memory: what it takes, or would take.
    args: of the step, ShapeDtypeStructs with shardings, by the names of its parameters.
    oom: the compiler's complaint if it does not fit.
    undivided: dimensions of activations that the mesh does not divide, see `mesh.constrain`.
    lower_s, compile_s: seconds of tracing and lowering, and of compiling.
  """

  jaxpr: core.ClosedJaxpr
  lowered: jax.stages.Lowered
  executable: jax.stages.Compiled | None
  text: str | None
  memory: Memory
  args: dict[str, Any]
  oom: memory_lib.Oom | None
  undivided: list
  lower_s: float
  compile_s: float


def placed_arguments(run: Any) -> tuple:
  """(state, batch) of a run as ShapeDtypeStructs that carry their shardings."""
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=run.batch_sharding)
  return run.placed, jax.tree.map(place, run.abstract_batch)


def compile_step(run: Any, topology: Topology) -> Compiled:
  """The train step of a `training.assemble.Run` that was assembled on the topology's devices.

  Raises:
    CompileError: as `compile_jitted`.
  """
  with run.use():
    return compile_jitted(run.step_fn(), placed_arguments(run), topology)


def compile_jitted(fn: Any, args: tuple, topology: Topology) -> Compiled:
  """Any jitted function.

  Args:
    fn: from `jax.jit`.
    args: of ShapeDtypeStructs that carry shardings on the topology's devices.

  Raises:
    CompileError: the compiler failed, but not because it ran out of the device's memory.
  """
  start = time.monotonic()
  try:
    traced = fn.trace(*args)
    lowered = traced.lower()
  except NotImplementedError as error:  # a kernel that has no form for this platform
    raise CompileError(_one_line(error, topology)) from error
  lower_s = time.monotonic() - start
  undivided = mesh_lib.undivided_activations()
  start = time.monotonic()
  executable = text = oom = None
  try:
    executable, text = _compile(lowered, topology)
  except (jax.errors.JaxRuntimeError, MemoryError) as error:
    oom = memory_lib.parse_oom(str(error))
    if oom is None:
      raise CompileError(_one_line(error, topology)) from error
  compile_s = time.monotonic() - start
  names = list(inspect.signature(fn).parameters)
  named = dict(zip(names if len(names) >= len(args) else map(str, range(len(args))), args))
  return Compiled(traced.jaxpr, lowered, executable, text, _memory(executable, oom, args, topology),
                  named, oom, undivided, lower_s, compile_s)


def _compile(lowered, topology):
  """(executable, HLO text) for devices that are not here."""
  if topology.platform == "gpu":
    return host.compile_lowered(lowered)
  with tempfile.TemporaryDirectory() as folder:
    executable = lowered.compile({"xla_dump_to": folder, "xla_dump_hlo_as_text": True,
                                  "xla_dump_hlo_module_re": "jit_.*"})
    return executable, _dumped(pathlib.Path(folder)) or _printed(executable)


def _dumped(folder):
  """The text of a program as the compiler itself wrote it; None if it did not.

  For v5p and tpu7x libtpu makes instructions (`async-update` of several operands) that jaxlib
  refuses to print, as it does very large programs.
  """
  files = sorted(folder.glob("*.jit_*.after_optimizations.txt"))
  return files[0].read_text() if files else None


def _printed(executable):
  try:
    return executable.as_text()
  except jax.errors.JaxRuntimeError:
    return None


def _memory(executable, oom, args, topology):
  if oom:
    return memory_lib.of_complaint(oom, memory_lib.bytes_of(args))
  limit = topology.chip.hbm_bytes
  if topology.platform == "tpu":
    limit = memory_lib.granted(topology.devices[0]) or limit
  return memory_lib.of_executable(executable.memory_analysis(), limit)


def _one_line(error, topology):
  said = " ".join(str(error).split())[:400] or type(error).__name__
  if isinstance(error, MemoryError):
    said = "this machine has too little memory to compile it"
  return f"the compiler failed for {topology.title}: {said}"
