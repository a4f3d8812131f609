"""The embeddings of tokens from a table whose columns are spread over devices."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from mmjax.models import text as text_lib
from mmjax.parallel import mesh as mesh_lib


@pytest.mark.parametrize("width", [16, 2048])  # 2 columns a device: in parts; 256: at once
def test_rows_and_gradient_are_those_of_one_device(width):
  mesh = mesh_lib.make_mesh(fsdp=8)
  rng = np.random.default_rng(0)
  table = rng.normal(size=(10, width)).astype(np.float32)
  text = rng.integers(0, 10, (16, 12), np.int32)
  weight = rng.normal(size=(16, 12, width)).astype(np.float32)

  def loss(table):
    rows = text_lib.lookup(table, text)
    return jnp.vdot(rows, weight), rows

  with mesh_lib.use(mesh):
    sharding = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    grad, rows = jax.jit(jax.grad(loss, has_aux=True), in_shardings=sharding,
                         out_shardings=(sharding, None))(table)
  np.testing.assert_array_equal(rows, table[text])
  want = np.zeros_like(table)
  np.add.at(want, text, weight)
  np.testing.assert_allclose(grad, want, atol=1e-5)  # float32 sums in another order
