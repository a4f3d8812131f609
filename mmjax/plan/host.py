"""GPUs that are not there: the step is compiled for as many CPU devices, which stand for them.

The TPU compiler needs no TPU, but the GPU compiler needs the libraries of a GPU. So a GPU's plan is
made of what is the same on both: the traced step, the shardings, and the program of one device that
XLA's partitioner makes of them. `notes` says which figures that leaves exact.

Two things that XLA:CPU does and no GPU would are undone. It widens bfloat16 to float32, so it is
given float16, which it keeps and which is as large. And it leaves an all-reduce of which each
device then keeps its part, which a GPU does as a reduce-scatter, of half the bytes.
"""

from collections.abc import Iterator
import contextlib
import functools
import glob
import math
import pathlib
import re
import tempfile
from typing import Any

import jax
from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn  # its version check is not public
from jaxlib import xla_client
from jaxlib.mlir import ir
import numpy as np

from mmjax.config import ConfigError
from mmjax.parallel import devices as devices_lib
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel.chips import CHIPS
from mmjax.plan import hlo
from mmjax.plan.topology import Topology

GPUS = tuple(name for name, chip in CHIPS.items() if not chip.torus_axes)
PER_NODE = 8         # of the HGX and DGX machines whose figures are in `chips`
MOST_DEVICES = 2048  # XLA:CPU takes devices beyond for those of another process
CUDNN_VERSION = 91000  # 9.10, what is asked where there is no cuDNN that could say


def find(name: str, slices: int = 1) -> Topology:
  """The topology "h100:4x8" (4 nodes of 8 GPUs) or "h100:8" (one node); its slices are its nodes.

  Nothing has to be set before JAX starts: the devices have a client of their own.

  Raises:
    ConfigError: not of that form, more GPUs than can be compiled for, or slices besides nodes.
  """
  found = re.fullmatch(rf"({'|'.join(GPUS)}):(?:(\d+)x)?(\d+)", name.strip().lower())
  if not found:
    raise ConfigError(f"--topology={name}: GPUs are named by kind, nodes and GPUs of a node, such "
                      f"as h100:4x8, or h100:8 for one node (kinds: {', '.join(GPUS)})")
  kind, nodes, gpus = found[1], int(found[2] or 1), int(found[3])
  if slices != 1:
    raise ConfigError(f"--slices={slices}: is for TPUs; the nodes of GPUs are in the topology's "
                      f"name, such as {kind}:{slices}x{PER_NODE}")
  if nodes < 1 or not 1 <= gpus <= PER_NODE:
    enough = max(1, math.ceil(nodes * gpus / PER_NODE))
    raise ConfigError(f"--topology={name}: there are 1 to {PER_NODE} GPUs in a node, and at least "
                      f"one node, such as {kind}:{enough}x{PER_NODE}")
  if nodes * gpus > MOST_DEVICES:
    raise ConfigError(f"--topology={name}: {nodes * gpus} GPUs are more than the {MOST_DEVICES} "
                      f"that can be compiled for; plan {kind}:{MOST_DEVICES // gpus}x{gpus} at the "
                      "same batch a GPU")
  return Topology(f"{kind}:{nodes}x{gpus}", nodes, CHIPS[kind], stand_ins(nodes, gpus), "gpu")


