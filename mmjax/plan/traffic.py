"""How many bytes a step moves to and from a device's memory (HBM), at least."""

import dataclasses

from mmjax.plan import hlo

# Neither reads nor writes: names for what is there, or what other instructions account for.
_FREE = ("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
         "call", "after-all", "partition-id", "replica-id", "optimization-barrier", "send", "recv",
         "async-start", "async-update")
_PARTS = ("slice", "dynamic-slice", "gather")  # read of their first operand what they give


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Bytes a step, and what was counted."""

  bytes: float
  source: str


def at_least(args: int | None, output: int | None, text: str | None = None) -> Traffic:
  """A lower bound of what a step moves.

  In any program: every argument is read once, and every result written once. In the text of a TPU
  program: what each instruction that runs by itself reads and writes, times how often it runs.
  Nothing is counted for what stays in on-chip memory (XLA's memory space 1 and above), for the
  padding of tiles, for what a fusion hands on without touching, and of an array of which a slice is
  read, or updated in place, all but the slice. How another compiler would fuse is not known, so the
  text of a host program that stands for a GPU's must not be given.

  Args:
    args, output: bytes of a step's arguments and results on a device; None where unknown.
    text: `compiled.as_text()` of a TPU program, or None.
  """
  once = (args or 0) + (output or 0)
  if text is not None:
    module = hlo.parse(text)
    moved = lambda instruction: _moved(instruction, module)
    total = sum(moved(instruction) * times
                for instruction, times in module.executed(moved, inside_fusions=False))
    if total > once:
      return Traffic(total, "reads and writes of the compiled program")
  return Traffic(once, "arguments read once, results written once")


def _moved(instruction, module):
  op = instruction.op
  if op in _FREE or op.endswith("-done"):
    return 0
  if op == "custom-call" and "tpu_custom_call" not in instruction.rest:
    return 0  # only Pallas kernels are known to read and write all that they name
  if op == "fusion":
    return _fusion(instruction, module)
  inputs, results = instruction.inputs, instruction.arrays
  if op == "dynamic-update-slice":
    return 2 * _in_hbm(inputs[1].arrays) if results[0].memory == 0 else 0
  if op.endswith("-start"):  # gives (result, operand, ...) or (operand, result, ...)
    whole = {array.dims for one in inputs for array in one.arrays}
    results = [a for a in results[:2] if a.dims not in whole] or results[:1]
  read = sum(_in_hbm(one.arrays) for one in inputs[:1 if _is_part(op) else None])
  if _is_part(op):
    read = min(read, sum(array.bytes for array in results))
  return read + _in_hbm(results)


def _is_part(op):
  return op.removesuffix("-start") in _PARTS


def _in_hbm(arrays):
  return sum(array.bytes for array in arrays if array.memory == 0)


def _fusion(instruction, module):
  body = module.computations[instruction.called()["calls"][0]]
  read = sum(min(_read(body, i, module), _in_hbm(one.arrays))
             for i, one in enumerate(instruction.inputs))
  parts = body.root.inputs if body.root.op == "tuple" else [body.root]
  written = 0
  for part, array in zip(parts, instruction.arrays):
    if array.memory == 0:
      written += min(_written(part), array.bytes)
  return read + written


def _read(body, index, module):
  """Bytes of its operand of this number that a fusion's body reads."""
  given = next(i for i in body.instructions.values()
               if i.op == "parameter" and i.operands == (str(index),))
  return _read_of(given, body, module)


def _read_of(value, body, module):
  total = 0
  for user in body.users[value.name]:
    first = user.operands[0] == value.name
    if user.op == "tuple" or _is_handed_on(user):
      continue
    if user.op == "bitcast":
      total += _read_of(user, body, module)
    elif user.op in _PARTS and first:
      total += sum(array.bytes for array in user.arrays)
    elif user.op == "fusion":
      inner = module.computations[user.called()["calls"][0]]
      total += sum(_read(inner, i, module) for i, name in enumerate(user.operands)
                   if name == value.name)
    elif user.op != "dynamic-update-slice" or not first:
      return float("inf")
  return total


def _is_handed_on(instruction):
  """A piece of a collective that runs beside the fusion, see `collectives`."""
  return "chain_id=" in instruction.rest or "AsyncCollective" in instruction.rest


def _written(part):
  """Bytes of one result of a fusion that are written."""
  while part.op == "bitcast" and part.inputs:
    part = part.inputs[0]
  if part.op == "parameter" or _is_handed_on(part):
    return 0
  if part.op == "dynamic-update-slice":
    return sum(array.bytes for array in part.inputs[1].arrays)
  return float("inf")
