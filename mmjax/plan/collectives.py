"""What the devices of a step send each other, by operation, mesh axis and network.

`read` counts it in the compiled program, `from_shardings` estimates it where there is none.

**Bytes** are those that one device (the busiest) sends in one step when n devices do an operation
in a ring, each holding an operand of x bytes:

  all-gather          (n - 1) x                 n x is the whole
  reduce-scatter      (n - 1) / n x             x is the whole, as of the next two
  all-reduce          2 (n - 1) / n x           a reduce-scatter and an all-gather
  all-to-all          (n - 1) / n x
  collective-permute  x

(Thakur et al. 2005, "Optimization of collective communication operations in MPICH"; no algorithm
sends less.) Where n devices are c in each of s slices, the same bytes split into those inside a
slice and those between slices, since a slice's devices share what arrives: of the first three
(s - 1) / (n - 1) crosses, of an all-to-all c (s - 1) / (n - 1). XLA:TPU splits its program in the
same way.

**Network**: "ici" inside a slice (NVLink on GPUs), "dcn" between slices (nodes on GPUs).
"""

import collections
from collections.abc import Sequence
import dataclasses
import functools
import math
import re
from typing import Any

import jax
from jax.extend import core
import numpy as np

from mmjax.parallel import devices as devices_lib
from mmjax.plan import hlo

_MEGASCALE = {"ALL_REDUCE": "all-reduce", "ALL_GATHER": "all-gather",
              "REDUCE_SCATTER": "reduce-scatter", "ALL_TO_ALL": "all-to-all",
              "ONE_TO_ONE": "collective-permute"}
_OPS = (*_MEGASCALE.values(), "ragged-all-to-all", "collective-broadcast")
_GROUPS = re.compile(
    r"replica_groups=(mesh\[[^\]]*\](?:, device_ids=\(.*?\))? \{[^}]*\}"
    r"|\[[\d,]*\]<=\[[\d,]*\](?:T\([\d,]*\))?|\{\{.*?\}\}|\{\})")


@dataclasses.dataclass(frozen=True)
class Row:
  """All collectives of a step that are alike.

  Attributes:
    op: as XLA names it.
    axes: mesh axes along which its devices differ.
    network: "ici" or "dcn".
    count: executions in a step.
    bytes: sent by one device in a step, all executions together.
    off_chip: those of `bytes` that leave the chip, or for "dcn" the slice, on average over the
      devices. Less than `bytes` where a chip has two devices, or not every device sends.
    torus: dimensions of the physical torus that they travel along; () where there is none.
  """

  op: str
  axes: tuple[str, ...]
  network: str
  count: int
  bytes: float
  off_chip: float
  torus: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Communication:
  """Rows, the largest first, and where they come from."""

  rows: tuple[Row, ...]
  source: str

  @property
  def bytes(self) -> float:
    """Sent by one device in a step."""
    return sum(row.bytes for row in self.rows)

  @property
  def by_network(self) -> dict[str, float]:
    """Bytes, for "ici" and "dcn"."""
    return {network: sum(row.bytes for row in self.rows if row.network == network)
            for network in ("ici", "dcn")}


def sent(op: str, operand: float, devices: int) -> float:
  """Bytes that one of `devices` sends, see the module; `operand` is what it holds at first."""
  if devices < 2:
    return 0.0
  if op in ("collective-permute", "collective-broadcast"):
    return float(operand)
  factor = {"all-gather": devices, "all-reduce": 2}.get(op, 1)
  return factor * operand * (devices - 1) / devices


def read(text: str, mesh: jax.sharding.Mesh, slices: int | None = None) -> Communication:
  """Counts the collectives of a compiled program.

  Args:
    text: `compiled.as_text()`.
    mesh: that it was compiled for; its devices stand in the program in the mesh's order.
    slices: of host devices that stand for a cluster, how many groups they are; else None.
  """
  module, places = hlo.parse(text), Places(mesh, slices)
  rows = _Rows()
  weigh = lambda instruction: _operand_bytes(instruction) if _is_collective(instruction) else 0
  for instruction, times in module.executed(weigh):
    target = re.search(r'_xla_megascale_target=("[^"]*"|\{\{.*?\}\})', instruction.rest)
    if instruction.op == "send" and target:
      op = _MEGASCALE[re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.rest)[1]]
      groups = places.of_megascale(target[1].strip('"'))
      operand = sum(array.bytes for array in instruction.inputs[0].arrays)
      crossed = len(set(places.slices[groups[0]]))
      sending = len(groups) / mesh.size if op == "collective-permute" else 1
      sent_bytes = sent(op, operand, crossed)
      rows.add(op, places.axes(groups, crossing=True), "dcn", times, sent_bytes,
               sent_bytes * sending)
    elif _is_collective(instruction):
      op = _meaning(instruction)
      groups = _groups(instruction.rest, places.of_program(module.partitions))
      rows.add_split(op, groups, times, _operand_bytes(instruction), places)
  source = "compiled program"
  if module.unknown_loops:
    source += f" (at least: {len(module.unknown_loops)} loops of unknown length counted once)"
  return rows.communication(source)


