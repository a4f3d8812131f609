"""Sizes, presets, slices, and which device stands where."""

import dataclasses
import logging
import math
import os

import jax
from jax.experimental import mesh_utils, topologies
import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax.parallel import devices as devices_lib
from mmjax.parallel import mesh as mesh_lib
from tests.conftest import needs


def sizes(mesh):
  """{axis: size} of the axes with more than one device."""
  assert mesh.axis_names == ("data", "fsdp", "expert", "sequence", "tensor")
  return {axis: size for axis, size in mesh.shape.items() if size > 1}


def test_minus_one_takes_the_devices_that_remain():
  assert sizes(mesh_lib.make_mesh()) == {"data": 8}
  assert sizes(mesh_lib.make_mesh(fsdp=4)) == {"data": 2, "fsdp": 4}
  assert sizes(mesh_lib.make_mesh(data=-1, fsdp=4)) == {"data": 2, "fsdp": 4}
  assert sizes(mesh_lib.make_mesh(data=2, fsdp=-1)) == {"data": 2, "fsdp": 4}
  assert sizes(mesh_lib.make_mesh(expert=2, sequence=2, tensor=-1)) == {
      "expert": 2, "sequence": 2, "tensor": 2}
  assert sizes(mesh_lib.make_mesh(devices=jax.devices()[:1])) == {}


@pytest.mark.parametrize("preset, beside, expected", [
    ("dp", {}, {"data": 8}),
    ("dp", {"fsdp": 4}, {"data": 2, "fsdp": 4}),
    ("fsdp", {}, {"fsdp": 8}),
    ("fsdp", {"data": 2}, {"data": 2, "fsdp": 4}),
    ("fsdp", {"data": -1, "fsdp": 2}, {"data": 4, "fsdp": 2}),
    ("fsdp_tp", {}, {"fsdp": 2, "tensor": 4}),
    ("fsdp_tp", {"tensor": 8}, {"tensor": 8}),
    ("fsdp_sp", {"sequence": 2}, {"fsdp": 4, "sequence": 2}),
    ("multislice", {}, {"fsdp": 8}),
    ("multislice", {"slices": 2}, {"data": 2, "fsdp": 4}),
])
def test_a_preset_gives_the_sizes_that_are_not_given_beside_it(preset, beside, expected):
  assert sizes(mesh_lib.make_mesh(preset=preset, **beside)) == expected


@pytest.mark.parametrize("settings, message", [
    (dict(data=-1, fsdp=3), r"data=-1 x fsdp=3: the product 3 does not divide the 8 devices there "
                            r"are; fsdp=2 or fsdp=4 would fit"),
    (dict(data=2, fsdp=2), r"data=2 x fsdp=2: the product 4 is not the 8 devices there are; data=4 "
                           r"or fsdp=4 would fit"),
    (dict(data=1, tensor=16), "tensor=16: .* 8 devices .*; tensor=8 would fit"),
    (dict(fsdp=3, tensor=3), "fsdp=3 x tensor=3: .* whose product is 8"),
    (dict(data=-1, fsdp=-1), "data=-1 and fsdp=-1: only one axis"),
    (dict(preset="fsdp_tp", data=-1), r"\(fsdp by preset 'fsdp_tp'\); give data or fsdp a size"),
    (dict(data=0), "data=0: a size is at least 1"),
    (dict(sequence=-2), "sequence=-2: a size is at least 1"),
    (dict(preset="fdsp"), "preset='fdsp': .*did you mean 'fsdp'.*dp, fsdp, fsdp_tp, fsdp_sp, multis"),
    (dict(slices=3), "slices=3: does not cut 8 devices into equal groups"),
    (dict(slices=0), "slices=0"),
    (dict(slices=2, fsdp=1, data=1, tensor=-1),
     "data=1 x fsdp=1 on 2 slices: only these two .* make data a multiple of 2, or fsdp one of 2"),
    (dict(slices=4, data=2, fsdp=1, tensor=4), "data a multiple of 4, or fsdp one of 2"),
])
def test_what_does_not_fit_is_named_with_what_would(settings, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.make_mesh(**settings)
  with pytest.raises(config_lib.ConfigError, match="^mesh: .*" + message):
    config_lib.call(mesh_lib.make_mesh, settings, "mesh", devices=jax.devices())


def test_cpu_devices_are_cut_into_equal_slices_in_order():
  assert mesh_lib.slices_of(jax.devices(), 2) == [0] * 4 + [1] * 4
  mesh = mesh_lib.make_mesh(data=4, tensor=2, slices=2)
  assert mesh.devices[:2].ravel().tolist() == jax.devices()[:4]
  assert mesh_lib.slices_of(jax.devices()) == [0] * 8


def test_fsdp_crosses_slices_by_the_factor_that_data_lacks():
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2, slices=4)
  place = dict(zip(jax.devices(), mesh_lib.slices_of(jax.devices(), 4)))
  assert np.vectorize(place.get)(mesh.devices[:, :, 0, 0]).tolist() == [
      [[0, 0], [1, 1]], [[2, 2], [3, 3]]]


@dataclasses.dataclass(frozen=True)
class Gpu:
  """What of a GPU `arrange` looks at."""

  id: int
  process_index: int
  platform: str = "cuda"
  device_kind: str = "NVIDIA H100"


