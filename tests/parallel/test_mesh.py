"""The table from logical to mesh axes: parameters, activations, batches."""

from flax import linen as nn
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import jax.numpy as jnp
import pytest

from mmjax.parallel import mesh as mesh_lib


def test_a_rule_for_an_absent_mesh_axis_is_an_error_that_names_the_nearest():
  with pytest.raises(ValueError, match="heads -> tenser: .*did you mean 'tensor'.*data, fsdp"):
    mesh_lib.batch_sharding(mesh_lib.make_mesh(), {"heads": "tenser"})


def test_batch_is_sharded_over_data_fsdp_and_expert():
  sharding = mesh_lib.batch_sharding(mesh_lib.make_mesh(2, 4))
  assert sharding.shard_shape((16, 3)) == (2, 3)
  sharding = mesh_lib.batch_sharding(mesh_lib.make_mesh(data=2, fsdp=1, expert=2, tensor=2))
  assert sharding.spec == P(("data", "expert")) and sharding.shard_shape((16, 3)) == (4, 3)
  assert mesh_lib.batch_sharding(mesh_lib.make_mesh(devices=jax.devices()[:1])).spec == P(None)


def test_rules_from_a_config_may_be_lists_and_keep_batch_first():
  rules = mesh_lib.full_rules({"extra": [], "batch": ["data"]})
  assert rules[0] == ("batch", ("data",)) and rules[-1] == ("extra", None)


def test_axes_of_a_logical_axis_are_those_of_more_than_one_device():
  assert mesh_lib.batch_axes() == ()
  with mesh_lib.use(mesh_lib.make_mesh(8, 1)):
    assert mesh_lib.batch_axes() == ("data",) and mesh_lib.axes_of("embed") == ()
  with mesh_lib.use(mesh_lib.make_mesh(2, 4)):
    assert mesh_lib.batch_axes() == ("data", "fsdp") and mesh_lib.axes_of("embed") == ("fsdp",)
  with mesh_lib.use(mesh_lib.make_mesh(2, 2, 2), {"batch": "data", "vocab": None}):
    assert mesh_lib.batch_axes() == ("data",) and mesh_lib.axes_of("heads") == ("tensor",)
    assert mesh_lib.axes_of("vocab") == mesh_lib.axes_of("unknown") == ()
  assert mesh_lib.batch_axes() == ()


def test_platform_is_that_of_the_mesh():
  class Device:
    platform = "cuda"

  assert mesh_lib.platform() == "cpu"
  mesh = mesh_lib.make_mesh()
  with mesh_lib.use(mesh):
    assert mesh_lib.platform() == "cpu"
  assert mesh_lib.platform_of([Device()]) == "gpu"


class Toy(nn.Module):

  @nn.compact
  def __call__(self, x):
    init = nn.with_logical_partitioning(nn.initializers.normal(), ("embed", "mlp"))
    odd = nn.with_logical_partitioning(nn.initializers.normal(), ("mlp", "embed"))
    x = x @ self.param("kernel", init, (8, 6))
    x = mesh_lib.constrain(x, ("batch", "mlp"))
    return x @ self.param("odd", odd, (6, 3)) + self.param("plain", nn.initializers.zeros, (3,))


def _abstract():
  return jax.eval_shape(Toy().init, jax.random.key(0), jnp.zeros((16, 8)))


def test_parameters_are_sharded_by_their_names_and_what_does_not_divide_is_reported():
  shardings, undivided = mesh_lib.tree_shardings(mesh_lib.make_mesh(2, 4), None, _abstract())
  params = shardings["params"]
  assert params["kernel"].spec == P("fsdp", None)
  assert params["odd"].spec == P(None, None)
  assert params["plain"].spec == P()
  assert undivided == [("params/odd", 1, ("fsdp",))]
  assert jax.tree.structure(shardings) == jax.tree.structure(mesh_lib.unbox(_abstract()))


def test_a_box_of_another_rank_or_of_nothing_is_replicated():
  box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct((8,), jnp.float32), ("embed", "mlp"))
  empty = nn.LogicallyPartitioned((), ("embed",))
  shardings, undivided = mesh_lib.tree_shardings(mesh_lib.make_mesh(1, 8), None, [box, empty])
  assert shardings[0].spec == P() and shardings[1] == () and not undivided


def _spec(mesh, names, shape, rules=None):
  box = nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)
  shardings, undivided = mesh_lib.tree_shardings(mesh, rules, [box])
  return shardings[0].spec, [item[1:] for item in undivided]


def test_a_parameter_is_split_over_every_axis_that_would_hold_copies():
  mesh = mesh_lib.make_mesh(1, 2, sequence=2, tensor=2)
  assert _spec(mesh, ("layers", "embed", "mlp"), (3, 8, 8))[0] == P(
      None, ("fsdp", "sequence"), "tensor")
  assert _spec(mesh, ("vocab", "embed"), (8, 8))[0] == P("tensor", ("fsdp", "sequence"))
  experts = mesh_lib.make_mesh(1, 2, expert=2, tensor=2)
  assert _spec(experts, ("expert", "embed", "mlp"), (4, 8, 8))[0] == P("expert", "fsdp", "tensor")
  assert _spec(experts, ("embed", "mlp"), (8, 8))[0] == P(("fsdp", "expert"), "tensor")