def from_shardings(run: Any, jaxpr: Any = None, slices: int | None = None) -> Communication:
  """Estimates the collectives of a step that could not be compiled.

  Parameters that are split over devices with different rows are gathered for the forward and for
  the backward pass of each micro-batch; their gradients are scattered, and summed over the devices
  that have copies. All that in the dtype of the computation, as XLA:TPU does it: for SigLIP L/16 on
  v5e:16x16 with fsdp=16, whose program sends 4.48 GB a device, this gives 3.92 GB. (XLA gathers the
  attention's weights twice in the backward pass, and sums some gradients where it could scatter
  them.) What a `shard_map` sends (rings of losses and attention) is read from the jaxpr. The sums
  of activations that `tensor` needs are missing.

  Args:
    run: a `training.assemble.Run`.
    jaxpr: of its step; None leaves out what that would show.
    slices: as for `read`.
  """
  places, rows = Places(run.mesh, slices), _Rows()
  micro = run.settings.micro_batches
  several = lambda spec: [axis for axis in _spec_axes(spec) if run.mesh.shape[axis] > 1]
  batch = several(run.batch_sharding.spec)
  itemsize = 2 if "bfloat16" in repr(run.config["objective"]) else 4
  for leaf, sharding in zip(jax.tree.leaves(run.abstract.params),
                            jax.tree.leaves(run.shardings.params), strict=True):
    split = several(sharding.spec)
    gathered, copies = [a for a in split if a in batch], [a for a in batch if a not in split]
    kept = leaf.size * itemsize / math.prod(run.mesh.shape[axis] for axis in split)
    if gathered:
      groups = places.along(gathered)
      rows.add_split("all-gather", groups, 2 * micro, kept, places)
      rows.add_split("reduce-scatter", groups, micro, kept * groups.shape[1], places)
    if copies:
      rows.add_split("all-reduce", places.along(copies), 1, kept, places)
  missing = ""
  if set(run.mesh.axis_names) - set(batch) and any(
      run.mesh.shape[axis] > 1 for axis in run.mesh.axis_names if axis not in batch):
    missing = "; sums of activations left out"
  if jaxpr is not None:
    _add_written(rows, getattr(jaxpr, "jaxpr", jaxpr), 1, places)
  return rows.communication(f"estimated from the shardings{missing}")


def _spec_axes(spec):
  return [axis for entry in spec if entry is not None
          for axis in ((entry,) if isinstance(entry, str) else entry)]


# Primitives that stand in the body of a `shard_map`.
_WRITTEN = {"psum": "all-reduce", "psum2": "all-reduce", "psum_invariant": "all-reduce",
            "all_gather": "all-gather", "all_gather_invariant": "all-gather",
            "reduce_scatter": "reduce-scatter", "all_to_all": "all-to-all",
            "ppermute": "collective-permute"}


def _add_written(rows, jaxpr, times, places):
  """Adds the collectives that a jaxpr names itself; of a `cond` those of all branches."""
  for eqn in jaxpr.eqns:
    op = _WRITTEN.get(eqn.primitive.name)
    axes = eqn.params.get("axes", eqn.params.get("axis_name")) if op else None
    axes = [axes] if isinstance(axes, str) else [a for a in axes or () if isinstance(a, str)]
    if axes:
      groups = places.along(axes)
      if op == "collective-permute":
        groups = groups[:, np.array(eqn.params["perm"])].reshape(-1, 2)
      operand = sum(x.aval.size * x.aval.dtype.itemsize for x in eqn.invars)
      rows.add_split(op, groups, times, operand, places)
    inner = times * eqn.params["length"] if eqn.primitive.name == "scan" else times
    for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
      if _is_jaxpr(value):
        _add_written(rows, getattr(value, "jaxpr", value), inner, places)


def _is_jaxpr(value):
  return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))