def test_inner_axes_stay_in_a_gpu_node_while_it_has_room():
  nodes = [[Gpu(8 * node + i, node) for i in range(8)] for node in range(4)]
  shuffled = [gpu for i in (3, 1, 7, 0, 2, 4, 6, 5) for gpu in (node[i] for node in nodes)]
  assert [mesh_lib.slice_of(gpu) for gpu in nodes[2]] == [2] * 8
  groups = devices_lib.device_groups(shuffled)
  grid = devices_lib.arrange(groups, (2, 4, 1, 1, 4))
  assert [gpu.id for gpu in grid.ravel()] == list(range(32))
  assert devices_lib.arrange(groups, (1, 1, 1, 1, 32)).shape == (1, 1, 1, 1, 32)  # slow, not wrong
  with pytest.raises(ValueError, match="slices=2: the devices are in 4"):
    mesh_lib.slices_of(shuffled, 2)


def absent(name, slices=1, **options):
  """Devices of a TPU pod that is not here."""
  needs("libtpu")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  if slices > 1:
    options["num_slices"] = slices
  return list(topologies.get_topology_desc(name, platform="tpu", **options).devices)


def hops(grid):
  """Links between neighbours on the innermost axis of a mesh of chips."""
  coords = np.array([device.coords for device in grid.ravel()]).reshape(*grid.shape, 3)
  return np.abs(np.diff(coords, axis=-2)).sum(-1)


POD = dict(chips_per_host_bounds=(1, 1, 1))


@pytest.mark.parametrize("name, options, settings, expected", [
    ("v5e:1x1", POD, {}, {}),
    ("v5e:16x16", {}, dict(data=64, fsdp=4), {"data": 64, "fsdp": 4}),
    ("v5e:16x16", dict(slices=2), dict(preset="multislice"), {"data": 2, "fsdp": 256}),
    ("v5e:16x16", dict(slices=2), dict(fsdp=64), {"data": 8, "fsdp": 64}),
    ("v5e:4x4", dict(slices=4), dict(data=2, fsdp=-1), {"data": 2, "fsdp": 32}),
    ("v6e:4x8", {}, dict(preset="fsdp_sp"), {"fsdp": 8, "sequence": 4}),
    ("v5p:4x4x4", {}, dict(fsdp=-1, tensor=8), {"fsdp": 8, "tensor": 8}),
    ("v5p:16x20x28", {}, dict(fsdp=64, tensor=4), {"data": 35, "fsdp": 64, "tensor": 4}),
    ("v5p:16x20x28", {}, dict(preset="fsdp"), {"fsdp": 8960}),
    ("v4:2x2x4", dict(chip_config_name="megacore"), dict(preset="fsdp_tp"),
     {"fsdp": 4, "tensor": 4}),
    ("tpu7x:4x4x8", {}, dict(preset="fsdp_tp"), {"fsdp": 64, "tensor": 4}),
])
def test_absent_pods_make_meshes_that_follow_their_slices(name, options, settings, expected):
  devices = absent(name, **options)
  mesh = mesh_lib.make_mesh(**settings, devices=devices)
  assert sizes(mesh) == expected
  assert set(mesh.devices.flat) == set(devices)
  slices = options.get("slices", 1)
  place = np.vectorize(mesh_lib.slice_of)(mesh.devices).reshape(slices, -1)
  assert (place == np.arange(slices)[:, None]).all()


def test_the_mesh_of_joined_slices_is_jaxs_hybrid_mesh():
  devices = absent("v5e:16x16", slices=2)
  mesh = mesh_lib.make_mesh(data=8, fsdp=-1, tensor=4, devices=devices)
  expected = mesh_utils.create_hybrid_device_mesh(
      (4, 16, 1, 1, 4), (2, 1, 1, 1, 1), devices, allow_split_physical_axes=True)
  assert (mesh.devices == expected).all()


def test_devices_in_slices_must_be_as_many_slices_as_the_config_says():
  devices = absent("v5e:4x4", slices=2)
  with pytest.raises(ValueError, match="slices=4: the devices are in 2"):
    mesh_lib.make_mesh(slices=4, devices=devices)
  with pytest.raises(ValueError, match="slices of unequal size: .16, 8. devices"):
    mesh_lib.make_mesh(devices=devices[:24])


@pytest.mark.parametrize("name, tensor", [("v5e:16x16", 4), ("v5p:16x20x28", 4), ("v5p:8x8x8", 8)])
def test_neighbours_on_the_innermost_axis_are_neighbours_on_the_torus(name, tensor):
  mesh = mesh_lib.make_mesh(fsdp=-1, tensor=tensor, devices=absent(name))
  assert (hops(mesh.devices) == 1).all()


@pytest.mark.parametrize("tensor", [2, 4, 8])
def test_the_two_devices_of_a_tpu7x_chip_are_neighbours_on_the_innermost_axis(tensor):
  for name in "tpu7x:2x2x2", "tpu7x:4x4x8":
    mesh = mesh_lib.make_mesh(fsdp=-1, tensor=tensor, devices=absent(name))
    first, second = mesh.devices.reshape(-1, 2).T
    assert all(a.coords == b.coords and a != b for a, b in zip(first, second))


def test_devices_that_form_no_box_lie_in_order_and_the_log_says_so(caplog):
  devices = absent("v5p:4x4x4")[:7]
  with caplog.at_level(logging.WARNING):
    mesh = mesh_lib.make_mesh(devices=devices)
  assert set(mesh.devices.flat) == set(devices) and "form no box" in caplog.text


@pytest.mark.parametrize("sides, shape", [
    ((16, 20, 28), (35, 64, 1, 1, 4)), ((28,), (1, 7, 1, 1, 4)), ((2, 3, 4), (3, 1, 2, 2, 2))])
def test_any_mesh_lies_on_a_torus_of_as_many_devices(sides, shape):
  torus = np.arange(math.prod(sides)).reshape(sides)
  grid = devices_lib._split_torus(torus, shape)
  assert grid.shape == shape and sorted(grid.ravel()) == sorted(torus.ravel())
