"""Finds what a mesh leaves whole: tensors of the state in copies, and sizes it does not divide.

A state of which every device keeps a copy works, slowly or not at all, and nothing says so. So it
is measured before anything is made. The mesh axes that divide parameters are those that a rule gives
to any logical axis but the rows and the length of activations. The waste of a tensor is what a
device holds of it, less what it would hold if all these axes divided it. Copies over other axes
(`data`) are meant, and only told of.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from flax.core import meta
import jax
from jax.sharding import Mesh, NamedSharding

from mmjax.parallel import mesh as mesh_lib

Tree = Any

ACTIVATION_AXES = ("batch", "length")  # logical axes that no parameter has
GIB = 2**30
LARGE = 16 * 2**20  # bytes a device; what is wasted below it is counted and not named
TOLD = GIB          # bytes a device; a smaller state in copies is nobody's concern
SHOWN = 3           # tensors in the error, the largest first


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A leaf of the state and how it lies.

  Attributes:
    path: in the state.
    parameter: path of the parameter that it is, or that it belongs to (a moment, an average); its
      own path if there is none.
    shape, dtype: of the whole.
    names: logical axes of the parameter; () if it has none.
    spec: its PartitionSpec, as text.
    held: bytes of it on a device.
    least: bytes of it on a device if all axes that divide parameters divided it.
    copies: devices that hold the same part.
  """

  path: str
  parameter: str
  shape: tuple[int, ...]
  dtype: str
  names: tuple[str | None, ...]
  spec: str
  held: int
  least: int
  copies: int

  @property
  def waste(self) -> int:
    return self.held - self.least


@dataclasses.dataclass(frozen=True)
class Axis:
  """A dimension of parameters which mesh axes should divide and do not.

  Attributes:
    name: its logical axis.
    size: of the dimension.
    left: what of it the mesh axes that do divide it leave on a device.
    mesh_axes: {mesh axis: devices}, those that do not divide it.
    parameters: paths of all that have it.
    fits: the most devices of the first of these axes that would divide it.
  """

  name: str
  size: int
  left: int
  mesh_axes: dict[str, int]
  parameters: tuple[str, ...]
  fits: int

  def __str__(self):
    axes = " x ".join(f"mesh.{axis}={size}" for axis, size in self.mesh_axes.items())
    left = "" if self.left == self.size else f", of which other axes leave {self.left}"
    return f"{axes} does not divide {self.name}={self.size}{left}"


