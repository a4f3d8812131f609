"""The lint of a mesh: what lies in copies is measured, named, and beyond a limit an error."""

import json

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec

from mmjax.config import ConfigError
from mmjax.models.text import TextTransformer
from mmjax.parallel import lint
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.assemble import assemble
from mmjax.training.state import TrainState
from tests.training import tiny


def mesh_of(**sizes):
  shape = {**dict.fromkeys(mesh_lib.AXES, 1), **sizes}
  return AbstractMesh(tuple(shape.values()), tuple(shape),
                      axis_types=(AxisType.Auto,) * len(shape))


def boxed_model(**changes):
  """1.07 billion parameters: 20 layers of width 2048, 32,000 tokens."""
  node = dict(vocab=32_000, length=64, width=2048, depth=20, heads=16) | changes
  text = jax.ShapeDtypeStruct((1, 64), jnp.int32)
  return jax.eval_shape(TextTransformer(**node).init, jax.random.key(0), text)["params"]


def checked(mesh, boxed, rules=None, max_waste_gib=1.0):
  """The findings for parameters and Adam's two moments of them."""
  by_param, undivided = mesh_lib.tree_shardings(mesh, rules, boxed)
  params = mesh_lib.unbox(boxed)
  whole = NamedSharding(mesh, PartitionSpec())
  scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype)
  abstract = TrainState(step=scalar(jnp.int32), params=params, state={}, teachers={},
                        opt_state={"mu": params, "nu": params}, halted=scalar(jnp.bool_))
  shardings = TrainState(step=whole, params=by_param, state={}, teachers={},
                         opt_state={"mu": by_param, "nu": by_param}, halted=whole)
  return lint.check(abstract, shardings, boxed, undivided, mesh, rules, max_waste_gib)


@pytest.fixture(scope="module")
def model():
  return boxed_model()


def bytes_of(boxed):
  return 3 * sum(4 * leaf.size for leaf in jax.tree.leaves(mesh_lib.unbox(boxed)))


def test_a_model_that_4096_chips_each_hold_whole_is_found_and_the_error_says_what_to_change(model):
  findings = checked(mesh_of(fsdp=4096), model)
  # The whole state but a 4096th part; step and flag are five bytes.
  assert findings.waste == pytest.approx(bytes_of(model) * 4095 / 4096, rel=1e-4)
  assert findings.held == bytes_of(model) + 5 > 12e9
  error = findings.error
  assert "\n" not in error and "12 GiB" in error and "max_waste_gib is 1:" in error
  assert "trunk/layers/mlp/up/kernel [20, 2048, 8192] 3.75 GiB" in error
  assert "mesh.fsdp=4096 does not divide embed=2048" in error
  assert "Take mesh.fsdp=2048 at most, for example mesh.fsdp=2048, mesh.data=2" in error


def test_what_the_error_proposes_passes(model):
  findings = checked(mesh_of(fsdp=2048, data=2), model)
  assert findings.error is None and findings.axes == () and findings.offenders == []
  assert findings.waste < lint.LARGE and findings.lines() == []  # norms and biases


def test_one_parameter_is_named_once_with_all_that_belongs_to_it(model):
  findings = checked(mesh_of(fsdp=4096), model)
  names = [name for name, _, _ in findings.offenders]
  assert len(names) == len(set(names)) and "embedding" in names
  (waste,) = [waste for name, _, waste in findings.offenders if name == "embedding"]
  assert waste == pytest.approx(3 * 32_000 * 2048 * 4, rel=1e-3)  # itself and two moments


def test_heads_that_do_not_divide_are_named_and_half_of_attention_is_waste():
  boxed = boxed_model(heads=3, width=1536, depth=2)
  findings = checked(mesh_of(fsdp=4, tensor=2), boxed)
  (axis,) = findings.axes
  assert str(axis) == "mesh.tensor=2 does not divide heads=3"
  assert sum(path.endswith("kernel") for path in axis.parameters) == 4  # query, key, value, out
  # Each device holds a quarter of four [2, 1536, 1536], three times, where an eighth would do.
  kernels = 3 * 4 * 2 * 1536 * 1536 * 4
  assert findings.waste == pytest.approx(kernels / 8, rel=0.02)
  assert findings.error is None  # 27 MiB
  assert "mesh.tensor=2 does not divide heads=3: 7 parameters" in findings.lines()[0]


def test_a_vocabulary_that_does_not_divide_is_named():
  findings = checked(mesh_of(data=2, tensor=8), boxed_model(vocab=32_003, depth=1), None, 0.1)
  assert [str(axis) for axis in findings.axes] == [
      "mesh.tensor=8 does not divide vocab=32003"]
  assert "embedding [32003, 2048]" in findings.error
  assert "Take mesh.tensor=1 at most, for example mesh.tensor=1, mesh.data=16;" in findings.error


