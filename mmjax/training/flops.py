"""Model FLOPs, counted from the jaxpr of a step, and the share of the peak that they make (MFU).

Counted are products: matrix products and convolutions, 2 FLOPs for each multiply-add. Elementwise
work, reductions and gathers are not, as is usual for MFU (PaLM, arXiv:2204.02311, appendix B). A
scan counts its body times its length, a `cond` its costliest branch, and the body of a `shard_map`
all its devices, so the result is that of the whole batch on the whole mesh.

*Model* FLOPs are those that the mathematics asks for: trace the gradient of the loss with
rematerialisation off and in one pass (no feature pass before it), whatever the real step does.
"""

from collections.abc import Callable, Iterator, Sequence
import math
from typing import Any

import jax
from jax.extend import core

# Their jaxpr does not show the products; and kernels recompute, which is not the model's work.
OPAQUE = ("pallas_call", "mpmd_map", "dot_product_attention", "ffi_call", "custom_call")

# Peak bfloat16 FLOP/s, dense, of one jax device, by `device_kind`.
# TPU: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, "peak compute per chip". A chip is one
# device, except that JAX sees the two chiplets of TPU7x as two.
# NVIDIA: data sheets of A100, H100 (SXM), H200 (SXM) and HGX B200, without sparsity.
PEAK = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12, "TPU v5e": 197e12,
    "TPU v5": 459e12, "TPU v5p": 459e12,
    "TPU v6 lite": 918e12, "TPU v6e": 918e12,
    "TPU7x": 2307e12 / 2,
    "NVIDIA A100-SXM4-40GB": 312e12, "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}


def count(fn: Callable, *args: Any, recompute: bool = False) -> int:
  """FLOPs of the products in `fn(*args)`; nothing is computed.

  Args:
    fn: usually `jax.grad` of the loss.
    args: arrays or `jax.ShapeDtypeStruct`s.
    recompute: allow rematerialisation, and count what is computed twice twice (hardware FLOPs).

  Raises:
    ValueError: `fn` recomputes under `jax.checkpoint` and `recompute` is False; it has a `while` of
      unknown length around a product; or it calls a kernel whose products cannot be seen.
  """
  return count_jaxpr(jax.make_jaxpr(fn)(*args), recompute=recompute)


def count_jaxpr(jaxpr: core.ClosedJaxpr | core.Jaxpr, recompute: bool = False) -> int:
  """As `count`, of a jaxpr."""
  jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
  return sum(_equation(eqn, recompute) for eqn in jaxpr.eqns)


def mfu(flops_per_step: float, seconds_per_step: float,
        devices: Sequence[jax.Device] | None = None) -> float | None:
  """Model FLOPs utilisation: the share of the devices' bf16 peak; None if not in `PEAK`.

  Args:
    flops_per_step: of the global batch.
    seconds_per_step: measured.
    devices: all devices of the mesh, default all of all processes.
  """
  peaks = [PEAK.get(device.device_kind) for device in devices or jax.devices()]
  if None in peaks:
    return None
  return flops_per_step / seconds_per_step / sum(peaks)


def _equation(eqn: core.JaxprEqn, recompute: bool) -> int:
  name = eqn.primitive.name
  if name in PRODUCTS:
    return PRODUCTS[name](eqn)
  if name.startswith(OPAQUE):
    raise ValueError(f"{name} hides its products: count FLOPs with the backend 'xla'")
  inner = [count_jaxpr(jaxpr, recompute) for jaxpr in _inner(eqn)]
  if name == "scan":
    return eqn.params["length"] * sum(inner)
  if name == "cond":
    return max(inner)
  if name == "while" and sum(inner):
    raise ValueError("a `while` loop around products has no known length: use lax.scan, or "
                     "lax.fori_loop with Python ints under jax.grad")
  if name == "shard_map":
    mesh = eqn.params["mesh"]
    return sum(inner) * math.prod(mesh.shape[axis] for axis in _manual(eqn))
  if eqn.params.get("differentiated") and sum(inner) and not recompute:
    raise ValueError("the backward pass recomputes under jax.checkpoint: model FLOPs are counted "
                     "with remat off (or pass recompute=True for those of the hardware)")
  return sum(inner)


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
