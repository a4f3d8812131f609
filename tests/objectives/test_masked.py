"""Masked prediction: what is hidden, what is predicted, and that a step is exact.

References for the whole model: `tests/conformance/test_masked_autoencoder.py`.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax.nn.patch import patchify
from mmjax.objectives.contract import Context
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.gradients import loss_and_grad

ROWS, PIXELS, PATCH, TOKENS = 8, 32, 8, 16
SMALL = {"width": 16, "depth": 1, "heads": 2}
ENCODER = {"name": "vit", "patch": PATCH, "pool": "mean", "position": "sincos", "class_token": True,
           **SMALL}
DECODER = {"name": "masked_decoder", **SMALL}
MAE = {"name": "masked", "encoder": ENCODER, "mask": {"name": "random", "ratio": 0.75},
       "target": {"name": "pixels"}, "decoder": DECODER}
SIMMIM = {**MAE, "hide": "token", "loss": "l1", "decoder": None,
          "encoder": {**ENCODER, "mask_token": True}, "mask": {"name": "squares", "ratio": 0.5},
          "target": {"name": "pixels", "normalise": False}}
HPM = {**MAE, "loss_predictor": DECODER, "mask": {"name": "hard_patch", "ratio": 0.5, "final": 1.0}}
RECIPES = {"mae": MAE, "simmim": SIMMIM, "hpm": HPM}


pytestmark = pytest.mark.usefixtures("quick_compilation")


def build(node):
  return config_lib.build("mmjax.objectives", node, "objective")


def batch(rows=ROWS, shape=(PIXELS, PIXELS, 3)):
  rng = np.random.default_rng(0)
  key = "image" if len(shape) == 3 else "video"
  return {key: rng.normal(size=(rows, *shape)).astype(np.float32), "valid": np.arange(rows) != 2,
          "row": np.stack([np.zeros(rows), np.arange(rows)], 1).astype(np.uint32)}


@functools.cache
def begin(name):
  """An objective with parameters that are all random: a zero would hide what it multiplies."""
  objective = build(RECIPES[name])
  params, state = jax.jit(objective.init)(jax.random.key(0), batch(2))
  leaves, tree = jax.tree.flatten(mesh_lib.unbox(params))
  rng = np.random.default_rng(1)
  leaves = [leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
  return objective, jax.tree.unflatten(tree, leaves), state


def context(objective, params, state, **more):
  return Context(jnp.int32(5), state, objective.teachers(params), **{"seed": 3, **more})


@functools.partial(jax.jit, static_argnums=(0, 4))
def step(name, params, state, data, micro_batches=1):
  objective = begin(name)[0]
  return loss_and_grad(objective, context(objective, params, state), params, data,
                       micro_batches=micro_batches)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "want"))
def features(objective, params, state, data, teachers=None, train=True, want=()):
  ctx = context(objective, params, state, train=train, want=want)
  ctx = dataclasses.replace(ctx, teachers=ctx.teachers if teachers is None else teachers)
  return objective.forward(ctx, params, data)[0]


@functools.partial(jax.jit, static_argnums=0, static_argnames="train")
def loss(objective, params, state, data, train):
  """The mean of the first term: in evaluation as the evaluator `loss` gets it."""
  ctx = context(objective, params, state, train=train)
  terms, _ = objective.terms(ctx, params, objective.forward(ctx, params, data)[0], data)
  return terms["prediction"].mean


def by_patch(image):
  return np.abs(patchify(image, (PATCH, PATCH))).max(axis=(2, 3, 4))


@pytest.mark.parametrize("name", ["mae", pytest.param("simmim", marks=pytest.mark.slow)])
def test_nothing_of_a_masked_patch_reaches_the_prediction(name):
  """Its gradient is exactly zero; that of every seen patch is not."""
  objective, params, state = begin(name)
  data = batch(2)

  def total(image):
    found = features(objective, params, state, {**data, "image": image})
    return jnp.sum(found["predictions"]["prediction"] ** 2), found["masked"]

  gradient, masked = jax.grad(total, has_aux=True)(data["image"])
  gradient = by_patch(gradient)
  assert masked.any() and (gradient[masked] == 0).all() and (gradient[~masked] > 0).all()


def test_targets_are_the_normalised_patches_of_the_masked_places():
  data = batch(2)
  found = features(*begin("mae"), data)
  image = data["image"].astype(np.float64).reshape(2, 4, 8, 4, 8, 3).transpose(0, 1, 3, 2, 4, 5)
  patches = image.reshape(2, TOKENS, -1)
  normal = (patches - patches.mean(-1, keepdims=True)) / np.sqrt(
      patches.var(-1, ddof=1, keepdims=True) + 1e-6)
  assert (found["masked"].sum(axis=1) == 12).all()
  for row in range(2):
    np.testing.assert_array_equal(found["places"][row], np.flatnonzero(found["masked"][row]))
    np.testing.assert_allclose(found["target"][row], normal[row, found["places"][row]], atol=1e-5)


def test_the_loss_of_simmim_is_its_formula():
  """sum(|picture - prediction| * mask) / sum(mask) / channels, of whole pictures."""
  data = batch(2)
  found = jax.device_get(features(*begin("simmim"), data))
  made = np.zeros((2, TOKENS, PATCH * PATCH * 3))
  np.put_along_axis(made, found["places"][:, :, None], found["predictions"]["prediction"], axis=1)
  whole = lambda x: x.reshape(2, 4, 4, PATCH, PATCH, -1).transpose(0, 1, 3, 2, 4, 5).reshape(
      2, PIXELS, PIXELS, -1)
  mask = whole(np.repeat(found["masked"][:, :, None], PATCH * PATCH, axis=2))
  want = np.sum(np.abs(data["image"] - whole(made)) * mask) / mask.sum() / 3
  np.testing.assert_allclose(loss(*begin("simmim"), data, train=True), want, rtol=1e-5)


def same(got, want):
  """To the roundings of float32 sums in another order, relative to each array's largest entry."""
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(
      np.abs(b).max(), 0.1)), jax.device_get(got), jax.device_get(want))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["simmim", "hpm"])