def test_what_one_axis_has_divided_the_next_cannot(model):
  # 2048 / 512 = 4 columns are left for `sequence`, which has 8 devices.
  findings = checked(mesh_of(fsdp=512, sequence=8), model, None, 0.001)
  assert {str(axis) for axis in findings.axes} == {
      "mesh.sequence=8 does not divide embed=2048, of which other axes leave 4"}
  assert "Take mesh.sequence=4 at most, for example mesh.sequence=4, mesh.data=2;" in findings.error


def test_data_parallel_is_no_error_and_tells_what_fsdp_would_save(model):
  findings = checked(mesh_of(data=4096), model)
  assert findings.error is None and findings.waste == 0 and not findings.axes
  assert findings.lines() == [
      "each of 4096 devices holds the whole state, 12 GiB; mesh.fsdp=2048 would leave about "
      "5.99 MiB"]


def test_one_device_and_a_small_state_are_silent(model):
  assert checked(mesh_of(), model).lines() == []
  assert checked(mesh_of(data=64), boxed_model(depth=1, width=64, heads=2)).lines() == []


def test_parameters_without_names_are_waste_too():
  plain = {"kernel": jax.ShapeDtypeStruct((16_384, 16_384), jnp.float32)}
  findings = checked(mesh_of(fsdp=8), plain)
  assert findings.waste == pytest.approx(3 * 2**30 * 7 / 8, rel=1e-6)
  assert "whose axes have no logical names" in findings.error
  assert "nn.with_logical_partitioning" in findings.error


def test_rules_decide_which_axes_should_divide(model):
  assert lint.dividing_axes(mesh_of(data=2, fsdp=2, sequence=2)) == ("fsdp", "sequence")
  only = {"embed": "fsdp"}
  assert lint.dividing_axes(mesh_of(data=2, fsdp=2, sequence=2), only) == ("fsdp",)
  # Neither heads nor mlp nor vocab may use `tensor`, though it is given to an axis nobody has.
  rules = {"heads": None, "mlp": None, "vocab": None, "other": "tensor"}
  findings = checked(mesh_of(fsdp=2, tensor=8), model, rules)
  assert "whose axes (layers, embed, mlp) lie by the rules as (-, fsdp, -)" in findings.error


@pytest.mark.parametrize("limit, fails", [(None, False), (13.0, False), (11.0, True), (0.0, True)])
def test_the_limit_decides(model, limit, fails):
  findings = checked(mesh_of(fsdp=4096), model, None, limit)
  assert (findings.error is not None) == fails and findings.lines()


def test_json_holds_what_the_lines_say(model):
  findings = checked(mesh_of(fsdp=4096), model)
  read = json.loads(json.dumps(findings.to_json()))
  assert read["waste"] == findings.waste and read["axes"][0]["mesh_axes"] == {"fsdp": 4096}
  assert len(read["tensors"]) >= 3 * len(findings.offenders) > 10
  assert read["lines"] == findings.lines()


def test_the_table_has_every_leaf_with_its_place(model):
  rows = checked(mesh_of(data=2, fsdp=4, tensor=2), model).table()
  assert len(rows) == 3 * len(jax.tree.leaves(model)) + 2
  up = next(row for row in rows if row.path == "params/trunk/layers/mlp/up/kernel")
  assert (up.names, up.spec) == (("layers", "embed", "mlp"), "(-, fsdp, tensor)")
  assert up.held == 20 * 2048 * 8192 * 4 // 8 and up.copies == 2
  assert [row.held for row in rows] == sorted((row.held for row in rows), reverse=True)


def test_activations_that_do_not_divide_are_lines():
  mesh = mesh_lib.make_mesh(data=4, tensor=2)
  with mesh_lib.use(mesh):
    jax.eval_shape(lambda x: mesh_lib.constrain(x, ("batch", "length", "heads", "kv")),
                   jax.ShapeDtypeStruct((8, 5, 3, 4), jnp.float32))
    lines = lint.activation_lines(mesh_lib.undivided_activations(), mesh)
  assert lines == ["activation (batch, length, heads, kv): mesh.tensor=2 does not divide heads=3; "
                   "every one of these devices computes all of it"]


def test_a_run_that_wastes_too_much_is_not_assembled(tmp_path):
  config = tiny.config(tiny.write_pairs(tmp_path / "pairs.npz"), mesh=dict(data=2, tensor=4))
  findings = assemble(config).findings
  assert findings.error is None and "mesh.tensor=4 does not divide heads=2" in findings.lines()[0]
  with pytest.raises(ConfigError, match="tensor=4 does not divide heads=2.*raise max_waste_gib"):
    assemble({**config, "max_waste_gib": 0.0})
  with pytest.raises(ConfigError, match="max_waste_gib: must be at least 0"):
    assemble({**config, "max_waste_gib": -1.0})
