"""Model FLOPs, counted from the jaxpr of a step, and the share of the peak that they make (MFU).

Counted are products: matrix products and convolutions, 2 FLOPs for each multiply-add. Elementwise
work, reductions and gathers are not, as is usual for MFU (PaLM, arXiv:2204.02311, appendix B). A
scan counts its body times its length, a `cond` its costliest branch, and the body of a `shard_map`
all its devices, so the result is that of the whole batch on the whole mesh.

*Model* FLOPs are those that the mathematics asks for: trace the loss and its gradient with
rematerialisation off and in one pass (no feature pass before it), whatever the real step does.
*Hardware* FLOPs are those of the step as it is, recomputation and kernels included
(`mmjax/plan/flops.py`).
"""

import collections
from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
from jax.extend import core
from jax.interpreters import partial_eval

from mmjax.parallel import chips

# Their jaxpr does not show the products; and kernels recompute, which is not the model's work.
OPAQUE = ("pallas_call", "mpmd_map", "dot_product_attention", "ffi_call", "custom_call")
# A jitted function whose name begins so computes again what a forward pass has computed.
RECOMPUTED = "recomputed"


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A call of a kernel: its name, its FLOPs (None: unknown), and how they were found."""

  name: str
  flops: int | None
  how: str


@dataclasses.dataclass(frozen=True)
class Work:
  """What a jaxpr does: FLOPs of the products that it shows, and how often it calls each kernel."""

  products: int = 0
  kernels: collections.Counter = dataclasses.field(default_factory=collections.Counter)

  @property
  def flops(self) -> int:
    """Of products and kernels, those of unknown FLOPs left out."""
    known = ((kernel.flops or 0) * calls for kernel, calls in self.kernels.items())
    return self.products + sum(known)

  def __add__(self, other: "Work") -> "Work":
    return Work(self.products + other.products, self.kernels + other.kernels)

  def __mul__(self, times: int) -> "Work":
    kernels = {kernel: calls * times for kernel, calls in self.kernels.items()}
    return Work(self.products * times, collections.Counter(kernels))

  def __bool__(self) -> bool:
    return bool(self.products or self.kernels)


def count(fn: Callable, *args: Any, recompute: bool = False) -> int:
  """FLOPs of the products in `fn(*args)`; nothing is computed.

  Args:
    fn: usually `jax.value_and_grad` of the loss; what its results do not need is not counted.
    args: arrays or `jax.ShapeDtypeStruct`s.
    recompute: allow rematerialisation, and count what is computed twice twice (hardware FLOPs).

  Raises:
    ValueError: `fn` recomputes under `jax.checkpoint` and `recompute` is False; it has a `while` of
      unknown length around a product; or it calls a kernel whose products cannot be seen.
  """
  return count_jaxpr(jax.make_jaxpr(fn)(*args), recompute=recompute)


def mathematics(part: Any) -> Any:
  """An objective, or a module of one, that computes the same without rematerialisation and kernels.

  Whatever it is made of keeps its parameters; of each Linen module in it the fields `remat` and
  `attention` are set, where it has them.
  """
  changes = {f.name: mathematics(getattr(part, f.name)) for f in dataclasses.fields(part)
             if f.init and dataclasses.is_dataclass(getattr(part, f.name))
             and f.name not in ("parent", "scope")}
  if isinstance(part, nn.Module):
    plain = {"remat": "none", "attention": "xla"}
    changes |= {name: value for name, value in plain.items()
                if isinstance(getattr(part, name, None), str)}
    return part.clone(**changes)
  return dataclasses.replace(part, **changes)


def count_jaxpr(jaxpr: core.ClosedJaxpr | core.Jaxpr, recompute: bool = False) -> int:
  """As `count`, of a jaxpr."""
  return work(jaxpr, recompute).products


def work(jaxpr: core.ClosedJaxpr | core.Jaxpr, recompute: bool = False,
         look_into: Callable[[core.JaxprEqn], Kernel] | None = None) -> Work:
  """The products of a jaxpr, and its kernels.

  Args:
    jaxpr: of the whole batch on the whole mesh.
    recompute: as in `count`.
    look_into: gives the FLOPs of one call of a kernel; None refuses kernels.

  Raises:
    ValueError: as `count`.
  """
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  # A custom backward pass may give gradients that nobody asks for; the compiler drops them.
  jaxpr, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
  return _walk(jaxpr, recompute, look_into)


def mfu(flops_per_step: float, seconds_per_step: float,
        devices: Sequence[jax.Device] | None = None) -> float | None:
  """Model FLOPs utilisation: the share of the devices' bf16 peak; None if no table has it.

  Args:
    flops_per_step: of the global batch.
    seconds_per_step: measured.
    devices: all devices of the mesh, default all of all processes.
  """
  found = [chips.of_kind(device.device_kind) for device in devices or jax.devices()]
  if None in found:
    return None
  return flops_per_step / seconds_per_step / sum(chip.flops for chip in found)


def _walk(jaxpr, recompute, look_into):
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return sum((_equation(eqn, recompute, look_into) for eqn in jaxpr.eqns), Work())


def _equation(eqn: core.JaxprEqn, recompute: bool, look_into: Callable | None) -> Work:
  name = eqn.primitive.name
  if name in PRODUCTS:
    return Work(PRODUCTS[name](eqn))
  if name.startswith(OPAQUE):
    if look_into is None:
      raise ValueError(f"{name} hides its products: count FLOPs with the backend 'xla'")
    return Work(0, collections.Counter([look_into(eqn)]))
  if not recompute and str(eqn.params.get("name", "")).startswith(RECOMPUTED):
    return Work()
  branches = [_walk(jaxpr, recompute, look_into) for jaxpr in _inner(eqn)]
  if name == "cond":
    return max(branches, key=lambda branch: branch.flops)
  inner = sum(branches, Work())
  if name == "scan":
    return inner * eqn.params["length"]
  if name == "while" and inner:
    raise ValueError("a `while` loop around products has no known length: use lax.scan, or "
                     "lax.fori_loop with Python ints under jax.grad")
  if name == "shard_map":
    mesh = eqn.params["mesh"]
    return inner * math.prod(mesh.shape[axis] for axis in _manual(eqn))
  if eqn.params.get("differentiated") and inner and not recompute:
    raise ValueError("the backward pass recomputes under jax.checkpoint: model FLOPs are counted "
                     "with remat off (or pass recompute=True for those of the hardware)")
  return inner


def _inner(eqn: core.JaxprEqn) -> Iterator[core.Jaxpr]:
  """The jaxprs that an equation calls (scan, cond, jit, custom_vjp, checkpoint, ...)."""
  for value in eqn.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, (core.Jaxpr, core.ClosedJaxpr)):
        yield item


def _manual(eqn: core.JaxprEqn) -> Sequence[str]:
  """Mesh axes over which a shard_map's shapes are per device."""
  return eqn.params.get("newly_manual_axes", eqn.params.get("manual_axes"))