def test_micro_batches_and_eight_devices_take_the_step_of_one(name):
  """With a bad row among them, whose content does not count; every parameter has a gradient. Of what ships
  tests/parallel/test_pretraining_sharded.py tells more."""
  _, params, state = begin(name)
  data = batch()
  whole = step(name, params, state, data)
  for path, gradient in jax.tree_util.tree_leaves_with_path(whole[0]):
    name_of = jax.tree_util.keystr(path, simple=True, separator="/")
    # All keys moved by the same vector change no softmax, all scores by the same number no ranking.
    nothing = name_of.endswith("key/bias") or name_of == "loss_predictor/final_norm/bias"
    assert nothing or np.abs(gradient).max() > 1e-7, name_of
  other = {**data, "image": np.where(data["valid"][:, None, None, None], data["image"], 7)}
  same(step(name, params, state, other), whole)
  same(step(name, params, state, data, 4), whole)
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  with mesh_lib.use(mesh, mesh_lib.RULES):
    placed = jax.device_put(data, mesh_lib.batch_sharding(mesh, mesh_lib.RULES))
    same(step(name, params, state, placed), whole)


def test_an_evaluator_gets_the_whole_image_and_the_held_out_loss():
  objective, params, state = begin("mae")
  data = batch(2)
  found = features(objective, params, state, data, train=False)
  encode = jax.jit(lambda image: objective.encoder.apply({"params": params["encoder"]}, image)[0])
  np.testing.assert_allclose(found["image/pooled"], encode(data["image"]), atol=1e-5)
  np.testing.assert_allclose(np.linalg.norm(found["image/embed"], axis=1), 1, atol=1e-5)
  held_out, trained = (loss(objective, params, state, data, train=train) for train in (False, True))
  np.testing.assert_allclose(held_out, trained, rtol=1e-5)


def test_a_reconstruction_is_the_input_where_it_was_seen():
  data = batch(2)
  found = features(*begin("simmim"), data, train=False, want=("image/reconstruction",))
  masked = np.broadcast_to(found["image/masked"], data["image"].shape)
  made = np.asarray(found["image/reconstruction"])
  np.testing.assert_array_equal(made[~masked], data["image"][~masked])
  assert masked.mean() == 0.5 and (made[masked] != data["image"][masked]).all()
  assert (np.asarray(found["image/unlearned"])[masked] == 0).all()
  trained = features(*begin("simmim"), data)
  patch = patchify(made, (PATCH, PATCH))[0, trained["places"][0, 0]].reshape(-1)
  np.testing.assert_allclose(patch, trained["predictions"]["prediction"][0, 0], atol=1e-5)