def test_a_dimension_is_split_by_the_axes_that_divide_it():
  mesh = mesh_lib.make_mesh(1, 2, sequence=2, tensor=2)
  assert _spec(mesh, ("embed", "heads", "kv"), (6, 3, 8)) == (
      P("fsdp", None, None), [(0, ("sequence",)), (1, ("tensor",))])


def test_no_mesh_axis_splits_two_dimensions():
  mesh = mesh_lib.make_mesh(2, 4)
  assert _spec(mesh, ("embed", "vocab"), (8, 8), {"vocab": "fsdp"})[0] == P("fsdp", None)
  assert _spec(mesh, ("embed", "embed"), (8, 8))[0] == P("fsdp", None)


def test_constrain_shards_rows_tokens_and_hidden_units_and_leaves_embed_whole():
  mesh = mesh_lib.make_mesh(1, 2, sequence=2, tensor=2)
  for names, spec in ((("batch", "length", "embed"), P("fsdp", "sequence", None)),
                      (("batch", "length", "mlp"), P("fsdp", "sequence", "tensor")),
                      (("batch", "embed", None), P("fsdp", None, None))):
    with mesh_lib.use(mesh):
      out = jax.jit(lambda x, names=names: mesh_lib.constrain(x, names))(jnp.zeros((8, 8, 8)))
    assert out.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3), names


def test_constrain_leaves_whole_what_does_not_divide_and_notes_it_once():
  names = ("batch", "length", "heads", "kv")
  note = mesh_lib.Undivided(names, 2, 3, ("tensor",))
  with mesh_lib.use(mesh_lib.make_mesh(2, 2, tensor=2)):
    twice = lambda x: mesh_lib.constrain(mesh_lib.constrain(x, names), names)
    out = jax.jit(twice)(jnp.zeros((8, 4, 3, 2)))
    assert out.sharding.shard_shape(out.shape) == (2, 4, 3, 2)
    assert mesh_lib.undivided_activations() == [note]
    with mesh_lib.use(mesh_lib.make_mesh()):
      assert mesh_lib.undivided_activations() == []
    assert mesh_lib.undivided_activations() == [note]
  assert mesh_lib.undivided_activations() == []


def test_constrain_inside_shard_map_leaves_its_axes_alone():
  mesh = mesh_lib.make_mesh(2, 2, tensor=2)
  names = ("batch", "mlp")
  with mesh_lib.use(mesh):
    def double(x):
      return mesh_lib.constrain(2 * x, names)
    all_axes = jax.shard_map(double, in_specs=P(("data", "fsdp"), "tensor"),
                             out_specs=P(("data", "fsdp"), "tensor"))
    some = jax.shard_map(double, in_specs=P(("data", "fsdp")), out_specs=P(("data", "fsdp")),
                         axis_names={"data", "fsdp"})
    x = jnp.ones((4, 2))
    assert jax.jit(all_axes)(x).sum() == jax.jit(some)(x).sum() == 16
    assert mesh_lib.undivided_activations() == []


def test_constrain_outside_a_mesh_gives_back_its_argument_and_checks_the_names():
  x = jnp.zeros((2, 3))
  assert mesh_lib.constrain(x, ("batch", "embed")) is x
  with pytest.raises(ValueError, match=r"1 logical axes \('batch',\) for an array of shape \(2, 3\)"):
    mesh_lib.constrain(x, ("batch",))


def test_a_parameter_that_does_not_divide_can_be_made_inside_use():
  with mesh_lib.use(mesh_lib.make_mesh(2, 4)):
    init = lambda: mesh_lib.unbox(Toy().init(jax.random.key(0), jnp.zeros((16, 8))))
    variables = jax.jit(init)()
  assert variables["params"]["odd"].shape == (6, 3)


def test_a_sharded_model_gives_the_value_of_one_device():
  x = jax.random.normal(jax.random.key(1), (16, 8))
  variables = mesh_lib.unbox(Toy().init(jax.random.key(0), x))
  expected = Toy().apply(variables, x)
  mesh = mesh_lib.make_mesh(2, 2, tensor=2)
  with mesh_lib.use(mesh):
    shardings, _ = mesh_lib.tree_shardings(mesh, None, _abstract())
    put = jax.device_put(variables, shardings)
    out = jax.jit(Toy().apply)(put, jax.device_put(x, mesh_lib.batch_sharding(mesh)))
  assert put["params"]["kernel"].sharding.shard_shape((8, 6)) == (4, 3)
  assert out.sharding.shard_shape((16, 3))[0] == 4
  # One matrix product of width 8 in another order: a few float32 roundings.
  assert jnp.max(jnp.abs(out - expected)) < 1e-6


def test_axes_are_auto():
  assert set(mesh_lib.make_mesh().axis_types) == {AxisType.Auto}
