"""Contrastive losses on a sharded batch and in blocks, against the plain formulas on one device."""

import functools
import math

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import contrastive as plain
from mmjax.parallel import contrastive as ring
from mmjax.parallel import mesh as mesh_lib
from tests.conftest import needs

BATCH, WIDTH = 48, 8
# Rows are spread over data, fsdp and expert; tensor and sequence hold copies of them.
MESHES = [dict(data=8), dict(data=2, fsdp=4), dict(data=2, expert=4),
          dict(fsdp=2, sequence=2, tensor=2), dict(slices=2, data=2, fsdp=2, tensor=2)]


def _softmax(module, **options):
  def loss(image, text, scale, bias, valid):
    return module.softmax(image, text, scale, valid, **options)
  return loss


def _sigmoid(module, **options):
  return lambda *arguments: module.sigmoid(*arguments, **options)


LOSSES = {"softmax": _softmax, "sigmoid": _sigmoid}


def _arguments(batch=BATCH):
  """Towers' inputs and weights, so that the loss sits inside a larger program; a fifth invalid."""
  keys = jax.random.split(jax.random.key(0), 5)
  params = {"image": jax.random.normal(keys[0], (5, WIDTH)),
            "text": jax.random.normal(keys[1], (6, WIDTH)),
            "scale": jnp.float32(12.0), "bias": jnp.float32(-3.0)}
  batch = {"image": jax.random.normal(keys[2], (batch, 5)),
           "text": jax.random.normal(keys[3], (batch, 6)),
           "valid": jax.random.uniform(keys[4], (batch,)) > 0.2,
           "weight": jnp.linspace(0.5, 2.0, batch)}
  return params, batch


def _step(loss):
  """(params, batch) -> gradients of a weighted mean by every argument, and the values."""

  def objective(params, embeds, batch):
    unit = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True)
    image = unit(batch["image"] @ params["image"] + embeds["image"])
    text = unit(batch["text"] @ params["text"] + embeds["text"])
    values = loss(image, text, params["scale"], params["bias"], batch["valid"])
    return jnp.mean(values * batch["weight"]), values

  def step(params, batch):
    zeros = jnp.zeros((len(batch["image"]), WIDTH))
    embeds = {"image": zeros, "text": zeros}
    return jax.grad(objective, (0, 1), has_aux=True)(params, embeds, batch)

  return jax.jit(step)


def _close(got, want):
  """float32 sums of 48 terms in another order: one part in a million of the largest entry."""
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    a, b = np.asarray(a), np.asarray(b)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * max(np.abs(b).max(), 1e-3))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mesh", MESHES, ids=str)
def test_eight_devices_give_the_value_and_gradients_of_one(name, mesh):
  params, batch = _arguments()
  expected = _step(LOSSES[name](plain))(params, batch)
  mesh = mesh_lib.make_mesh(**mesh)
  with mesh_lib.use(mesh):
    sharded = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
    step = _step(LOSSES[name](ring, block=4))  # 6 images a device or more: the last block is padded
    lowered = step.lower(params, sharded)
    got = step(params, sharded)
  _close(got, expected)
  compiled = lowered.compile().as_text()
  assert "all-gather" not in compiled and "collective-permute" in compiled


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("block", [1, 7, 48, 1000])
def test_blocks_on_one_device_change_nothing(name, block):
  params, batch = _arguments()
  _close(_step(LOSSES[name](ring, block=block))(params, batch),
         _step(LOSSES[name](plain))(params, batch))


@pytest.mark.parametrize("name", LOSSES)
def test_every_row_is_valid_by_default(name):
  params, batch = _arguments()
  batch["valid"] = None
  _close(_step(LOSSES[name](ring))(params, batch), _step(LOSSES[name](plain))(params, batch))


