"""The mesh and the table from logical to mesh axes."""

from flax import linen as nn
import jax
from jax.sharding import AxisType, PartitionSpec as P
import jax.numpy as jnp
import pytest

from mmjax.parallel import mesh as mesh_lib


def test_minus_one_takes_the_devices_that_remain():
  assert dict(mesh_lib.make_mesh().shape) == {"data": 8, "fsdp": 1}
  assert dict(mesh_lib.make_mesh(data=-1, fsdp=4).shape) == {"data": 2, "fsdp": 4}
  assert dict(mesh_lib.make_mesh(data=2, fsdp=-1).shape) == {"data": 2, "fsdp": 4}
  assert dict(mesh_lib.make_mesh(devices=jax.devices()[:1]).shape) == {"data": 1, "fsdp": 1}


def test_axes_are_auto():
  assert set(mesh_lib.make_mesh().axis_types) == {AxisType.Auto}


@pytest.mark.parametrize("data, fsdp, message", [
    (-1, 3, "data=-1 x fsdp=3: the product 3 does not divide the 8 devices"),
    (2, 2, "data=2 x fsdp=2: the product 4 is not the 8 devices"),
    (-1, -1, "at most one"),
    (0, 1, "positive"),
    (-2, 1, "positive"),
])
def test_a_shape_that_does_not_fit_is_named(data, fsdp, message):
  with pytest.raises(ValueError, match=message):
    mesh_lib.make_mesh(data, fsdp)


def test_a_rule_for_an_absent_mesh_axis_is_an_error():
  with pytest.raises(ValueError, match="heads -> tensor.*data, fsdp"):
    mesh_lib.batch_sharding(mesh_lib.make_mesh(), {"heads": "tensor"})


def test_batch_is_sharded_over_data_and_fsdp():
  sharding = mesh_lib.batch_sharding(mesh_lib.make_mesh(2, 4))
  assert sharding.shard_shape((16, 3)) == (2, 3)


def test_rules_from_a_config_may_be_lists_and_keep_batch_first():
  rules = mesh_lib.full_rules({"extra": [], "batch": ["data"]})
  assert rules[0] == ("batch", ("data",)) and rules[-1] == ("extra", None)


def test_batch_axes_are_those_of_more_than_one_device():
  assert mesh_lib.batch_axes() == ()
  with mesh_lib.use(mesh_lib.make_mesh(8, 1)):
    assert mesh_lib.batch_axes() == ("data",)
  with mesh_lib.use(mesh_lib.make_mesh(2, 4)):
    assert mesh_lib.batch_axes() == ("data", "fsdp")
  with mesh_lib.use(mesh_lib.make_mesh(2, 4), {"batch": "data"}):
    assert mesh_lib.batch_axes() == ("data",)
  assert mesh_lib.batch_axes() == ()


class Toy(nn.Module):

  @nn.compact
  def __call__(self, x):
    init = nn.with_logical_partitioning(nn.initializers.normal(), ("embed", "mlp"))
    odd = nn.with_logical_partitioning(nn.initializers.normal(), ("mlp", "embed"))
    x = x @ self.param("kernel", init, (8, 6))
    x = nn.with_logical_constraint(x, ("batch", "mlp"))
    return x @ self.param("odd", odd, (6, 3)) + self.param("plain", nn.initializers.zeros, (3,))


def _abstract():
  return jax.eval_shape(Toy().init, jax.random.key(0), jnp.zeros((16, 8)))


def test_parameters_are_sharded_by_their_names_and_what_does_not_divide_is_reported():
  shardings, undivided = mesh_lib.tree_shardings(mesh_lib.make_mesh(2, 4), None, _abstract())
  params = shardings["params"]
  assert params["kernel"].spec == P("fsdp", None)
  assert params["odd"].spec == P(None, None)
  assert params["plain"].spec == P()
  assert undivided == [("params/odd", 1, "fsdp")]
  assert jax.tree.structure(shardings) == jax.tree.structure(mesh_lib.unbox(_abstract()))


def test_a_box_of_another_rank_or_of_nothing_is_replicated():
  box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((8,), jnp.float32), ("embed", "mlp"))
  empty = nn.LogicallyPartitioned((), ("embed",))
  shardings, undivided = mesh_lib.tree_shardings(mesh_lib.make_mesh(1, 8), None, [box, empty])
  assert shardings[0].spec == P() and shardings[1] == () and not undivided


def test_a_sharded_model_gives_the_value_of_one_device():
  x = jax.random.normal(jax.random.key(1), (16, 8))
  variables = mesh_lib.unbox(Toy().init(jax.random.key(0), x))
  expected = Toy().apply(variables, x)
  mesh = mesh_lib.make_mesh(2, 4)
  with mesh_lib.use(mesh):
    shardings, _ = mesh_lib.tree_shardings(mesh, None, _abstract())
    put = jax.device_put(variables, shardings)
    out = jax.jit(Toy().apply)(put, jax.device_put(x, mesh_lib.batch_sharding(mesh)))
  assert put["params"]["kernel"].sharding.shard_shape((8, 6)) == (2, 6)
  assert out.sharding.shard_shape((16, 3))[0] == 2
  # One matrix product of width 8 in another order: a few float32 roundings.
  assert jnp.max(jnp.abs(out - expected)) < 1e-6