@dataclasses.dataclass(frozen=True)
class Findings:
  """What `check` found.

  Attributes:
    mesh: {mesh axis: devices}.
    dividing: those of its axes that divide parameters and have more than one device.
    tensors: every leaf of the state.
    axes: dimensions that are not divided.
    fsdp_fits: the most devices of the mesh over which `fsdp` could divide every parameter.
    max_waste: bytes a device; None for no limit.
  """

  mesh: dict[str, int]
  dividing: tuple[str, ...]
  tensors: tuple[Tensor, ...]
  axes: tuple[Axis, ...]
  fsdp_fits: int
  max_waste: float | None

  @property
  def held(self) -> int:
    """Bytes of the state on a device."""
    return sum(tensor.held for tensor in self.tensors)

  @property
  def waste(self) -> int:
    """Bytes of the state on a device that are copies the mesh could have divided."""
    return sum(tensor.waste for tensor in self.tensors)

  @property
  def offenders(self) -> list[tuple[str, Tensor, int]]:
    """(parameter, its largest leaf, waste with all that belongs to it): the large, largest first."""
    groups = {}
    for tensor in self.tensors:
      groups.setdefault(tensor.parameter, []).append(tensor)
    found = [(name, max(group, key=lambda t: t.waste), sum(t.waste for t in group))
             for name, group in groups.items()]
    return sorted((one for one in found if one[2] >= LARGE), key=lambda one: -one[2])

  def table(self) -> list[Tensor]:
    """Every leaf of the state and how it lies, the largest on a device first."""
    return sorted(self.tensors, key=lambda tensor: -tensor.held)

  @property
  def error(self) -> str | None:
    """One line that says what to change, if more is wasted than may be."""
    if self.max_waste is None or self.waste <= self.max_waste:
      return None
    named = "; ".join(self._describe(*one) for one in self.offenders[:SHOWN]) or "; ".join(
        ["many small tensors", *map(str, self.axes[:SHOWN])])
    return (f"mesh: {gib(self.waste)} of the state on each device are copies that "
            f"{self._axes_text(self.dividing)} should divide, and max_waste_gib is "
            f"{self.max_waste / GIB:g}: {named}. {self._advice()}")

  def lines(self) -> list[str]:
    """What was found, a line each: for the log and for people; [] if there is nothing to say."""
    lines = [f"{axis}: {len(axis.parameters)} parameters lie whole over it, such as "
             f"{axis.parameters[0]}" for axis in self.axes]
    lines += [f"left in copies: {self._describe(*one)}" for one in self.offenders]
    if self.offenders:
      lines.append(f"in all {gib(self.waste)} a device are such copies. {self._advice()}")
    return lines + self._told()

  def to_json(self) -> dict:
    """All of it as plain values; sizes in bytes on a device."""
    tensors = [{**dataclasses.asdict(tensor), "waste": tensor.waste}
               for tensor in self.tensors if tensor.waste >= LARGE]
    return {"dividing": list(self.dividing), "held": self.held, "waste": self.waste,
            "max_waste": self.max_waste, "axes": [dataclasses.asdict(axis) for axis in self.axes],
            "tensors": tensors, "lines": self.lines()}

  def _describe(self, name: str, tensor: Tensor, waste: int) -> str:
    return f"{name} {list(tensor.shape)} {gib(waste)}, {self._reason(name, tensor)}"

  def _reason(self, name: str, tensor: Tensor) -> str:
    reasons = [str(axis) for axis in self.axes if name in axis.parameters]
    if reasons:
      return " and ".join(reasons)
    if not tensor.names:
      return "whose axes have no logical names"
    return f"whose axes ({', '.join(map(str, tensor.names))}) lie by the rules as {tensor.spec}"

  def _advice(self) -> str:
    """Sizes of the mesh axes that would divide what matters."""
    large = {name for name, _, _ in self.offenders}
    fits = {}
    for axis in [axis for axis in self.axes if large & set(axis.parameters)] or self.axes:
      first = next(iter(axis.mesh_axes))
      fits[first] = math.gcd(fits.get(first, axis.fits), axis.fits)
    if not fits:
      return ("Name their axes with nn.with_logical_partitioning and give these names to mesh axes "
              "in `rules`, or raise max_waste_gib.")
    freed = math.prod(self.mesh[axis] // size for axis, size in fits.items())
    sizes = {**fits, "data": self.mesh.get("data", 1) * freed}
    return (f"Take {self._axes_text(fits, fits)} at most, for example "
            f"{self._axes_text(sizes, sizes)}; or raise max_waste_gib.")

  def _axes_text(self, axes, sizes=None) -> str:
    return ", ".join(f"mesh.{axis}={(sizes or self.mesh)[axis]}" for axis in axes)

  def _told(self) -> list[str]:
    """A large state of which every device has a copy, where that is meant."""
    if self.dividing or self.fsdp_fits == 1 or self.held < TOLD:
      return []
    return [f"each of {math.prod(self.mesh.values())} devices holds the whole state, "
            f"{gib(self.held)}; mesh.fsdp={self.fsdp_fits} would leave about "
            f"{gib(self.held / self.fsdp_fits)}"]


def check(abstract: Tree, shardings: Tree, boxed: Tree, undivided: Sequence[tuple], mesh: Mesh,
          rules: Mapping[str, Any] | None = None, max_waste_gib: float | None = None) -> Findings:
  """Measures how a state would lie on a mesh; nothing is made.

  Args:
    abstract: the state: ShapeDtypeStructs, with `params` the parameters.
    shardings: the same tree with the NamedSharding of each.
    boxed: the parameters in their boxes with logical axis names, as an init function gives them.
    undivided: (path, dimension, mesh axes) of parameters, from `mesh.tree_shardings`.
    mesh: from `make_mesh`.
    rules: changes to `mesh.RULES`.
    max_waste_gib: what may be wasted, GiB on a device; None for no limit.
  """
  names = _names(boxed)
  dividing = dividing_axes(mesh, rules)
  tensors = _tensors(abstract, shardings, names, math.prod(mesh.shape[axis] for axis in dividing))
  limit = None if max_waste_gib is None else max_waste_gib * GIB
  parts = {path: (leaf.shape, sharding.shard_shape(leaf.shape)) for (path, leaf), sharding in zip(
      _flat(abstract.params), jax.tree.leaves(shardings.params), strict=True)}
  return Findings(dict(mesh.shape), dividing, tensors, _axes(undivided, names, parts, mesh),
                  _fsdp_fits(names, parts, mesh, rules), limit)


def dividing_axes(mesh: Mesh, rules: Mapping[str, Any] | None = None) -> tuple[str, ...]:
  """The mesh axes of more than one device that the rules give to some axis of parameters."""
  given = {axis for name, axes in mesh_lib.full_rules(rules) if name not in ACTIVATION_AXES
           for axis in _as_tuple(axes)}
  return tuple(axis for axis, size in mesh.shape.items() if size > 1 and axis in given)


def activation_lines(undivided: Sequence[mesh_lib.Undivided], mesh: Mesh) -> list[str]:
  """A line for each dimension of an activation that `mesh.constrain` left whole."""
  return [f"activation ({', '.join(map(str, one.names))}): "
          + " x ".join(f"mesh.{axis}={mesh.shape[axis]}" for axis in one.axes)
          + f" does not divide {one.names[one.dimension]}={one.size}; every one of these devices "
            "computes all of it" for one in undivided]


def gib(count: float) -> str:
  """Bytes for people, with three digits."""
  return f"{count / GIB:.3g} GiB" if count >= GIB / 10 else f"{count / 2**20:.3g} MiB"


def _as_tuple(axes: str | tuple | None) -> tuple[str, ...]:
  return (axes,) if isinstance(axes, str) else tuple(axes or ())


def _names(boxed: Tree) -> dict[str, tuple]:
  is_box = lambda x: isinstance(x, meta.AxisMetadata)
  return {path: tuple(getattr(box, "names", ())) for path, box in _flat(boxed, is_box)}


def _flat(tree: Tree, is_leaf=None) -> list[tuple[str, Any]]:
  return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf)
          for path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)]


