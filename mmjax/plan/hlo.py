"""Reads the text of a compiled XLA program: which instruction runs how often, on which arrays.

Enough of the syntax for counting, as the TPU, GPU and CPU compilers print it; see "HLO syntax" at
openxla.org. The program is that of one device. XLA:TPU does not print how often a `while` runs, so
that is found from its condition, the first value of its counter and the step of its body.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import math
import re

_HEADER = re.compile(r"(ENTRY )?%?([\w.\-]+) ")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=?]*)\](\{[^{}]*\})?")
_MEMORY = re.compile(r"S\((\d+)\)")
_CALLED = {
    "while": ("condition", "body"), "fusion": ("calls",), "call": ("to_apply",),
    "async-start": ("calls",), "custom-call": ("called_computations",),
    "conditional": ("branch_computations", "true_computation", "false_computation"),
}
_SAME = ("copy", "bitcast", "convert", "reshape", "copy-start", "copy-done", "optimization-barrier")


@dataclasses.dataclass(frozen=True)
class Array:
  """The shape of one array: `dtype` as XLA writes it, `dims`, and `memory` (0: HBM)."""

  dtype: str
  dims: tuple[int, ...]
  memory: int = 0

  @property
  def bytes(self) -> int:
    """Without the padding of the layout's tiles."""
    if self.dtype in ("token", "opaque"):
      return 0
    bits = 8 if self.dtype == "pred" else int(re.search(r"\d+", self.dtype)[0])
    return math.ceil(math.prod(self.dims) * bits / 8)


@dataclasses.dataclass(frozen=True, eq=False)
class Instruction:
  """`name = shape op(operands), attributes`.

  Attributes:
    shape: text of the result's shape.
    operands: names; for `parameter` and `constant` what stands between the brackets.
    rest: text of the attributes.
    home: the computation that it stands in.
  """

  name: str
  shape: str
  op: str
  operands: tuple[str, ...]
  rest: str
  home: "Computation"

  @functools.cached_property
  def arrays(self) -> list[Array]:
    """The result; several arrays for a tuple."""
    found = _ARRAY.findall(self.shape)
    return [Array(dtype, tuple(int(d.lstrip("<=")) for d in dims.split(",") if d),
                  int((_MEMORY.search(layout) or (0, 0))[1])) for dtype, dims, layout in found]

  @property
  def inputs(self) -> list["Instruction"]:
    """The instructions that give the operands."""
    return [self.home.instructions[name] for name in self.operands
            if name in self.home.instructions]

  def attribute(self, key: str, pattern: str = r"[^,\s]+") -> str | None:
    """The text after `key=`, or None."""
    found = re.search(rf"(?:^|[ ,]){key}=({pattern})", self.rest)
    return found[1] if found else None

  def called(self) -> dict[str, list[str]]:
    """Names of the computations that run when this does, by attribute."""
    result = {}
    for key in _CALLED.get(self.op, ()):
      text = self.attribute(key, r"\{[^}]*\}|[^,\s]+")
      if text:
        result[key] = re.findall(r"[\w.\-]+", text)
    return result


@dataclasses.dataclass(eq=False)
class Computation:
  """A named list of instructions; `root` gives its result."""

  name: str
  instructions: dict[str, Instruction]
  root: Instruction | None = None

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """For each name the instructions that take it as an operand."""
    result = {name: [] for name in self.instructions}
    for instruction in self.instructions.values():
      for name in set(instruction.operands) & set(result):
        result[name].append(instruction)
    return result


