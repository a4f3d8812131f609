"""MaskDistill, EVA-02, MaskAlign, UTA: whose features are predicted, where, from what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax.checkpoint import paths
from mmjax.nn.patch import patchify
from mmjax.objectives.contract import Context
from mmjax.parallel import mesh as mesh_lib
from mmjax.training import frozen
from mmjax.training.gradients import loss_and_grad

ROWS, PIXELS, PATCH, GRID, SEEN = 8, 32, 8, (4, 4), 4
RECIPES = ("masked/maskdistill:smoke", "masked/eva02:smoke", "masked/maskalign:smoke",
           "masked/maskalign:uta_smoke", "masked/eva02:text_guided_smoke")
GUIDED = RECIPES[-1]
WIDTH = 32  # of the teacher; the student's is half of it


def small(recipe):
  """The recipe's objective as a node, with narrow networks."""
  node, _ = frozen.split(config_lib.load(recipe)["objective"])
  node["encoder"].update(width=WIDTH // 2, heads=2, patch=PATCH)
  node["target"]["teacher"].update(
      width=WIDTH, heads=2, depth=2, patch=PATCH, grid=[*GRID], out_dim=12)
  if "text" in node["target"]:
    node["target"]["text"].update(width=WIDTH, heads=2, depth=1, out_dim=12)
  if node["encoder"].get("grid"):
    node["encoder"]["grid"] = [*GRID]
  if "decoder" in node:
    node["decoder"]["width"] = WIDTH
  return node


@functools.cache
def begin(recipe):
  """The small objective with random parameters, and the state of a random teacher."""
  objective = config_lib.build("mmjax.objectives", small(recipe), "objective")
  shapes = jax.eval_shape(objective.init, jax.random.key(0), batch())
  rng = np.random.default_rng(0)
  draw = lambda path, x: jnp.float32(rng.normal(size=x.shape, scale=0.2)
                                     + ("scale" in jax.tree_util.keystr(path)))
  params, state = jax.tree_util.tree_map_with_path(draw, mesh_lib.unbox(shapes))
  trunk = state["target"]["teacher"]["trunk"]
  trunk["layers"]["attention"]["query"]["kernel"] *= 8  # so that attention is far from even
  return objective, params, state


def batch(rows=ROWS):
  rng = np.random.default_rng(1)
  return {"image": rng.normal(size=(rows, PIXELS, PIXELS, 3)).astype(np.float32),
          "text": rng.integers(1, 100, (rows, 6)).astype(np.int32),
          "row": np.stack([np.zeros(rows), np.arange(rows)], 1).astype(np.uint32),
          "valid": np.arange(rows) != 3}


@functools.cache
def seen_and_predicted(recipe):
  """The features of a training pass, and how strongly predictions depend on each patch [B, N]."""
  objective, params, state = begin(recipe)

  def total(image):
    data = {**batch(), "image": image}
    features = objective.forward(Context(jnp.int32(0), state, {}), params, data)[0]
    return sum(jnp.sum(jnp.sin(x)) for x in features["predictions"].values()), features

  slope, features = jax.jit(jax.grad(total, has_aux=True))(batch()["image"])
  return jax.device_get(features), np.abs(patchify(slope, (PATCH, PATCH))).sum(axis=(2, 3, 4))


@functools.cache
def of_teacher(recipe):
  """What the teacher says of the whole pictures."""
  objective, _, state = begin(recipe)
  want = ("tokens", "layer/0", "layer/1", "attention")
  run = lambda: objective.target.teacher.apply(
      {"params": state["target"]["teacher"]}, batch()["image"], want=want)[1]
  return jax.device_get(jax.jit(run)())


def standardised(x):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_target_is_what_the_papers_say_of_this_teacher(recipe):
  found, state = of_teacher(recipe), begin(recipe)[2]
  features = seen_and_predicted(recipe)[0]
  if "maskdistill" in recipe:
    want = standardised(found["tokens"])
  elif recipe == "masked/maskalign:smoke":
    want = np.concatenate([standardised(found[f"layer/{i}"][:, 1:]) for i in (0, 1)], axis=-1)
  else:
    want = found["tokens"] @ state["target"]["teacher"]["projection"]["kernel"]
  places = features["places"]
  want = np.take_along_axis(want, places[:, :, None], axis=1)
  np.testing.assert_allclose(features["target"], want, atol=2e-4)
  assert features["predictions"]["prediction"].shape == want.shape


@pytest.mark.parametrize("recipe", RECIPES)
def test_the_student_sees_nothing_of_a_masked_patch_and_the_teacher_all(recipe):
  """Gradients with respect to masked pixels are exactly zero; what is predicted lies there, or,
  where nothing is reconstructed, in the patches that are seen."""
  features, slope = seen_and_predicted(recipe)
  masked = features["masked"]
  np.testing.assert_array_equal(slope[masked], 0)
  assert (slope[~masked] > 0).all()
  at_places = np.take_along_axis(masked, features["places"], axis=1)
  assert at_places.all() if "maskalign" not in recipe else not at_places.any()


def test_maskalign_keeps_the_patches_to_which_the_teacher_attends():
  """Drawn in proportion to attention. A mask that ignores it keeps a quarter of it on average."""
  recipe = "masked/maskalign:smoke"
  attention = of_teacher(recipe)["attention"].mean(1)[:, 0, 1:]
  places = seen_and_predicted(recipe)[0]["places"]
  assert places.shape == (ROWS, SEEN)
  share = np.take_along_axis(attention, places, axis=1).sum(1) / attention.sum(1)
  assert share.mean() > 2 * SEEN / 16


def test_the_patches_that_say_most_of_the_caption_are_masked():
  """Another caption, and only that row's patches are others; pixels are what they were."""
  objective, params, state = begin(GUIDED)

  @jax.jit
  def guided(data):
    guide = objective.target(state["target"], data, GRID, "text")[1]
    features = objective.forward(Context(jnp.int32(0), state, {}), params, data)[0]
    return guide, features["masked"]

  guide, masked = jax.device_get(guided(batch()))
  assert (masked.sum(1) == 7).all()  # 0.4 of 16
  np.testing.assert_array_equal(masked, guide > np.sort(guide)[:, 8:9])
  other = batch()["text"]
  other[2] = other[5]
  _, others = jax.device_get(guided({**batch(), "text": other}))
  np.testing.assert_array_equal((others != masked).any(1), np.arange(ROWS) == 2)


@pytest.mark.parametrize("recipe, path, value, message", [
    (RECIPES[2], ("decoder", "width"), 8, r"decoder: gives 16 numbers a token .* target has 64"),
    (RECIPES[2], ("target", "teacher", "pool"), "mean", None),
    (RECIPES[0], ("target", "teacher", "grid"), [2, 2], r"target\.teacher\.grid: .* 2x2 .* 4x4"),
    (RECIPES[0], ("mask",), {"name": "attentive"}, None),
    (RECIPES[0], ("mask",), {"name": "text_guided"}, r"target\.text: is missing"),
    (GUIDED, ("mask",), {"name": "random"}, r"target\.text: only a mask guided by 'text' .* None"),
    (GUIDED, ("target", "text", "out_dim"), 8, r"text\.out_dim: texts have 8"),
    (GUIDED, ("target", "text", "length"), 5, r"target\.text\.length: 5 positions .* of 6 tokens"),
    (RECIPES[2], ("target",), {"name": "pixels"}, r"decoder: gives 64 .* target has 192"),
    (RECIPES[2], ("target", "teacher"), {"name": "vit", "patch": 8, "width": 32, "depth": 2,
     "heads": 2, "position": "sincos", "pool": "mean"}, r"target\.teacher\.class_token: there is"),
])
def test_a_teacher_that_does_not_go_with_the_rest_is_refused_before_the_first_step(
    recipe, path, value, message):
  """By `init`, which is all that is traced before; None: that goes together."""
  node = small(recipe)
  inner = functools.reduce(lambda at, key: at[key], path[:-1], node)
  inner[path[-1]] = value

  def make():
    objective = config_lib.build("mmjax.objectives", node, "objective")
    jax.eval_shape(objective.init, jax.random.key(0), batch())

  if message is None:
    make()
  else:
    with pytest.raises(ValueError, match=message):
      make()


def gradient(recipe):
  objective, params, state = begin(recipe)

  @jax.jit
  def run(params, state, data):
    ctx = Context(jnp.int32(0), state, {}, seed=3)
    return loss_and_grad(objective, ctx, params, data, micro_batches=1)

  return jax.device_get(run(params, state, batch()))


@pytest.mark.slow
def test_every_parameter_of_the_student_learns():
  """MaskAlign's mixtures too; the teacher is no parameter."""
  grads = gradient("masked/maskalign:smoke")[0]
  assert set(grads) == {"encoder", "decoder"}
  still = [name for name, leaf in paths.flatten(grads).items() if not np.abs(leaf).max() > 0]
  assert set(still) <= {"encoder/final_norm/scale", "encoder/final_norm/bias"}  # blocks are mixed
