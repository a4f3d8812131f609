"""The table from logical axis names to mesh axes, for parameters and activations.

Models and batches speak of logical axes (`batch`, `embed`, `heads`, ...). Only this file and the
config know which mesh axes, if any, shard each of them. The meshes themselves are made in
`mmjax/parallel/devices.py`.
"""

import contextlib
import contextvars
import dataclasses
import difflib
import itertools
import math
from typing import NamedTuple

from flax.core import meta
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.parallel.devices import (
    AXES, PRESETS, STAND_INS, make_mesh, platform_of, slice_of, slices_of)

__all__ = ["AXES", "PRESETS", "RULES", "Undivided", "axes_by_dimension", "axes_of", "batch_axes",
           "batch_sharding", "constrain", "device_count", "full_rules", "make_mesh", "platform",
           "platform_of", "replicated", "slice_of", "slices_of", "stands_in", "tree_shardings",
           "unbox", "undivided_activations", "use"]

# Logical axis -> mesh axis, tuple of mesh axes, or None. The rows are applied to an array in this
# order, and each takes its axes only up to the first that an earlier row has. So an activation is
# sharded by its rows, and its `embed` is whole; a parameter has no rows, and its `embed` is split
# over every axis that would otherwise only hold copies of it.
RULES = {
    "batch": ("data", "fsdp", "expert"),
    "expert": "expert",
    "embed": ("fsdp", "sequence", "expert"),
    "length": "sequence",
    "mlp": "tensor",
    "heads": "tensor",
    "vocab": "tensor",
    "kv": None,
    "layers": None,
}


class Undivided(NamedTuple):
  """A dimension of an activation which the rules shard, but whose size the mesh does not divide.

  Attributes:
    names: the logical axes of the array, as in the call of `constrain`.
    dimension: which of its dimensions.
    size: of that dimension.
    axes: the mesh axes that it was to be split over and is not.
  """

  names: tuple
  dimension: int
  size: int
  axes: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class _Scope:
  """What `use` sets: read while a function is traced."""

  mesh: Mesh
  rules: tuple
  undivided: dict[Undivided, None]  # in order, each once


_scope = contextvars.ContextVar("mmjax_mesh", default=None)


def full_rules(rules=None):
  """`RULES` with the entries of `rules` (dict, as in a config) put over them; new names go last.

  Returns:
    A tuple of (logical axis, mesh axis | tuple of mesh axes | None).
  """
  table = {**RULES, **dict(rules or {})}
  return tuple((name, _as_axes(axes)) for name, axes in table.items())


def _as_axes(axes):
  """A rule's value as PartitionSpec wants it: configs write lists, it needs tuples."""
  if axes is None or isinstance(axes, str):
    return axes
  return tuple(axes) or None


def _checked_rules(mesh, rules):
  """`full_rules(rules)`, all of whose mesh axes are known."""
  table = full_rules(rules)
  known = tuple(dict.fromkeys((*mesh.axis_names, *AXES)))
  for name, axes in table:
    for axis in _names(axes):
      if axis not in known:
        near = difflib.get_close_matches(str(axis), known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"rule {name} -> {axis}: the mesh has no axis {axis!r}{hint} "
                         f"(valid: {', '.join(known)})")
  return table


def _names(axes):
  """A rule's value as a tuple of mesh axis names."""
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


@contextlib.contextmanager
def use(mesh, rules=None):
  """Sets the mesh and the rules for all that is traced inside.

  `constrain`, `axes_of`, `platform` and `jax.shard_map` without a mesh read them. Enter it outside
  `jax.jit`; what has been traced is not traced again under other rules.

  Args:
    mesh: from `make_mesh`.
    rules: changes to `RULES`, {logical axis: mesh axis | sequence of mesh axes | None}.
  """
  token = _scope.set(_Scope(mesh, _checked_rules(mesh, rules), {}))
  try:
    with jax.set_mesh(mesh):
      yield mesh
  finally:
    _scope.reset(token)


def platform():
  """"tpu", "gpu" or "cpu": what the program is traced for. Outside `use`, jax's default backend."""
  scope = _scope.get()
  return platform_of(scope.mesh.devices.flat if scope else jax.local_devices())


def stands_in():
  """Whether the mesh is of CPU devices that stand for GPUs, whose kernels they cannot compile."""
  scope = _scope.get()
  return scope is not None and scope.mesh.devices.flat[0] in STAND_INS


def axes_of(logical):
  """Mesh axes of more than one device that shard the logical axis `logical`; () outside `use`."""
  scope = _scope.get()
  if scope is None:
    return ()
  axes = _names(dict(scope.rules).get(logical))
  return tuple(axis for axis in axes if scope.mesh.shape.get(axis, 1) > 1)


def axes_by_dimension(names, shape):
  """For each dimension of an array, the mesh axes over which it is spread; all () outside `use`.

  Args:
    names: a logical axis, or None for a dimension that is whole, for each dimension.
    shape: sizes; axes that do not divide them are left out.
  """
  scope = _scope.get()
  if scope is None:
    return ((),) * len(shape)
  spec, _ = _spec(tuple(names), shape, scope.rules, scope.mesh.shape)
  return tuple(_names(entry) for entry in spec)