@dataclasses.dataclass(eq=False)
class Module:
  """A program. `partitions`: devices that it is made for; of several slices, those of one."""

  computations: dict[str, Computation]
  entry: Computation
  partitions: int
  # While loops whose number of rounds could not be found; they count once.
  unknown_loops: set[str] = dataclasses.field(default_factory=set)

  def executed(self, weigh: Callable[[Instruction], float], inside_fusions: bool = True
               ) -> Iterator[tuple[Instruction, int]]:
    """Every instruction that one run of the program executes, and how many times.

    Args:
      weigh: cost of one execution, by which the costliest branch of a conditional is chosen.
      inside_fusions: go into fusions too.
    """
    return self._run(self.entry, 1, weigh, inside_fusions)

  def _run(self, computation, times, weigh, inside):
    for instruction in computation.instructions.values():
      yield instruction, times
      called = {key: [self.computations[name] for name in names]
                for key, names in instruction.called().items()}
      if instruction.op == "while":
        rounds = self.rounds(instruction)
        if rounds is None:
          self.unknown_loops.add(instruction.name)
        yield from self._run(called["body"][0], times * (1 if rounds is None else rounds),
                             weigh, inside)
      elif instruction.op == "conditional":
        branches = [list(self._run(branch, times, weigh, inside))
                    for group in called.values() for branch in group]
        yield from max(branches, key=lambda b: sum(weigh(i) * n for i, n in b), default=())
      elif inside or instruction.op != "fusion":
        for group in called.values():
          for branch in group:
            yield from self._run(branch, times, weigh, inside)

  def rounds(self, loop: Instruction) -> int | None:
    """How often a `while` runs its body; None if that is not a constant."""
    known = re.search(r'"known_trip_count":\{"n":"?(\d+)', loop.rest)
    if known:
      return int(known[1])
    called = loop.called()
    body = self.computations[called["body"][0]]
    test, (left, right) = self._outer(self.computations[called["condition"][0]].root)
    if test.op != "compare":
      return None
    counter, limit, direction = left, right, test.attribute("direction")
    if self._invariant(counter, loop, body) is not None:
      counter, limit, direction = right, left, {"GT": "LT", "GE": "LE"}.get(direction)
    limit, slot = self._invariant(limit, loop, body), _slot(counter)
    if slot is None or limit is None or direction not in ("LT", "LE"):
      return None
    first, step = _first(slot, loop), self._step(slot, body)
    if first is None or not step or step < 0:
      return None
    return max(0, math.ceil((limit - first + (direction == "LE")) / step))

  def _outer(self, instruction):
    """An instruction, or the one that its fusion ends with, and two operands as seen outside."""
    inputs = instruction.inputs
    while instruction.op in ("fusion", "call"):
      instruction = self.computations[next(iter(instruction.called().values()))[0]].root
      inputs = [inputs[int(i.operands[0])] if i.op == "parameter" else i
                for i in instruction.inputs]
    return instruction, (inputs + [None, None])[:2]

  def _invariant(self, instruction, loop, body):
    """The constant that an instruction of the condition is in every round, or None."""
    value = _constant(instruction)
    slot = _slot(instruction)
    if value is None and slot is not None and body.root.op == "tuple":
      if _slot(body.root.inputs[slot]) == slot:
        value = _first(slot, loop)
    return value

  def _step(self, slot, body):
    """What a body adds to the slot of its state in each round, or None."""
    if body.root.op != "tuple":
      return None
    add, operands = self._outer(_followed(body.root.inputs[slot]))
    if add.op != "add":
      return None
    slots, values = [_slot(x) for x in operands], [_constant(x) for x in operands]
    return next((v for v in values if v is not None), None) if slot in slots else None


def _followed(instruction):
  """Goes back over what only moves a value."""
  while instruction is not None and instruction.op in _SAME and instruction.inputs:
    instruction = instruction.inputs[0]
  return instruction


def _constant(instruction):
  instruction = _followed(instruction)
  if instruction is None or instruction.op != "constant":
    return None
  text = instruction.operands[0] if instruction.operands else ""
  return int(text) if re.fullmatch(r"-?\d+", text) else None


def _slot(instruction):
  """The index of the part of its computation's parameter that an instruction is, or None."""
  instruction = _followed(instruction)
  if instruction is None or instruction.op != "get-tuple-element":
    return None
  return int(instruction.attribute("index")) if instruction.inputs[0].op == "parameter" else None


def _first(slot, loop):
  """The constant that the slot of a loop's state is before the first round, or None."""
  state = loop.inputs[0]
  return _constant(state.inputs[slot]) if state.op == "tuple" else None


def parse(text: str) -> Module:
  """The program of `compiled.as_text()`.

  Raises:
    ValueError: the text has no entry computation.
  """
  text = re.sub(r"/\*index=\d+\*/", "", text)
  found = re.search(r"^HloModule .*num_partitions=(\d+)", text)
  computations, entry, current = {}, None, None
  for line in text.splitlines():
    if line[:1] not in (" ", "}", "") and line.endswith("{"):
      header = _HEADER.match(line)
      current = Computation(header[2], {})
      computations[current.name] = current
      entry = current if header[1] else entry
    elif line.startswith("}"):
      current = None
    elif current is not None and " = " in line:
      instruction = _instruction(line.strip(), current)
      current.instructions[instruction.name] = instruction
      if line.lstrip().startswith("ROOT "):
        current.root = instruction
  if entry is None:
    raise ValueError("no ENTRY computation: is this the text of a compiled program?")
  return Module(computations, entry, int(found[1]) if found else 1)


def _instruction(line, home):
  name, line = line.removeprefix("ROOT ").split(" = ", 1)
  end = _closing(line, 0) + 1 if line.startswith("(") else line.index(" ")
  shape, line = line[:end], line[end:].lstrip()
  start = line.index("(")
  end = _closing(line, start)
  op, inside, rest = line[:start], line[start + 1:end], line[end + 1:]
  if op in ("parameter", "constant"):
    operands = (inside,)
  else:
    operands = tuple(re.findall(r"%([\w.\-]+)", inside)) or tuple(
        word.split()[-1] for word in inside.split(",") if word.strip())
  return Instruction(name.lstrip("%"), shape, op, operands, rest, home)


def _closing(text, start):
  """Where the bracket that opens at `start` closes."""
  depth = 0
  for bracket in re.finditer(r"[()]", text[start:]):
    depth += 1 if bracket[0] == "(" else -1
    if not depth:
      return start + bracket.start()
  raise ValueError(f"a bracket does not close: {text[:80]}")