def test_hard_patches_are_those_of_the_average_of_encoder_and_predictor():
  """Another average masks other patches; another student with the same average masks the same."""
  objective, params, state = begin("hpm")
  data, teachers = batch(2), objective.teachers(params)
  changed = jax.tree.map(lambda p: p + 0.2 * np.sin(np.arange(p.size).reshape(p.shape)), params)
  masked = lambda params, teachers: np.asarray(
      features(objective, params, state, data, teachers)["masked"])
  before = masked(params, teachers)
  assert (before.sum(axis=1) == TOKENS // 2).all()
  np.testing.assert_array_equal(masked(changed, teachers), before)
  assert (masked(params, objective.teachers(changed)) != before).any()
  # A predictor that says the opposite masks what it left before.
  head = jax.tree.map(jnp.negative, params["loss_head"])
  opposite = {"guide": {**teachers["guide"], "loss_head": head}}
  np.testing.assert_array_equal(masked(params, opposite), ~before)
  assert set(objective.teacher_decay(jnp.int32(0))) == {"guide"}


def test_what_is_seen_can_be_predicted_without_a_decoder():
  node = {**MAE, "decoder": None, "predict": "seen", "loss": "cosine"}
  objective, data = build(node), batch(2)
  params, state = jax.jit(objective.init)(jax.random.key(0), data)
  found = features(objective, mesh_lib.unbox(params), state, data)
  assert found["predictions"]["prediction"].shape == (2, 4, PATCH * PATCH * 3)
  assert not np.take_along_axis(np.asarray(found["masked"]), np.asarray(found["places"]), 1).any()


def test_clips_are_masked_in_space_and_time():
  """90% of 2 x 4 x 4 patches of two frames; of each the first frame is predicted."""
  node = {**MAE, "input": "video", "mask": {"name": "random", "ratio": 0.9},
          "target": {"name": "pixels", "key": "video", "frames": 1},
          "encoder": {**ENCODER, "patch": (2, PATCH, PATCH), "position": "learned",
                      "grid": (2, 4, 4)}}
  objective, data = build(node), batch(2, (4, PIXELS, PIXELS, 3))
  params, state = jax.jit(objective.init)(jax.random.key(0), data)
  params = mesh_lib.unbox(params)
  found = features(objective, params, state, data)
  assert found["masked"].shape == (2, 32) and (found["masked"].sum(axis=1) == 29).all()
  first = data["video"][:, ::2].reshape(2, 2, 4, 8, 4, 8, 3).transpose(0, 1, 2, 4, 3, 5, 6)
  first = first.reshape(2, 32, -1)
  want = first[np.arange(2)[:, None], found["places"]]
  want = (want - want.mean(-1, keepdims=True)) / want.std(-1, ddof=1, keepdims=True)
  np.testing.assert_allclose(found["target"], want, atol=1e-4)
  whole = features(objective, params, state, data, train=False, want=("video/reconstruction",))
  assert whole["video/pooled"].shape == (2, 16)
  assert whole["video/reconstruction"].shape == data["video"].shape


@pytest.mark.parametrize("changes, message", [
    ({"mask": {"name": "random", "ratio": 1.0}}, "^mask.ratio=1.0: masks 16 of 16 tokens"),
    ({"mask": {"name": "variable"}}, "^mask.name: gives VariableMask, of which .* knows nothing; take"),
    ({"mask": {"name": "block_range", "least": 1}, "hide": "token",
      "encoder": {**ENCODER, "mask_token": True}}, "^mask.name: gives RangeMask"),
    ({"mask": {"name": "multi_block"}}, "^mask.name: gives Blocks"),
    ({"mask": {"name": "squares", "side": 3}}, "side=3: does not divide a grid of 4x4"),
    ({"encoder": {**ENCODER, "patch": 5}}, "^encoder.patch: an image of 32x32 is not a whole number of patches of 5x5"),
    ({"decoder": None}, "decoder: is missing"),
    ({"hide": "token"}, "encoder.mask_token: False"),
    ({"hide": "drops"}, "hide = 'drops'.*Did you mean 'drop'"),
    ({"loss": "l3"}, "loss = 'l3'"),
    ({"encoder": {**ENCODER, "pool": "none"}}, "encoder.pool"),
    ({"mask": {"name": "hard_patch"}}, "loss_predictor: .*guided by 'loss'"),
    ({"loss_predictor": DECODER}, "loss_predictor: .*guided by None"),
    ({"mask": {"name": "attentive"}}, "pixels have no attention"),
    ({"target": {"name": "pixels", "frames": 1}}, "target.frames: 1 of a patch of 8x8"),
    ({"target": {"name": "pixels", "key": "video"}}, "'video'"),
])
def test_bad_settings_are_one_line_that_names_the_key(changes, message):
  with pytest.raises((ValueError, KeyError), match=message):
    objective = build({**MAE, **changes})
    params, state = jax.eval_shape(objective.init, jax.random.key(0), batch(2))
    ctx = context(objective, params, state)
    jax.eval_shape(lambda p, b: objective.forward(ctx, p, b)[0], mesh_lib.unbox(params), batch(2))