def device_count(axes):
  """How many devices the mesh axes `axes` have together, inside `use`."""
  mesh = jax.sharding.get_abstract_mesh()
  return math.prod(mesh.shape[axis] for axis in axes)


def batch_axes():
  """`axes_of("batch")`: the mesh axes over which the rows of a batch are spread."""
  return axes_of("batch")


def constrain(x, names):
  """Tells the compiler how an activation lies on the mesh; returns it. Nothing outside `use`.

  A dimension is left whole over the mesh axes that do not divide its size, and that is noted for
  `undivided_activations`. Axes over which a `jax.shard_map` around it has split it are left out.

  Args:
    x: array.
    names: a logical axis, or None for a dimension that is whole, for each dimension of `x`.

  Raises:
    ValueError: there are not as many names as dimensions.
  """
  names = tuple(names)
  if len(names) != x.ndim:
    raise ValueError(
        f"constrain: {len(names)} logical axes {names} for an array of shape {x.shape}")
  scope = _scope.get()
  if scope is None or scope.mesh.size == 1:
    return x
  manual = jax.sharding.get_abstract_mesh().manual_axes
  sizes = {axis: size for axis, size in scope.mesh.shape.items() if axis not in manual}
  if not sizes:
    return x
  spec, left = _spec(names, x.shape, scope.rules, sizes)
  scope.undivided.update({Undivided(names, i, x.shape[i], axes): None for i, axes in left})
  return jax.lax.with_sharding_constraint(x, spec)


def undivided_activations():
  """What `constrain` had to leave whole since the current `use` was entered, each once, in order.

  Only tracing notes it: a jitted function that was compiled before adds nothing.

  Returns:
    list of `Undivided`.
  """
  scope = _scope.get()
  return list(scope.undivided) if scope else []


def _spec(names, shape, rules, sizes):
  """How an array with logical axes `names` lies on a mesh.

  Args:
    names: logical axis or None for each dimension.
    shape: of the array.
    rules: from `_checked_rules`.
    sizes: {mesh axis: size}; axes that are not in it have one device.

  Returns:
    spec: PartitionSpec, in which mesh axes of one device are left out.
    left: list of (dimension, mesh axes that do not divide it).
  """
  parts, taken, left = [()] * len(shape), set(), []
  for logical, axes in rules:
    for i in [i for i, name in enumerate(names) if name is not None and name == logical]:
      mine = tuple(itertools.takewhile(lambda axis: axis not in taken, _names(axes)))
      taken.update(mine)
      wanted = [axis for axis in mine if sizes.get(axis, 1) > 1]
      for axis in wanted:
        if shape[i] % math.prod(sizes[a] for a in (*parts[i], axis)) == 0:
          parts[i] += (axis,)
      if len(parts[i]) < len(wanted):
        left.append((i, tuple(axis for axis in wanted if axis not in parts[i])))
  return PartitionSpec(*(_entry(axes) for axes in parts)), left


def _entry(axes):
  """A tuple of mesh axes as one entry of a PartitionSpec."""
  return axes if len(axes) > 1 else axes[0] if axes else None


def batch_sharding(mesh, rules=None):
  """How an array with a leading global-batch axis lies on the mesh."""
  axes = _names(dict(_checked_rules(mesh, rules))["batch"])
  spread = tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)
  return NamedSharding(mesh, PartitionSpec(_entry(spread)))


def replicated(mesh):
  """The sharding of an array of which every device holds a copy."""
  return NamedSharding(mesh, PartitionSpec())


def tree_shardings(mesh, rules, tree):
  """A sharding for every leaf of a tree whose leaves may carry Linen's logical axis names.

  Args:
    mesh: from `make_mesh`.
    rules: changes to `RULES`, or None.
    tree: arrays or ShapeDtypeStructs, some in `nn.LogicallyPartitioned` boxes (`jax.eval_shape` of
      an init function gives this). A leaf without a box, or whose box names another number of axes
      than it has (factored optimizer moments), is replicated.

  Returns:
    shardings: the unboxed tree with a NamedSharding for each leaf.
    undivided: list of (path, dimension, tuple of mesh axes): dimensions which the rules shard but
      whose size these mesh axes do not divide; over them they are left whole.
  """
  table = _checked_rules(mesh, rules)
  undivided = []

  def leaf_sharding(path, box):
    names = box.names if isinstance(box, meta.Partitioned) else ()
    value = box.value if isinstance(box, meta.AxisMetadata) else box
    return jax.tree.map(lambda x: NamedSharding(mesh, spec(path, names, x.shape)), value)

  def spec(path, names, shape):
    if len(names) != len(shape):
      return PartitionSpec()
    found, left = _spec(names, shape, table, mesh.shape)
    undivided.extend((path, dimension, axes) for dimension, axes in left)
    return found

  shardings = jax.tree_util.tree_map_with_path(
      lambda path, box: leaf_sharding(jax.tree_util.keystr(path, simple=True, separator="/"), box),
      tree, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
  return shardings, undivided


def unbox(tree):
  """The tree without its `LogicallyPartitioned` boxes; no sharding constraint is applied."""
  return jax.tree.map(
      lambda x: x.unbox(apply_constraint=False) if isinstance(x, meta.Partitioned) else x,
      tree, is_leaf=lambda x: isinstance(x, meta.Partitioned))