class _Rows:
  """Adds up collectives that are alike."""

  def __init__(self):
    self._sums = collections.defaultdict(lambda: [0, 0.0, 0.0])

  def add(self, op, axes, network, times, sent_bytes, off_chip=None, torus=()):
    """`times` executions, each of so many bytes; off the chip all of them unless said."""
    if sent_bytes:
      sums = self._sums[op, axes, network, torus]
      sums[0] += times
      sums[1] += times * sent_bytes
      sums[2] += times * (sent_bytes if off_chip is None else off_chip)

  def add_split(self, op, groups, times, operand, places):
    """Adds a collective of equal groups of devices, inside slices and between them."""
    devices = groups.shape[1]
    if op == "collective-permute":
      return self._add_pairs(groups, times, operand, places)
    whole = sent(op, operand, devices)
    across = len(set(places.slices[groups[0]]))
    chips = len(set(places.chips[groups[0]])) // across
    between = whole * _share(op, devices, across)
    self.add(op, places.axes(groups, crossing=True), "dcn", times, between)
    inside = whole - between
    self.add(op, places.axes(groups), "ici", times, inside if devices > across else 0,
             inside * _share(op, devices // across, chips), places.torus(groups))

  def _add_pairs(self, pairs, times, operand, places):
    crossing = np.diff(places.slices[pairs])[:, 0] != 0
    between, inside = pairs[crossing], pairs[~crossing]
    if len(between):
      self.add("collective-permute", places.axes(between, crossing=True), "dcn", times, operand,
               operand * len(between) / len(places.slices))
    if len(inside):
      leaving = float((np.diff(places.chips[inside])[:, 0] != 0).mean())
      self.add("collective-permute", places.axes(inside), "ici", times, operand,
               operand * leaving, places.torus(inside))

  def communication(self, source):
    """Everything that was added, the largest first."""
    rows = [Row(op, axes, network, count, total, off_chip, torus)
            for (op, axes, network, torus), (count, total, off_chip) in self._sums.items()]
    return Communication(tuple(sorted(rows, key=lambda row: -row.bytes)), source)


def _share(op, devices, places):
  """Which share of what a device sends leaves its place, the devices being in so many places."""
  if devices < 2:
    return 0.0
  copies = devices / places if op.endswith("all-to-all") else 1
  return copies * (places - 1) / (devices - 1)


class Places:
  """Where the devices of a mesh are, by their index in `mesh.devices.flat`.

  Attributes:
    slices, chips: int [N], the number of each device's slice and chip.
  """

  def __init__(self, mesh: jax.sharding.Mesh, slices: int | None = None):
    self._mesh = mesh
    flat = list(mesh.devices.flat)
    ordered = sorted(flat, key=lambda device: device.id)
    number = dict(zip(ordered, devices_lib.slices_of(ordered, slices)))
    self.slices = np.array([number[device] for device in flat])
    self._index = {device.id: i for i, device in enumerate(flat)}
    coords = [tuple(getattr(device, "coords", None) or ()) for device in flat]
    self._coords = np.array(coords)  # [N, dimensions]; [N, 0] where there is no torus
    where = [(s, *(c or (i,))) for i, (s, c) in enumerate(zip(self.slices, coords))]
    chips = {place: i for i, place in enumerate(dict.fromkeys(where))}
    self.chips = np.array([chips[place] for place in where])

  def of_program(self, partitions: int) -> np.ndarray:
    """Indices of the devices that a program of so many partitions is for: all, or one slice's."""
    if partitions == len(self.slices):
      return np.arange(partitions)
    return np.flatnonzero(self.slices == self.slices[0])

  def of_megascale(self, target: str) -> np.ndarray:
    """Groups [G, n] of XLA:TPU's transfers between slices: ids, pairs of ids, or all of slices."""
    if "x{" in target:  # {1,2}x{0:3}: slices, counted from one, and their devices
      chosen = [int(i) - 1 for i in re.findall(r"\d+", target.split("x")[0])]
      names = np.unique(self.slices)
      return np.stack([np.flatnonzero(self.slices == names[i]) for i in chosen], axis=1)
    groups = [[self._index[int(i)] for i in re.findall(r"\d+", group)]
              for group in re.findall(r"\{([^{}]*)\}", target)]
    return _even(groups)

  def along(self, axes: Sequence[str]) -> np.ndarray:
    """Groups [G, n] of the devices that differ only on these mesh axes, the first outermost."""
    names, shape = list(self._mesh.axis_names), self._mesh.devices.shape
    inside = [names.index(axis) for axis in axes]
    outside = [i for i in range(len(names)) if i not in inside]
    order = np.arange(len(self.slices)).reshape(shape).transpose(outside + inside)
    return order.reshape(-1, math.prod(shape[i] for i in inside))

  def axes(self, groups: np.ndarray, crossing: bool = False) -> tuple[str, ...]:
    """Mesh axes along which devices of a group differ that are in one slice.

    With `crossing`: the axes on which their slice depends.
    """
    places = np.stack(np.unravel_index(groups, self._mesh.devices.shape), axis=-1)
    differ = places != places[:, :1]
    if not crossing:
      differ &= (self.slices[groups] == self.slices[groups[:, :1]])[..., None]
    return tuple(name for i, name in enumerate(self._mesh.axis_names)
                 if differ[..., i].any() and (not crossing or self._slice_varies(i)))

  def _slice_varies(self, axis):
    slices = self.slices.reshape(self._mesh.devices.shape)
    return bool((slices != slices.take([0], axis)).any())

  def torus(self, groups: np.ndarray) -> tuple[int, ...]:
    """Dimensions of the torus along which the devices of a group inside a slice differ."""
    coords, slices = self._coords[groups], self.slices[groups]
    differ = (coords != coords[:, :1]) & (slices == slices[:, :1])[..., None]
    return tuple(int(i) for i in np.flatnonzero(differ.any((0, 1))))


def _is_collective(instruction):
  """Whether it is a collective, and not a piece of one that has begun elsewhere.

  XLA:TPU runs a collective beside other work by writing it again into each of the fusions that it
  is to overlap with; they have one `chain_id`. The one that begins it feeds AsyncCollectiveStart.
  """
  if instruction.op.removesuffix("-start") not in _OPS:
    return False
  if "chain_id=" not in instruction.rest:
    return True
  return any("AsyncCollectiveStart" in user.rest
             for user in instruction.home.users[instruction.name])


def _meaning(instruction):
  """The operation; XLA:TPU's fusions of all-reduce and slice are its way to reduce-scatter."""
  op = instruction.op.removesuffix("-start")
  if op == "all-reduce" and instruction.home.name.startswith("all-reduce-scatter"):
    return "reduce-scatter"
  return op


def _operand_bytes(instruction):
  return sum(array.bytes for one in instruction.inputs for array in one.arrays)


def _groups(rest, devices):
  """Indices [G, n] of the devices of each group, or [pairs, 2] of a permutation."""
  pairs = re.search(r"source_target_pairs=\{(.*?)\}\}", rest)
  if pairs:
    return devices[np.array(re.findall(r"\d+", pairs[1]), int).reshape(-1, 2)]
  text = _GROUPS.search(rest)
  return devices[_parse_groups(text[1] if text else "{}", len(devices))]


@functools.lru_cache(maxsize=256)
def _parse_groups(text, count):
  """Positions [G, n] from `replica_groups`, in each of the ways in which XLA writes them."""
  if text == "{}":
    return np.arange(count)[None]
  if text.startswith("mesh"):
    return _mesh_groups(text)
  if "<=" in text:
    return _iota(text)
  return _even([[int(i) for i in group.split(",")]
                for group in re.findall(r"\{([\d,]+)\}", text)])


def _iota(text):
  """[2,4]<=[4,2]T(1,0): the numbers from 0, reshaped to [4, 2], transposed, reshaped to [2, 4]."""
  shape, source, order = re.match(r"\[([\d,]*)\]<=\[([\d,]*)\](?:T\(([\d,]*)\))?", text).groups()
  numbers = lambda part: [int(i) for i in part.split(",")]
  result = np.arange(math.prod(numbers(source))).reshape(numbers(source))
  return (result.transpose(numbers(order)) if order else result).reshape(numbers(shape))


def _mesh_groups(text):
  """mesh['a'=2,'b'=8] {'b':(1)4}: along the part of b that has 1 of it to the left, and 4 in it."""
  axes, ids, chosen = re.match(
      r"mesh\[([^\]]*)\](?:, device_ids=\((.*?)\))? \{([^}]*)\}", text).groups()
  sizes = {name: int(size) for name, size in re.findall(r"'?(\w+)'?=(\d+)", axes)}
  order = np.arange(math.prod(sizes.values()))
  if ids:
    # Either [4,2]T(1,0), numbers from 0 reshaped and transposed, or the numbers themselves.
    order = _iota(f"[{order.size}]<={ids}") if "]T(" in ids else (
        np.array(re.findall(r"\d+", ids), int))
  wanted = collections.defaultdict(list)  # of each axis: [(first of it, how much of it)]
  for name, before, size in re.findall(r"'?(\w+)'?(?::\((\d+)\)(\d+))?", chosen):
    wanted[name].append((int(before or 1), int(size or sizes[name])))
  shape, inside = [], []
  for name, size in sizes.items():
    cuts = {1, size, *(cut for start, n in wanted[name] for cut in (start, start * n))}
    cuts = sorted(cuts)
    for left, right in zip(cuts, cuts[1:]):
      if any(start <= left and right <= start * n for start, n in wanted[name]):
        inside.append(len(shape))
      shape.append(right // left)
  outside = [i for i in range(len(shape)) if i not in inside]
  devices = math.prod(shape[i] for i in inside)
  return order.reshape(shape).transpose(outside + inside).reshape(-1, devices)


def _even(groups: Sequence[list[int]]) -> np.ndarray:
  """Groups as an array; of unequal ones the largest, which send the most."""
  longest = max(map(len, groups))
  return np.array([group for group in groups if len(group) == longest])