def _tensors(abstract: Tree, shardings: Tree, names: dict, ways: int) -> tuple[Tensor, ...]:
  shapes = {path: leaf.shape for path, leaf in _flat(abstract.params)}
  leaves = zip(_flat(abstract), jax.tree.leaves(shardings), strict=True)
  return tuple(_tensor(path, leaf, sharding, shapes, names, ways)
               for (path, leaf), sharding in leaves)


def _tensor(path: str, leaf: Any, sharding: NamedSharding, shapes: dict, names: dict,
            ways: int) -> Tensor:
  parts = path.split("/")
  ends = ("/".join(parts[start:]) for start in range(len(parts)))
  parameter = next((end for end in ends if shapes.get(end) == leaf.shape), path)
  held = math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
  whole = math.prod(leaf.shape) * leaf.dtype.itemsize
  # A tensor cannot be cut finer than into single numbers.
  least = min(held, max(leaf.dtype.itemsize, math.ceil(whole / ways)))
  spec = ", ".join("+".join(_as_tuple(axes)) or "-" for axes in sharding.spec)
  copies = sharding.mesh.size * held // whole if whole else sharding.mesh.size
  return Tensor(path, parameter, tuple(leaf.shape), str(leaf.dtype), names.get(parameter, ()),
                f"({spec})", held, least, copies)


def _axes(undivided: Sequence[tuple], names: dict, parts: dict, mesh: Mesh) -> tuple[Axis, ...]:
  """Equal dimensions of many parameters as one."""
  groups = {}
  for path, dimension, axes in undivided:
    shape, local = parts[path]
    key = names[path][dimension], shape[dimension], tuple(axes), local[dimension]
    groups.setdefault(key, []).append(path)
  return tuple(
      Axis(name, size, local, {axis: mesh.shape[axis] for axis in axes}, tuple(paths),
           math.gcd(mesh.shape[axes[0]], local))
      for (name, size, axes, local), paths in groups.items())


def _fsdp_fits(names: dict, parts: dict, mesh: Mesh, rules: Mapping[str, Any] | None) -> int:
  divided = {name for name, axes in mesh_lib.full_rules(rules) if "fsdp" in _as_tuple(axes)}
  sizes = [size for path, (shape, _) in parts.items() for name, size in zip(names[path], shape)
           if name in divided]
  return math.gcd(mesh.size, *sizes) if sizes else 1