def _dot(eqn: core.JaxprEqn) -> int:
  """2 m n k, times the batch dimensions."""
  (contracting, _), _ = eqn.params["dimension_numbers"]
  lhs = eqn.invars[0].aval.shape
  return 2 * eqn.outvars[0].aval.size * math.prod(lhs[i] for i in contracting)


def _ragged_dot(eqn: core.JaxprEqn) -> int:
  """Each row meets the matrix of its own group only: 2 m k n for [m, k] x [groups, k, n]."""
  numbers = eqn.params["ragged_dot_dimension_numbers"]
  (_, contracting), (_, batch) = numbers.dot_dimension_numbers
  rhs = eqn.invars[1].aval.shape
  shared = {*contracting, *batch, *numbers.rhs_group_dimensions}
  return 2 * eqn.invars[0].aval.size * math.prod(d for i, d in enumerate(rhs) if i not in shared)


def _conv(eqn: core.JaxprEqn) -> int:
  """2 x output elements x the kernel's elements that each reads.

  Padding counts, as in published figures. The zeros that `lhs_dilation` inserts (gradients of
  strided convolutions) do not, so that backward costs twice forward.
  """
  numbers, rhs = eqn.params["dimension_numbers"], eqn.invars[1].aval
  reads = rhs.size // rhs.shape[numbers.rhs_spec[0]]
  holes = math.prod(eqn.params["lhs_dilation"])
  return 2 * eqn.outvars[0].aval.size * reads // holes


PRODUCTS = {"dot_general": _dot, "ragged_dot_general": _ragged_dot, "conv_general_dilated": _conv}