@functools.cache
def stand_ins(nodes: int, gpus: int) -> list:
  """CPU devices, of a client of their own, that `mesh_lib` takes for GPUs in so many nodes."""
  devices = xla_client.make_cpu_client(num_devices=nodes * gpus).devices()
  devices = sorted(devices, key=lambda device: device.id)
  devices_lib.STAND_INS.update({device: i // gpus for i, device in enumerate(devices)})
  return devices


def compile_lowered(lowered: jax.stages.Lowered) -> tuple[jax.stages.Compiled, str]:
  """Compiles what was lowered for `stand_ins`; the module in `lowered` is changed on the way.

  Returns:
    executable: for its memory analysis. It is not for running.
    text: the program of one device as the partitioner leaves it, nothing fused or combined yet; for
      a single device the compiled program.
  """
  _narrow(lowered.compiler_ir("stablehlo"))
  with tempfile.TemporaryDirectory() as folder:
    executable = lowered.compile(
        {"xla_dump_to": folder, "xla_dump_hlo_pass_re": "spmd-partitioning"})
    dumped = sorted(glob.glob(f"{folder}/*.after_spmd-partitioning*.txt"))
    text = pathlib.Path(dumped[-1]).read_text() if dumped else executable.as_text()
  text = re.sub(r"\bf16\[", "bf16[", text)
  return executable, _with_reduce_scatter(_with_plain_groups(text))


def _narrow(module: ir.Module) -> None:
  """Puts float16 in the place of bfloat16. Infinities stay what they are; other values may not."""
  text = module.operation.get_asm(enable_debug_info=True)
  for wide, narrow in ("0xFF80", "0xFC00"), ("0x7F80", "0x7C00"):
    text = re.sub(rf"dense<{wide}>( : tensor<[\dx]*bf16>)", rf"dense<{narrow}>\1", text)
  with module.context:
    narrowed = ir.Module.parse(re.sub(r"(?<=[x<\s])bf16(?=[>,\s)])", "f16", text))
    for operation in list(module.body.operations):
      operation.erase()
    for operation in list(narrowed.body.operations):
      module.body.append(operation)


def _with_plain_groups(text: str) -> str:
  """The program with its replica groups as lists of devices, where they are axes of a mesh.

  "mesh['a'=8,'b'=4], device_ids=([4,8]T(1,0)) {'a'}" are the devices numbered by an iota of [4, 8],
  transposed, as [a=8, b=4]; a group differs in `a` only. 'a':(2)4 is the 4 of `a` as [2, 4, ...].
  """
  @functools.cache
  def plain(sizes, order, chosen):
    sizes = {axis: int(size) for axis, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    devices = np.arange(math.prod(sizes.values()))
    if order:
      dims, permutation = re.fullmatch(r"\[([\d,]+)\](?:T\(([\d,]+)\))?", order).groups()
      devices = devices.reshape(_numbers(dims))
      devices = devices.transpose(_numbers(permutation)) if permutation else devices
    dims, inside = [], []
    for axis, size in sizes.items():
      for before, part in re.findall(rf"'{axis}'(?::\((\d+)\)(\d+))?", chosen):
        before, part = int(before or 1), int(part or size)
        dims += [before, part]
        inside.append(len(dims) - 1)
        size //= before * part
      dims.append(size)
    outside = [i for i in range(len(dims)) if i not in inside]
    groups = devices.reshape(dims).transpose(outside + inside)
    groups = groups.reshape(-1, math.prod(dims[i] for i in inside))
    return "{{" + "},{".join(",".join(map(str, group)) for group in groups.tolist()) + "}}"

  form = r"replica_groups=mesh\[(.*?)\](?:, device_ids=\((.*?\)?)\))? \{(.*?)\}"
  return re.sub(form, lambda found: "replica_groups=" + plain(*found.groups()), text)


def _numbers(text: str) -> list[int]:
  return [int(number) for number in text.split(",")]


def _with_reduce_scatter(text: str) -> str:
  """The program with a reduce-scatter for each all-reduce of which a device keeps only its part."""
  scattered, slices = {}, {}
  for computation in hlo.parse(text).computations.values():
    for reduce in computation.instructions.values():
      users = computation.users[reduce.name]
      if reduce.op == "all-reduce" and [user.op for user in users] == ["dynamic-slice"]:
        dimension = _cut(users[0].arrays[0].dims, reduce)
        if dimension is not None:
          scattered[reduce.name] = users[0].shape, dimension
          slices[users[0].name] = reduce.name
  return "\n".join(_scatter_line(line, scattered, slices) for line in text.splitlines())


def _cut(part: tuple[int, ...], reduce: hlo.Instruction) -> int | None:
  """The dimension of which a part is left; None if the group's devices do not each keep one."""
  groups = reduce.attribute("replica_groups", r"\{\{[\d,]+|\[\d+,\d+") or ""
  size = groups.count(",") + 1 if groups.startswith("{") else int(groups.partition(",")[2] or 0)
  whole = reduce.arrays[0].dims
  cut = [i for i, (a, b) in enumerate(zip(part, whole)) if a != b]
  return cut[0] if len(cut) == 1 and part[cut[0]] * size == whole[cut[0]] else None


def _scatter_line(line: str, scattered: dict, slices: dict) -> str:
  name = line.strip().removeprefix("ROOT ").partition(" = ")[0].lstrip("%")
  head = line.partition(" = ")[0]
  if name in scattered:
    shape, dimension = scattered[name]
    rest = line[line.index(" all-reduce(") + len(" all-reduce"):]
    return f"{head} = {shape} reduce-scatter{rest}, dimensions={{{dimension}}}"
  if name in slices:
    shape = line.partition(" = ")[2].partition(" dynamic-slice(")[0]
    return f"{head} = {shape} copy(%{slices[name]})"
  return line


def calls_cudnn(run: Any) -> bool:
  """Whether the run's step calls cuDNN's attention on GPUs.

  The step is traced as on a GPU and lowered for CUDA, though not compiled, so what a kernel would
  refuse is found here.

  Raises:
    ConfigError: it refuses.
  """
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=run.batch_sharding)
  batch = jax.tree.map(place, run.abstract_batch)
  with run.use(), _as_on_a_gpu():
    try:
      lowered = run.step_fn().trace(run.placed, batch).lower(lowering_platforms=("cuda",))
    except (NotImplementedError, ValueError) as error:
      raise ConfigError(f"objective: cannot be lowered for GPUs: {error}") from error
  return "@__cudnn$fmha" in lowered.as_text()


@contextlib.contextmanager
def _as_on_a_gpu() -> Iterator[None]:
  """Inside it attention takes cuDNN's kernel for stand-ins too, and JAX finds a cuDNN."""
  version, stands_in = jax_cudnn.check_cudnn_version, mesh_lib.stands_in
  jax_cudnn.check_cudnn_version, mesh_lib.stands_in = lambda: CUDNN_VERSION, lambda: False
  try:
    yield
  finally:
    jax_cudnn.check_cudnn_version, mesh_lib.stands_in = version, stands_in


def notes(run: Any) -> list[str]:
  """What a reader of a GPU's plan must know of its figures, a line each.

  Raises:
    ConfigError: as `calls_cudnn`.
  """
  attention = ("attention: cuDNN's on the GPU, which has been lowered for CUDA, so it takes these "
               "shapes; compiled and counted as blockwise, whose memory is linear in length as well"
               if calls_cudnn(run) else "attention: the same on the GPU; no cuDNN kernel is called")
  return [
      f"GPUs: {run.mesh.size} CPU devices stand for them; nothing was compiled for a GPU",
      "exact: arguments, and FLOPs of the step; the rest is estimated",
      "temporaries, peak: XLA:CPU's, with 16-bit numbers kept so except as operands of products; a "
      "GPU fuses differently",
      "communication: of the partitioned program, before a compiler joins or splits any; NVLink "
      "inside a node, the network adapters between nodes",
      "HBM: all of it; JAX takes three quarters unless XLA_PYTHON_CLIENT_MEM_FRACTION says more",
      attention,
  ]
