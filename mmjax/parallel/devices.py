"""The device mesh: how many devices each axis has, and which device stands where.

Neighbours on the inner axes communicate the most, so they are neighbours in the network too. Slices
(TPU pods joined by the data-centre network, DCN) are crossed by the outermost axes only.
"""

import collections
import difflib
import logging
import math

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
import numpy as np

log = logging.getLogger(__name__)

# Outermost first, in the order of how much they communicate: `data` reduces gradients once a step,
# `fsdp` gathers parameters, `expert` exchanges tokens, `sequence` passes keys and values around in
# every attention, `tensor` reduces activations twice a layer.
AXES = ("data", "fsdp", "expert", "sequence", "tensor")

SLICES = "slices"  # in a preset: as many as there are slices

# Sizes by name. -1 is the rest; an axis that is not named has one device, but `data` has the rest
# if no other axis has it.
PRESETS = {
    "dp": {},
    "fsdp": {"fsdp": -1},
    "fsdp_tp": {"fsdp": -1, "tensor": 4},
    "fsdp_sp": {"fsdp": -1, "sequence": 4},
    "multislice": {"data": SLICES, "fsdp": -1},
}


def make_mesh(data: int | None = None, fsdp: int | None = None, tensor: int | None = None,
              sequence: int | None = None, expert: int | None = None, *, preset: str | None = None,
              slices: int | None = None, devices: list | None = None) -> Mesh:
  """Arranges devices on all of the axes `AXES`; those that are not used have one device.

  One axis may be -1, all devices that remain; if none is, and `data` has no size, `data` is.

  Args:
    data: replicas of the parameters, each with its own rows.
    fsdp: devices over which one copy of the parameters is split; they too have their own rows.
    tensor: devices that share each layer's heads and hidden units.
    sequence: devices that share the tokens of a row.
    expert: devices that share the experts of a mixture; they too have their own rows.
    preset: a name of `PRESETS`; sizes given beside it win.
    slices: groups of devices with a fast network inside and a slow one between; default what the
      devices say. CPU devices, which do not say, are cut into so many equal groups. See `_split`
      for which axes cross them.
    devices: the devices to use; default all of all processes.

  Raises:
    ValueError: sizes, preset or slices do not fit each other or the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  groups = _groups(devices, slices)
  given = {"data": data, "fsdp": fsdp, "expert": expert, "sequence": sequence, "tensor": tensor}
  given = {axis: size for axis, size in given.items() if size is not None}
  shape = _fill(_sizes(given, preset, len(groups)), len(devices))
  across = _split(shape, len(groups))
  grid = _join([_place(group, [n // a for n, a in zip(shape, across)]) for group in groups], across)
  return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _sizes(given, preset, slices):
  """{axis: size} of all axes from a preset and the sizes given beside it; at most one is -1."""
  if preset is not None and preset not in PRESETS:
    near = difflib.get_close_matches(str(preset), PRESETS, 1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"preset={preset!r}: no such preset{hint} (valid: {', '.join(PRESETS)})")
  named = PRESETS[preset] if preset else {}
  sizes = {**named, **given}
  sizes = {axis: slices if size == SLICES else size for axis, size in sizes.items()}
  for axis, size in sizes.items():
    if size != -1 and size < 1:
      raise ValueError(f"{axis}={size}: a size is at least 1, or -1 for the devices that remain")
  free = [axis for axis in AXES if sizes.get(axis) == -1]
  if len(free) > 1:
    origin = [f"{axis} by preset {preset!r}" for axis in free if axis not in given]
    raise ValueError(f"{' and '.join(f'{axis}=-1' for axis in free)}: only one axis can have the "
                     f"devices that remain{f' ({origin[0]})' if origin else ''}; give "
                     f"{' or '.join(free)} a size, such as 1")
  rest = 1 if free else -1
  return {axis: sizes.get(axis, rest if axis == "data" else 1) for axis in AXES}


def _fill(sizes, count):
  """The mesh shape for `count` devices, with the one -1 in `sizes` replaced."""
  product = math.prod(size for size in sizes.values() if size != -1)
  free = -1 in sizes.values()
  if count % product or (not free and product != count):
    used = {axis: size for axis, size in sizes.items() if size != 1} or {"data": 1}
    text = " x ".join(f"{axis}={size}" for axis, size in used.items())
    verb = "does not divide" if free else "is not"
    raise ValueError(f"{text}: the product {product} {verb} the {count} devices there are; "
                     f"{_advice(sizes, product, count)}")
  return tuple(count // product if size == -1 else size for size in sizes.values())


def _advice(sizes, product, count):
  """Which one change of a size would make the mesh fit."""
  free = -1 in sizes.values()
  changes = []
  for axis, size in sizes.items():
    others = product // size if size != -1 else count + 1
    if size == 1 and free or count % others:
      continue
    rest = count // others  # what this axis could have at most
    fitting = [n for n in range(1, rest + 1) if rest % n == 0] if free else [rest]
    below, above = [n for n in fitting if n < size], [n for n in fitting if n > size]
    changes += [f"{axis}={n}" for n in (*below[-1:], *above[:1])]
  if not free and count % product == 0:
    changes.append("data=-1" if sizes["data"] == 1 else f"data={sizes['data'] * count // product}")
  changes = list(dict.fromkeys(changes))
  if not changes:
    return f"sizes that do are divisors of {count}, and so are their products"
  return f"{' or '.join(changes)} would fit"


# CPU devices that stand for GPUs which are not there -> the number of their node. Only a plan has
# such, see `mmjax/plan/host.py`.
STAND_INS = {}


def platform_of(devices):
  """"tpu", "gpu" or "cpu": what the devices, all of one kind, are or stand for."""
  device = next(iter(devices))
  return "gpu" if device in STAND_INS or device.platform in ("cuda", "rocm") else device.platform


def slice_of(device):
  """The number of the slice that a device is in: devices of one slice share the fast network (ICI).

  On a GPU it is that of its node (NVLink). 0 where the device does not say, as on CPU.
  """
  index = STAND_INS.get(device, getattr(device, "slice_index", None))
  if index is None and platform_of([device]) == "gpu":
    index = device.process_index
  return index or 0


def slices_of(devices, slices=None):
  """`slice_of` each of the devices; CPU devices in so many equal groups, in order.

  Raises:
    ValueError: as `make_mesh`.
  """
  place = {device: i for i, group in enumerate(_groups(list(devices), slices)) for device in group}
  return [place[device] for device in devices]


def _groups(devices, slices):
  """The devices of each slice, as a list of lists of equal length."""
  if platform_of(devices) == "cpu":
    slices = 1 if slices is None else slices
    if slices < 1 or len(devices) % slices:
      raise ValueError(f"slices={slices}: does not cut {len(devices)} devices into equal groups")
    size = len(devices) // slices
    return [devices[i * size:(i + 1) * size] for i in range(slices)]
  by_slice = collections.defaultdict(list)
  for device in devices:
    by_slice[slice_of(device)].append(device)
  groups = [by_slice[key] for key in sorted(by_slice)]
  if slices not in (None, len(groups)):
    raise ValueError(f"slices={slices}: the devices are in {len(groups)}; leave it out")
  if len({len(group) for group in groups}) > 1:
    raise ValueError(f"slices of unequal size: {[len(group) for group in groups]} devices")
  return groups


def _split(shape, slices):
  """By how much each axis is cut by the borders of slices.

  `data` is, outermost; if it is too small, `fsdp` is for the factor that is missing. The others
  communicate too much for the network between slices.
  """
  data, fsdp = shape[:2]
  across_data = math.gcd(data, slices)
  across_fsdp = slices // across_data
  if fsdp % across_fsdp:
    raise ValueError(f"data={data} x fsdp={fsdp} on {slices} slices: only these two axes may cross "
                     f"slices; take data={slices} or a multiple of it")
  return (across_data, across_fsdp) + (1,) * (len(shape) - 2)


def _join(grids, across):
  """One mesh of the slices' meshes; the index of the slice is the outer part of an axis's index."""
  inner = grids[0].shape
  grid = np.stack(grids).reshape(*across, *inner)
  order = [k for i in range(len(inner)) for k in (i, len(inner) + i)]
  return grid.transpose(order).reshape([a * n for a, n in zip(across, inner)])


def _place(devices, shape):
  """The devices of one slice on a mesh: neighbours on it are neighbours in the network."""
  try:
    # Splitting physical axes lets a logical shape such as (64, 4) lie on a 16x16 torus.
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  except (NotImplementedError, AssertionError, ValueError) as error:
    log.warning("mesh: %d devices lie in the order of their ids, since they could not be arranged "
                "by their place in the network: %s", len(devices), str(error)[:200])
    return np.array(sorted(devices, key=lambda device: device.id)).reshape(shape)
