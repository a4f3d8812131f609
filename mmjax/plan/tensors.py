"""The largest tensors of a step on one device: of its arguments, and between them.

What lies between is read from the compiled program; of one that does not fit there is no program,
so it is estimated from the traced step.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core

from mmjax.plan import hlo

# Their result is another array under a new name, or no array.
_NO_BUFFER = ("parameter", "tuple", "get-tuple-element", "while", "conditional", "call", "bitcast",
              "constant", "iota", "after-all", "copy-start", "copy-done", "opt-barrier",
              "optimization-barrier")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Tensor:
  """An array on one device.

  Attributes:
    kind: "argument" or "temporary".
    name: path in the arguments, such as "state/params/image/head/kernel", or for a temporary the
      place in the model that made it.
    shape: of the whole for an argument, on the device for a temporary.
    dtype: as numpy or XLA writes it.
    spec: how an argument lies on the mesh, as text.
    ways: into how many parts the mesh divides it; None if not known.
    bytes: on the device.
  """

  kind: str
  name: str
  shape: tuple[int, ...]
  dtype: str
  bytes: int
  spec: str = ""
  ways: int | None = None


def largest(compiled: Any, n: int = 10) -> list[Tensor]:
  """The n largest arguments and temporaries of a `compile.Compiled` together, largest first."""
  return sorted(arguments(compiled)[:n] + temporaries(compiled)[:n], key=lambda t: -t.bytes)[:n]


def arguments(compiled: Any) -> list[Tensor]:
  """All arrays among the arguments, largest on a device first."""
  flat = jax.tree_util.tree_leaves_with_path(compiled.args)
  return sorted((_argument(path, leaf) for path, leaf in flat), key=lambda t: -t.bytes)


def _argument(path, leaf):
  name = jax.tree_util.keystr(path, simple=True, separator="/")
  local = leaf.sharding.shard_shape(leaf.shape)
  spec = ", ".join("-" if axes is None else axes if isinstance(axes, str) else "+".join(axes)
                   for axes in getattr(leaf.sharding, "spec", ()))
  return Tensor("argument", name, tuple(leaf.shape), str(leaf.dtype),
                math.prod(local) * leaf.dtype.itemsize, f"({spec})",
                math.prod(leaf.shape) // max(1, math.prod(local)))


def temporaries(compiled: Any) -> list[Tensor]:
  """The largest array of each shape that the step makes on the way, largest first.

  In the compiled program, those outside fusions and in the device's main memory (HBM). Arrays of
  one shape may share a place, or there may be several at a time; the program does not say.
  """
  if compiled.oom and compiled.oom.largest:  # the compiler has listed them
    return [Tensor("temporary", name, (), "", size) for size, name in compiled.oom.largest]
  found = _of_program(compiled.text) if compiled.text else _of_trace(compiled)
  by_shape = {}
  for tensor in found:
    by_shape.setdefault((tensor.shape, tensor.dtype), tensor)
  return sorted(by_shape.values(), key=lambda t: -t.bytes)


def _of_program(text: str) -> Iterator[Tensor]:
  module = hlo.parse(text)
  for instruction, _ in module.executed(lambda _: 0, inside_fusions=False):
    if instruction.op in _NO_BUFFER:
      continue
    said = _OP_NAME.search(instruction.rest)
    name = _short(said[1]) if said else instruction.op
    for array in instruction.arrays:
      if array.memory == 0:
        yield Tensor("temporary", name, array.dims, array.dtype, array.bytes)


def _of_trace(compiled: Any) -> Iterator[Tensor]:
  """Every result in the jaxpr; one with the batch's rows is taken to be divided as the batch is."""
  rows = {}  # size of a leading dimension of arguments that the mesh divides -> into how many parts
  for tensor in arguments(compiled):
    if tensor.name.startswith("batch/") and tensor.shape and tensor.ways > 1:
      rows[tensor.shape[0]] = tensor.ways
  for eqn in _equations(compiled.jaxpr.jaxpr):
    for var in eqn.outvars:
      shape = getattr(var.aval, "shape", None)
      if not shape or not hasattr(var.aval.dtype, "itemsize"):
        continue
      axis = next((i for i, size in enumerate(shape) if size in rows), None)
      if axis is not None:
        shape = tuple(size // rows[size] if i == axis else size for i, size in enumerate(shape))
        name = _short(f"{eqn.source_info.name_stack}/{eqn.primitive.name}")
        yield Tensor("temporary", name, shape, str(var.aval.dtype),
                     math.prod(shape) * var.aval.dtype.itemsize)


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
  """All equations but those inside a kernel or a shard_map, whose shapes are others."""
  for eqn in jaxpr.eqns:
    yield eqn
    if eqn.primitive.name in ("shard_map", "pallas_call"):
      continue
    for value in eqn.params.values():
      for item in value if isinstance(value, (tuple, list)) else (value,):
        inner = getattr(item, "jaxpr", item)
        if isinstance(inner, core.Jaxpr):
          yield from _equations(inner)


def _short(name: str) -> str:
  """"image/layers/mlp/mul" of "jit(step)/jvp(DualEncoder)/image/layers/while/body/mlp/mul"."""
  loops = ("while", "body", "closed_call")
  parts = [part for part in name.split("/") if part and part not in loops]
  backward = any(part.startswith("transpose(") for part in parts)
  parts = [part for part in parts if "(" not in part]
  return "/".join(parts[-5:]) + (" (backward)" if backward else "")
