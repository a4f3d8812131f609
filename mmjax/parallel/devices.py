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
      devices say. CPU devices, which do not say, are cut into so many equal groups, in order.
    devices: the devices to use; default all of all processes.

  Raises:
    ValueError: sizes, preset or slices do not fit each other or the number of devices.
  """
  devices = list(jax.devices() if devices is None else devices)
  groups = device_groups(devices, slices)
  given = {"data": data, "fsdp": fsdp, "expert": expert, "sequence": sequence, "tensor": tensor}
  given = {axis: size for axis, size in given.items() if size is not None}
  shape = _fill(_sizes(given, preset, len(groups)), len(devices))
  return Mesh(arrange(groups, shape), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def arrange(groups, shape):
  """The devices of each slice, as an array of the mesh's shape.

  `data` crosses the slices, its outer part being the slice; if it is too small, so does `fsdp`, for
  the factor that is missing. The inner axes communicate too much for the network between slices.
  The nodes of a GPU cluster are not so strict: the devices lie in the order of node and id, so that
  inner axes stay in a node as long as it has room for them.

  Args:
    groups: for each slice, a list of its devices.
    shape: sizes of `AXES`.

  Raises:
    ValueError: an inner axis would cross slices.
  """
  if platform_of(groups[0]) == "gpu":
    ordered = [d for group in groups for d in sorted(group, key=lambda d: d.id)]
    return np.array(ordered).reshape(shape)
  across = _split(shape, len(groups))
  inner = [size // cut for size, cut in zip(shape, across)]
  grids = np.stack([_place(group, inner) for group in groups]).reshape(*across, *inner)
  n = len(shape)
  return grids.transpose([k for axis in range(n) for k in (axis, n + axis)]).reshape(shape)


def _split(shape, slices):
  """By how much each axis is cut by the borders of slices."""
  data, fsdp = shape[:2]
  across_data = math.gcd(data, slices)
  across_fsdp = slices // across_data
  if fsdp % across_fsdp:
    raise ValueError(
        f"data={data} x fsdp={fsdp} on {slices} slices: only these two axes may cross slices; make "
        f"data a multiple of {slices}, or fsdp one of {across_fsdp}")
  return (across_data, across_fsdp) + (1,) * (len(shape) - 2)


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
    others = product // abs(size)
    if size == -1 or (size == 1 and (free or axis != "data")) or count % others:
      continue
    fitting = _divisors(count // others) if free else [count // others]
    changes += [f"{axis}={n}" for n in _around(size, fitting)]
  if changes:
    return f"{' or '.join(changes)} would fit"
  near = " or ".join(map(str, _around(product, _divisors(count))))
  return f"take sizes whose product is {near if free else count}"


def _divisors(count):
  return [n for n in range(1, count + 1) if count % n == 0]


def _around(size, choices):
  """The nearest of the sorted choices on both sides of a size."""
  return [n for n in choices if n < size][-1:] + [n for n in choices if n > size][:1]


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
  groups = device_groups(list(devices), slices)
  place = {device: i for i, group in enumerate(groups) for device in group}
  return [place[device] for device in devices]


def device_groups(devices, slices=None):
  """The devices of each slice, as a list of lists; of equal length, except on GPUs."""
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
  if platform_of(devices) != "gpu" and len({len(group) for group in groups}) > 1:
    raise ValueError(f"slices of unequal size: {[len(group) for group in groups]} devices")
  return groups


def _place(devices, shape):
  """The devices of one slice on a mesh: neighbours on it are neighbours in the network."""
  chips = collections.defaultdict(list)
  for device in sorted(devices, key=_core):
    chips[tuple(getattr(device, "coords", (device.id,)))].append(device)
  cores = {len(chip) for chip in chips.values()}
  inner = max((axis for axis, size in enumerate(shape) if size > 1), default=0)
  if len(cores) > 1 or shape[inner] % max(cores):
    return _place_chips(devices, shape)
  # The devices of one chip (tpu7x has two) are nearer to each other than to any other.
  outer = [size // max(cores) if axis == inner else size for axis, size in enumerate(shape)]
  grid = _place_chips([chip[0] for chip in chips.values()], outer)
  if len(devices) == len(chips):
    return grid
  return np.array([chips[tuple(device.coords)] for device in grid.flat]).reshape(shape)


def _core(device):
  return getattr(device, "core_on_chip", 0)


def _place_chips(devices, shape):
  """`_place` without regard to several devices on a chip. CPU devices stay in their order."""
  try:
    # Splitting physical axes lets a logical shape such as (64, 4) lie on a 16x16 torus.
    return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
  except (NotImplementedError, AssertionError, ValueError, TypeError) as error:
    # Known: a torus with a side of 28 (v5p:16x20x28), whose prime factors jax 0.10 gets wrong.
    log.info("mesh: create_device_mesh cannot place %s: %s", tuple(shape), str(error)[:200])
  ordered = sorted(devices, key=lambda d: (*getattr(d, "coords", ()), _core(d), d.id))
  sides = [len(set(values)) for values in zip(*(getattr(d, "coords", ()) for d in devices))]
  if math.prod(sides) != len(devices):
    log.warning("mesh: %d devices form no box; they lie on the mesh in the order of their "
                "coordinates, and collectives may be slow", len(devices))
    return np.array(ordered).reshape(shape)
  return _split_torus(np.array(ordered).reshape(sides), shape)


def _split_torus(torus, shape):
  """Spreads the mesh axes over the sides of a torus of devices, the inner axes first.

  An axis takes of each side the largest factor that both still have. As the devices are as many as
  the mesh has places, each axis gets all of its factors.
  """
  sides = list(torus.shape)
  parts = np.ones((len(sides), len(shape)), int)  # [side, axis]: the factors
  for axis in reversed(range(len(shape))):
    size = shape[axis]
    for side in sorted(range(len(sides)), key=lambda side: -math.gcd(size, sides[side])):
      factor = math.gcd(size, sides[side])
      parts[side, axis], sides[side], size = factor, sides[side] // factor, size // factor
  order = np.arange(parts.size).reshape(parts.shape).T.ravel()
  return torus.reshape(parts.ravel()).transpose(order).reshape(shape)
