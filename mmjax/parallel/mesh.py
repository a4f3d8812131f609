"""The device mesh, and the table from logical axis names to mesh axes.

Models and batches speak of logical axes (`batch`, `embed`, `heads`, ...). Only this file and the
config know which mesh axis, if any, shards each of them.
"""

import contextlib
import math

from flax import linen as nn
from flax.core import meta
import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

# Outermost first: neighbouring devices share the last axes, which communicate the most.
AXES = ("data", "fsdp")

# Logical axis -> mesh axis, tuple of mesh axes, or None. Where two logical axes of one array want
# the same mesh axis the earlier row wins, so `batch` stands first: an activation is sharded by its
# rows, a parameter (which has no rows) by `embed`.
RULES = {
    "batch": ("data", "fsdp"),
    "embed": "fsdp",
    "mlp": None,
    "heads": None,
    "kv": None,
    "vocab": None,
    "length": None,
    "layers": None,
}


def make_mesh(data: int = -1, fsdp: int = 1, devices: list | None = None) -> Mesh:
  """Arranges devices on the axes `AXES`; one axis may be -1, meaning all devices that remain.

  Args:
    data: replicas of the parameters, each with its own rows.
    fsdp: devices over which one copy of the parameters is split; they too have their own rows.
    devices: the devices to use; default all of all processes.

  Raises:
    ValueError: the sizes do not multiply to the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  sizes = {"data": data, "fsdp": fsdp}
  shape = _fill(sizes, len(devices))
  # Splitting physical axes lets a logical shape such as (64, 4) lie on a 16x16 torus.
  grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _fill(sizes, count):
  """The mesh shape for `count` devices, with the one -1 in `sizes` replaced."""
  text = " x ".join(f"{name}={size}" for name, size in sizes.items())
  free = [name for name, size in sizes.items() if size == -1]
  bad = [name for name, size in sizes.items() if size != -1 and size < 1]
  if bad or len(free) > 1:
    raise ValueError(f"mesh {text}: sizes are positive, and at most one of them is -1 (the rest)")
  product = math.prod(size for size in sizes.values() if size != -1)
  if count % product or (not free and product != count):
    verb = "does not divide" if free else "is not"
    raise ValueError(f"mesh {text}: the product {product} {verb} the {count} devices there are")
  return tuple(count // product if size == -1 else size for size in sizes.values())


def full_rules(rules=None):
  """`RULES` with the entries of `rules` (dict, as in a config) put over them; new names go last.

  Returns:
    The tuple of (logical axis, mesh axis | tuple of mesh axes | None) that flax reads.
  """
  table = {**RULES, **dict(rules or {})}
  return tuple((name, _as_axes(axes)) for name, axes in table.items())


def _as_axes(axes):
  """A rule's value as flax and PartitionSpec want it: configs write lists, they need tuples."""
  if axes is None or isinstance(axes, str):
    return axes
  return tuple(axes) or None


def _checked_rules(mesh, rules):
  """`full_rules(rules)`, all of whose mesh axes are in `mesh`."""
  table = full_rules(rules)
  for name, axes in table:
    for axis in _names(axes):
      if axis not in mesh.axis_names:
        raise ValueError(f"rule {name} -> {axis}: the mesh has no axis {axis!r}, its axes are "
                         f"{', '.join(mesh.axis_names)}")
  return table


def _names(axes):
  """A rule's value as a tuple of mesh axis names."""
  if axes is None:
    return ()
  return (axes,) if isinstance(axes, str) else tuple(axes)


@contextlib.contextmanager
def use(mesh, rules=None):
  """Sets the mesh and the logical axis rules for all that is traced inside.

  `nn.with_logical_constraint`, `jax.shard_map` without a mesh and `batch_axes` read them. Enter it
  outside `jax.jit`.

  Args:
    mesh: from `make_mesh`.
    rules: changes to `RULES`, {logical axis: mesh axis | sequence of mesh axes | None}.
  """
  with jax.set_mesh(mesh), nn.logical_axis_rules(_checked_rules(mesh, rules)):
    yield mesh


def batch_axes():
  """The mesh axes of more than one device that shard `batch` here; () where there is no mesh."""
  mesh = jax.sharding.get_abstract_mesh()
  axes = _names(dict(nn.get_logical_axis_rules()).get("batch"))
  return tuple(axis for axis in axes if mesh.shape.get(axis, 1) > 1)


def batch_sharding(mesh, rules=None):
  """How an array with a leading global-batch axis lies on the mesh."""
  return NamedSharding(mesh, PartitionSpec(dict(_checked_rules(mesh, rules))["batch"]))


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
    undivided: list of (path, dimension, mesh axes): dimensions which the rules shard but whose
      size the mesh axes do not divide; they are left whole.
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
    wanted = nn.logical_to_mesh_axes(names, table)
    return PartitionSpec(*(fits(path, i, axes, size)
                           for i, (axes, size) in enumerate(zip(wanted, shape))))

  def fits(path, dimension, axes, size):
    if size % math.prod(mesh.shape[axis] for axis in _names(axes)) == 0:
      return axes
    undivided.append((path, dimension, axes))
    return None

  shardings = jax.tree_util.tree_map_with_path(
      lambda path, box: leaf_sharding(jax.tree_util.keystr(path, simple=True, separator="/"), box),
      tree, is_leaf=lambda x: isinstance(x, meta.AxisMetadata))
  return shardings, undivided


def unbox(tree):
  """The tree without its `LogicallyPartitioned` boxes; no sharding constraint is applied."""
  return jax.tree.map(
      lambda x: x.unbox(apply_constraint=False) if isinstance(x, meta.Partitioned) else x,
      tree, is_leaf=lambda x: isinstance(x, meta.Partitioned))
