"""The embeddings of tokens from a table that is spread over devices."""

import re

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel.lookup import lookup

MESHES = [dict(fsdp=8), dict(data=2, fsdp=4), dict(data=8), dict(fsdp=4, tensor=2),
          dict(data=2, fsdp=2, sequence=2), dict(fsdp=2, sequence=2, expert=2),
          dict(sequence=4, expert=2), dict(data=2, tensor=4)]


def case(width, rows=16, vocab=20):
  rng = np.random.default_rng(0)
  return (rng.normal(size=(vocab, width)).astype(np.float32),
          rng.integers(0, vocab, (rows, 12), np.int32),
          rng.normal(size=(rows, 12, width)).astype(np.float32))


def rows_and_grad(mesh, table, ids, weight):

  def loss(table, ids):
    rows = lookup(table, ids)
    return jnp.vdot(rows, weight), rows

  with mesh_lib.use(mesh):
    names = mesh_lib.axes_by_dimension(("vocab", "embed"), table.shape)
    places = NamedSharding(mesh, PartitionSpec(*(axes or None for axes in names)))
    fn = jax.jit(jax.grad(loss, has_aux=True), out_shardings=(places, None),
                 in_shardings=(places, mesh_lib.batch_sharding(mesh) if len(ids) % 8 == 0 else None))
    return *fn(table, ids), fn.lower(table, ids)


# 2 columns a device: in parts; 256: at once. 6 rows: whole over axes that do not divide them.
@pytest.mark.parametrize("width, rows", [(16, 16), (2048, 16), (16, 6)])
@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_rows_and_gradient_are_those_of_one_device(sizes, width, rows):
  table, ids, weight = case(width, rows)
  grad, found, _ = rows_and_grad(mesh_lib.make_mesh(**sizes), table, ids, weight)
  np.testing.assert_array_equal(found, table[ids])
  want = np.zeros_like(table)
  np.add.at(want, ids, weight)
  np.testing.assert_allclose(grad, want, atol=1e-5)  # float32 sums in another order


@pytest.mark.parametrize("sizes", [None, dict(fsdp=8), dict(fsdp=4, tensor=2)], ids=str)
def test_an_id_outside_gives_nan_and_no_gradient(sizes):
  table, ids, weight = case(16)
  ids[0, 0], ids[3, 5] = -1, len(table)
  weight[0, 0] = weight[3, 5] = 0
  mesh = mesh_lib.make_mesh(**sizes) if sizes else mesh_lib.make_mesh(devices=jax.devices()[:1])
  grad, found, _ = rows_and_grad(mesh, table, ids, weight)
  outside = (ids < 0) | (ids >= len(table))
  assert np.isnan(found[outside]).all() and np.isfinite(found[~outside]).all()
  want = np.zeros_like(table)
  np.add.at(want, ids[~outside], weight[~outside])
  np.testing.assert_allclose(grad, want, atol=1e-5)


def test_no_device_holds_or_sums_the_gradient_of_the_whole_table():
  table, ids, weight = case(64, vocab=1000)
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  text = rows_and_grad(mesh, table, ids, weight)[2].compile().as_text()
  assert "f32[1000,16]" in text and "f32[1000,64]" not in text
  assert len(re.findall(r"= f32\[1000,16\]\S* all-reduce(?:-start)?\(", text)) == 1