@pytest.mark.parametrize("name", LOSSES)
def test_devices_that_share_rows_agree(name):
  params, batch = _arguments()
  mesh = mesh_lib.make_mesh(tensor=4, sequence=2)
  with mesh_lib.use(mesh):
    copied = jax.device_put(batch, mesh_lib.replicated(mesh))
    got = _step(LOSSES[name](ring, block=7))(params, copied)
  _close(got, _step(LOSSES[name](plain))(params, batch))
  for array in jax.tree.leaves(got):
    copies = [shard.data for shard in array.addressable_shards if shard.data.shape == array.shape]
    assert all((np.asarray(copy) == np.asarray(copies[0])).all() for copy in copies)


def _compiled(loss, rows, mesh):
  """The step for `rows` rows on a mesh, which may be of absent devices."""
  params, batch = jax.eval_shape(functools.partial(_arguments, rows))
  place = lambda tree, sharding: jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)
  with mesh_lib.use(mesh):
    return _step(loss).lower(place(params, mesh_lib.replicated(mesh)),
                             place(batch, mesh_lib.batch_sharding(mesh))).compile()


def _temporary_bytes(loss, rows, mesh):
  return _compiled(loss, rows, mesh).memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("mesh", [dict(data=1), dict(data=2, fsdp=4)], ids=str)
def test_memory_grows_with_the_batch_and_not_with_its_square(name, mesh):
  devices = math.prod(mesh.values())
  mesh = mesh_lib.make_mesh(**mesh, devices=jax.devices()[:devices])
  loss = LOSSES[name](ring, block=16)
  sizes = [devices * rows for rows in (256, 512, 1024)]
  once, twice, four_times = (_temporary_bytes(loss, size, mesh) for size in sizes)
  # A term in B^2 would make the second step four times the first; a line makes it twice.
  assert four_times - twice < 2.2 * (twice - once)
  assert four_times < sizes[-1]**2 * 4 / 4  # a quarter of one [B, B] of float32


@pytest.mark.parametrize("name", LOSSES)
def test_more_devices_with_as_many_rows_each_need_no_more_memory(name):
  two, eight = (_temporary_bytes(LOSSES[name](ring, block=16), 64 * count, mesh_lib.make_mesh(
      devices=jax.devices()[:count])) for count in (2, 8))
  # [B, B] would be sixteen times as large, [b, B] and [B] four times. A [b, b] is 16 KiB.
  assert eight <= two + 1024


@pytest.mark.parametrize("name", LOSSES)
def test_256_absent_chips_need_the_memory_and_the_program_of_16(name, monkeypatch):
  needs("libtpu")
  monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  few, many = (_compiled(LOSSES[name](ring), 32 * count, mesh_lib.make_mesh(
      fsdp=4, devices=list(topologies.get_topology_desc(shape, platform="tpu").devices)))
      for count, shape in ((16, "v5e:4x4"), (256, "v5e:16x16")))
  bytes_of = lambda compiled: compiled.memory_analysis().temp_size_in_bytes
  assert bytes_of(many) <= bytes_of(few) * 1.01
  operations = lambda compiled: compiled.as_text().count(" = ")
  assert operations(many) <= operations(few) * 1.1  # a hop is in the program once


@pytest.mark.parametrize("name", LOSSES)
def test_embeddings_travel_in_their_own_dtype(name):
  mesh = mesh_lib.make_mesh(data=8)
  image = jnp.ones((16, WIDTH), jnp.bfloat16)
  with mesh_lib.use(mesh):
    program = str(jax.make_jaxpr(LOSSES[name](ring))(image, image, 1.0, 0.0, None))
    values = LOSSES[name](ring)(image, image, 1.0, 0.0, None)
    grad = jax.grad(lambda x: LOSSES[name](ring)(x, image, 1.0, 0.0, None).sum())(image)
  assert values.dtype == jnp.float32 and grad.dtype == jnp.bfloat16
  sent = [line for line in program.splitlines() if "ppermute" in line and f",{WIDTH}]" in line]
  assert sent and all("bf16" in line for line in sent)


def test_a_batch_that_does_not_divide_is_named():
  image = jnp.ones((12, WIDTH))
  with mesh_lib.use(mesh_lib.make_mesh(data=2, fsdp=4)):
    with pytest.raises(ValueError, match="12 rows.*8 devices of mesh axes data, fsdp"):
      ring.softmax(image, image, 1.0)
