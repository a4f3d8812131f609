"""FLOPs of a step per device: what the model asks for, what the hardware does, which kernels do it.

- *model*: of the mathematics, `Run.model_flops` (every product once, attention whole even where it
  is causal, no recomputation), shared evenly by the devices.
- *hardware*: of the real step's jaxpr: recomputation and feature passes included, scan bodies times
  their length, of a `cond` the costliest branch (so a block that causal attention skips counts as
  visited, as the last device of a causal ring does visit it), the body of a `shard_map` on each of
  its devices, the rest shared evenly.
- *kernels*: calls that a jaxpr does not show the inside of; each says how it was counted.
- *executed*: the products of the partitioned program, and the kernels. More than the hardware
  FLOPs means that the mesh does not divide something: every device does it whole, or pads it.
"""

import dataclasses
import math
from typing import Any

import numpy as np

from mmjax.plan import hlo
from mmjax.training import flops


@dataclasses.dataclass(frozen=True)
class KernelCalls:
  """One kernel's calls in a step, on one device.

  Attributes:
    name: of the kernel.
    calls: how many.
    flops: of all calls together; None if unknown.
    how: how the FLOPs were found.
  """

  name: str
  calls: float
  flops: float | None
  how: str


@dataclasses.dataclass(frozen=True)
class Flops:
  """FLOPs of a step per device, see the module; None where they are not known."""

  model: float | None
  hardware: float
  kernels: tuple[KernelCalls, ...] = ()
  executed: float | None = None

  @property
  def at_least(self) -> bool:
    """Whether there are kernels whose FLOPs are unknown, and missing in the sums."""
    return any(kernel.flops is None for kernel in self.kernels)

  @property
  def imbalance(self) -> float | None:
    """Executed over hardware FLOPs; 1 where the mesh shares all products evenly."""
    return self.executed / self.hardware if self.executed and self.hardware else None


def count(run: Any, jaxpr: Any, text: str | None = None) -> Flops:
  """The FLOPs of a run's step.

  Args:
    run: a `training.assemble.Run`.
    jaxpr: of its step, as traced for the mesh of the plan.
    text: of the compiled program, for `executed`; None leaves that out.
  """
  devices = run.mesh.size
  work = flops.work(jaxpr, recompute=True, look_into=look_into)
  kernels = tuple(
      KernelCalls(kernel.name, calls / devices,
                  None if kernel.flops is None else kernel.flops * calls / devices, kernel.how)
      for kernel, calls in work.kernels.items())
  model = run.model_flops()
  executed = None
  if text is not None:
    executed = products(hlo.parse(text)) + sum(kernel.flops or 0 for kernel in kernels)
  return Flops(model=None if model is None else model / devices, hardware=work.flops / devices,
               kernels=kernels, executed=executed)


def look_into(eqn) -> flops.Kernel:
  """The FLOPs of one call of a kernel, from its equation in a jaxpr.

  A Pallas kernel's body is a jaxpr: it is counted once for each point of the grid, also those that
  a mask lets it skip. Where that fails, what its author declares (`cost_estimate`) is taken.
  cuDNN's attention: 4 B H Q K d forward, two products; 2.5 times that backward, five products, one
  of them to compute the weights again (FlashAttention-2, arXiv:2307.08691, section 4.1).
  """
  primitive = eqn.primitive.name
  name = eqn.params.get("name") or eqn.params.get("call_target_name") or primitive
  name = getattr(name, "name", name)
  if primitive.startswith("dot_product_attention"):
    (batch, queries, heads, width), keys = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape[1]
    forward = 4 * batch * heads * queries * keys * width
    backward = "bwd" in primitive
    return flops.Kernel(name, forward * 5 // 2 if backward else forward,
                        f"formula: {'10' if backward else '4'} B H Q K d")
  grid = getattr(eqn.params.get("grid_mapping"), "grid", None)
  if grid is not None and all(isinstance(size, int) for size in grid):
    try:
      inside = flops.work(eqn.params["jaxpr"], recompute=True, look_into=look_into)
      return flops.Kernel(name, inside.flops * math.prod(grid), f"its jaxpr, grid {tuple(grid)}")
    except ValueError:
      pass  # a loop of unknown length: its author may know
  estimate = eqn.params.get("cost_estimate")
  if estimate is not None:
    return flops.Kernel(name, int(estimate.flops), "its author's cost estimate")
  return flops.Kernel(name, None, "unknown")


def products(module: hlo.Module) -> int:
  """FLOPs of the `dot`s and `convolution`s that one run of a compiled program does.

  XLA:TPU writes matrix products as convolutions whose window lies partly in padding or in the holes
  of a dilation; only what a window reads of the operand itself counts.
  """
  return sum(_product(instruction) * times for instruction, times in module.executed(_product))


def _product(instruction):
  if instruction.op == "dot":
    lhs = instruction.inputs[0].arrays[0].dims
    contracting = instruction.attribute("lhs_contracting_dims", r"\{[\d,]*\}")
    return 2 * math.prod(instruction.arrays[0].dims) * math.prod(
        lhs[int(i)] for i in contracting.strip("{}").split(",") if i)
  if instruction.op == "convolution":
    return _convolution(instruction)
  return 0


def _convolution(instruction):
  """2 x batch x features out x features in of a group x (output, kernel element) that meet."""
  lhs_of, rest = instruction.attribute("dim_labels").split("_")
  rhs_of, out_of = rest.split("->")
  lhs, rhs = (one.arrays[0].dims for one in instruction.inputs[:2])
  out = instruction.arrays[0].dims
  meets = 1
  window = _window(instruction.attribute("window", r"\{[^}]*\}") or "{}")
  for spatial in range(len(out) - 2):
    label = str(spatial)
    meets *= _meetings(lhs[lhs_of.index(label)], rhs[rhs_of.index(label)], out[out_of.index(label)],
                       *window(spatial))
  return 2 * out[out_of.index("b")] * out[out_of.index("f")] * rhs[rhs_of.index("i")] * meets


def _window(text):
  """A function from a spatial dimension to (stride, padding below, lhs dilation, rhs dilation)."""
  fields = dict(part.split("=") for part in text.strip("{}").split())

  def of(spatial):
    stride, lhs, rhs = (int(fields[key].split("x")[spatial]) if key in fields else 1
                        for key in ("stride", "lhs_dilate", "rhs_dilate"))
    below = int(fields["pad"].split("x")[spatial].split("_")[0]) if "pad" in fields else 0
    return stride, below, lhs, rhs

  return of


def _meetings(length, kernel, out, stride, below, lhs_dilation, rhs_dilation):
  """How many pairs of an output and a kernel element meet an element of the operand."""
  starts = np.arange(out, dtype=np.int64) * stride - below
  reads = starts[:, None] + np.arange(kernel, dtype=np.int64) * rhs_dilation
  inside = (reads >= 0) & (reads < (length - 1) * lhs_dilation + 1) & (reads % lhs_dilation == 0)
  return int(inside.sum())
