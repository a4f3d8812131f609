"""Memory of a compiled step on one device: what it takes, of what, and what it may take.

All quantities are bytes per jax device.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50, "E": 2**60}
_SIZE = r"([\d.]+)([KMGTPE]?)i?B?"


@dataclasses.dataclass(frozen=True)
class Memory:
  """What a step takes on a device.

  Attributes:
    args: the state and the batch.
    temp: the compiler's temporaries; None if it did not say.
    output: results, including those that lie in the place of arguments.
    alias: of the results, those that do (the donated state).
    peak: needed at once: args + temp + output - alias, which is what a program reserves when it is
      loaded; for a program that does not fit, what the compiler says it would need.
    limit: what the compiler grants a program of the device's memory.
    source: where the figures are from.
    live: the largest sum of live buffers that the compiler computed; those that it keeps in a
      chip's fast memory count too. None if it did not say.
  """

  args: int
  temp: int | None
  output: int | None
  alias: int | None
  peak: int
  limit: int
  source: str
  live: int | None = None

  @property
  def fits(self) -> bool:
    return self.peak <= self.limit


@dataclasses.dataclass(frozen=True)
class Oom:
  """A compiler's complaint about too little memory.

  Attributes:
    peak, limit: what it needs and what there is.
    largest: (bytes, description) of the largest allocations, where it lists them.
    text: its lines that say so.
  """

  peak: int
  limit: int
  largest: tuple[tuple[int, str], ...]
  text: str


# Of XLA:TPU 2026, XLA:TPU until 2025 (two forms), the early exit.
_COMPLAINTS = tuple(re.compile(pattern, re.DOTALL) for pattern in (
    rf"memory required for HLO temporaries \({_SIZE}\) exceeds available HBM \({_SIZE}\)",
    rf"Used {_SIZE} of {_SIZE} hbm",
    rf"Program requires {_SIZE} .*?has {_SIZE} available",
    rf"Requires {_SIZE}, has {_SIZE} available",
))
_ALLOCATION = re.compile(
    rf"^\s*\d+\. Size: {_SIZE}\s*$(?P<rest>.*?)(?=^\s*=====|^\s*\d+\. Size:|\Z)", re.M | re.S)


def parse_oom(text: str) -> Oom | None:
  """Reads a RESOURCE_EXHAUSTED of `compile()`; None if it is of another form."""
  for complaint in _COMPLAINTS:
    found = complaint.search(text)
    if found:
      peak, limit = _bytes(*found.groups()[:2]), _bytes(*found.groups()[2:4])
      line = next(line for line in text.splitlines() if found[0].splitlines()[0] in line)
      return Oom(peak, limit, _allocations(text), " ".join(line.split())[:400])
  return None


def _bytes(number: str, unit: str) -> int:
  return round(float(number) * UNITS[unit])


def _allocations(text):
  """The list "1. Size: 2.25G / Operator: ... / Shape: ..." of older compilers."""
  result = []
  for found in _ALLOCATION.finditer(text):
    fields = dict(re.findall(r"^\s*(Operator|Shape): (.*?)\s*$", found["rest"], re.M))
    name = re.search(r'op_name="([^"]*)"', fields.get("Operator", ""))
    said = " ".join(filter(None, [fields.get("Shape", "").partition("{")[0], name and name[1]]))
    result.append((_bytes(found[1], found[2]), said))
  return tuple(result)


def of_executable(stats: Any, limit: int) -> Memory:
  """From `compiled.memory_analysis()`."""
  args, temp = stats.argument_size_in_bytes, stats.temp_size_in_bytes
  output, alias = stats.output_size_in_bytes, stats.alias_size_in_bytes
  live = getattr(stats, "peak_memory_in_bytes", None) or None
  return Memory(args, temp, output, alias, args + temp + output - alias, limit,
                "compiled: arguments + temporaries + output - alias", live)


def of_complaint(oom: Oom, args: int) -> Memory:
  """Of a program that does not fit; `args` from the shardings."""
  return Memory(args, max(0, oom.peak - args), None, None, oom.peak, oom.limit,
                f"does not fit, the compiler says: {oom.text}")


def bytes_of(tree: Any) -> int:
  """Bytes on a device of ShapeDtypeStructs that carry their sharding."""
  return sum(leaf_bytes(leaf) for leaf in jax.tree.leaves(tree))


def leaf_bytes(leaf: Any) -> int:
  """Bytes on a device of one ShapeDtypeStruct; whole if it has no sharding."""
  sharding = getattr(leaf, "sharding", None)
  shape = sharding.shard_shape(leaf.shape) if sharding is not None else leaf.shape
  return math.prod(shape) * leaf.dtype.itemsize


@functools.lru_cache
def granted(device: Any) -> int | None:
  """Bytes that the compiler lets a program use on such a device; None if it does not say.

  Asked with a program that cannot fit: the complaint names the limit.
  """
  mesh = Mesh(np.array([device]), ("alone",))  # whatever mesh is set outside is not meant
  far_too_much = jax.ShapeDtypeStruct((2**21, 2**21), "float32",
                                      sharding=NamedSharding(mesh, PartitionSpec()))
  try:
    with jax.set_mesh(mesh):
      jax.jit(lambda x: x + 1).lower(far_too_much).compile()
  except jax.errors.JaxRuntimeError as error:
    oom = parse_oom(str(error))
    return oom.limit if oom else None
  return None
