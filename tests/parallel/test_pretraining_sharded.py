"""Every masked and self-distilled recipe takes the same step whole, in micro-batches and on meshes.

The recipes are all that ship, in their smoke variants and built as training builds them, with
scanned layers as in the published sizes; and some with what their smoke variant leaves out. Their
eight rows are noise, and one is not valid. One step has loss terms, gradients, parameters, EMA
teachers, and centres or codebooks, and all of them are compared.
"""

import functools

import jax
import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax.nn import attention
from mmjax.training.assemble import assemble
from tests.configs.one_pass import ROWS, draw_input
from tests.configs.test_configs import variants
from tests.parallel.one_step import LARGE_STEP, MESHES, one_step, same

SHIPPED = [f"{name}:{variant}" for name in config_lib.shipped()
           if name.startswith(("masked/", "selfdistill/"))
           for variant in variants(name) if variant.endswith("smoke")]
LEARNED = config_lib.load("masked/vq:smoke")["objective"]["tokenizer"]
# (recipe, what else): changes of its smoke variant.
MORE = {
    ("masked/vq:smoke", "critic"): {
        "objective.critic": "{'name': 'patch_critic', 'width': 8}",
        "objective.adversarial_from_steps": "0"},
    ("masked/beit_v2:smoke", "learned tokenizer"): {"objective.target.tokenizer": repr(LEARNED)},
}
RECIPES = [*((name, "") for name in SHIPPED), *MORE]
ONE = dict(mesh=dict(data=1))
WAYS = {
    "micro-batches": dict(**ONE, micro_batches=2),
    "mesh": dict(mesh=dict(data=2, fsdp=2, tensor=2)),
    "micro-batches on a mesh with a sequence axis": dict(mesh=MESHES["mixed"], micro_batches=2),
}
METRICS = dict(rtol=1e-5, atol=1e-6)  # of float32 means of values of order one


def small(recipe, **changes):
  """The config of a recipe with eight rows, scanned layers and one large step."""
  config = config_lib.load(recipe[0], {"batch_size": str(ROWS), **MORE.get(recipe, {})})
  config["objective"] = scanned(config["objective"])
  config["optim"] |= LARGE_STEP
  return {**config, "evals": {}, "eval_data": None, **changes}


def scanned(node):
  if isinstance(node, dict):
    return {key: True if key == "scan" else scanned(value) for key, value in node.items()}
  return [scanned(item) for item in node] if isinstance(node, list) else node


def step_of(config):
  """`one_step` of a config; on one device where its mesh is no larger."""
  alone = config["mesh"] == ONE["mesh"]
  run = assemble(config, jax.devices()[:1] if alone else None, example_data=True)
  rng = np.random.default_rng(0)
  batch = {name: draw_input(rng, name, x) for name, x in run.abstract_batch.items()}
  return one_step(run, {**batch, "valid": np.arange(ROWS) != 3})


pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.cache
def whole(recipe):
  """The whole batch on one device."""
  step = step_of(small(recipe, **ONE))
  assert not step["metrics"]["halted"]  # else nothing would move, and all would be equal
  for part in ("gradient", "moved"):
    assert any(x.any() for x in step[part].values()), part
  return step


# Of a mask and of a teacher with terms that couple rows, the way that has all; the rest takes
# minutes. What is convolved has a quick test in tests/nn/test_conv.py.
QUICK = {((name, ""), "micro-batches on a mesh with a sequence axis")
         for name in ("masked/mae:smoke", "selfdistill/cjepa:smoke")}


# All recipes go the last way, which has everything at once; these go each way, to tell where a fault lies.
EACH_WAY = [("masked/mae:smoke", ""), ("masked/vq:smoke", "critic"), ("selfdistill/dinov2:smoke", "")]


def case(recipe, way):
  marks = () if (recipe, way) in QUICK else pytest.mark.slow
  return pytest.param(recipe, way, marks=marks, id=" ".join([*filter(None, recipe), "in", way]))


@pytest.mark.parametrize("recipe, way", [
    case(recipe, way) for recipe in RECIPES for way in (WAYS if recipe in EACH_WAY else [*WAYS][-1:])])
def test_a_step_is_that_of_the_whole_batch_on_one_device(recipe, way):
  got, want = step_of(small(recipe, **WAYS[way])), whole(recipe)
  assert got["metrics"].keys() == want["metrics"].keys()
  for name, value in want["metrics"].items():
    np.testing.assert_allclose(got["metrics"][name], value, **METRICS, err_msg=name)
  same(got, want)


@pytest.mark.parametrize("name", ["masked/mae:smoke", "masked/fourm:smoke"])
def test_with_a_sequence_axis_self_attention_is_the_ring(name, monkeypatch):
  run = assemble(small((name, ""), mesh=MESHES["sequence"]), example_data=True)
  taken, pick = [], attention.pick_backend

  def record(q, k, *args):
    taken.append((q.shape[1], k.shape[1], pick(q, k, *args)))
    return taken[-1][-1]

  monkeypatch.setattr(attention, "pick_backend", record)
  with run.use():
    jax.eval_shape(run.step_fn(), run.abstract, run.abstract_batch)
  assert {backend for q, k, backend in taken if q == k} == {"ring"}
