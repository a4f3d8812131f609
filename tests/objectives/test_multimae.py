"""MultiMAE's objective: what is masked is not seen, and each task has its own loss."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.vit import ViT
from mmjax.nn.patch import patchify
from mmjax.objectives.contract import Context
from mmjax.objectives.multimae import MultiMAE, standardise
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.gradients import loss_and_grad

ROWS, SIDE, CLASSES = 8, 16, 5
VIT = ViT(patch=4, width=16, depth=1, heads=2, pool="mean", position="sincos", class_token=True,
          scan=False)
OBJECTIVE = MultiMAE(VIT, CLASSES, visible=10, cells=2, class_width=8, decoder_width=16,
                     decoder_depth=1, decoder_heads=2, loss_weights={"semantic": 0.5})


def make_batch():
  rng = np.random.default_rng(0)
  return {
      "image": rng.normal(size=(ROWS, SIDE, SIDE, 3)).astype(np.float32),
      "depth": rng.uniform(1, 20, (ROWS, SIDE, SIDE, 1)).astype(np.float32),
      "semantic": rng.integers(0, CLASSES, (ROWS, SIDE, SIDE)).astype(np.int32),
      "row": np.stack([np.zeros(ROWS), np.arange(ROWS) * 7], 1).astype(np.uint32),
      "valid": np.arange(ROWS) != 3,
  }


def context(train=True):
  return Context(step=jnp.int32(0), state={}, teachers={}, seed=3, train=train)


@jax.jit
def look(params, batch):
  """The loss, its gradient in the parameters and in the pixels shown; and what led to it."""
  def loss(params, image):
    features, _ = OBJECTIVE.forward(context(), params, {**batch, "image": image})
    terms, _ = OBJECTIVE.terms(context(), params, features, batch)
    weights = OBJECTIVE.weights(0)
    return sum(weights.get(name, 1) * term.mean for name, term in terms.items()), (terms, features)

  (value, (terms, features)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
      params, batch["image"])
  return {"loss": value, "terms": terms, "grads": grads[0], "pixels": grads[1],
          "features": features, "index": OBJECTIVE.shown(context(), batch)}


@functools.partial(jax.jit, static_argnums=2)
def gradient(params, batch, micro_batches=1):
  grads, outcome = loss_and_grad(OBJECTIVE, context(), params, batch, micro_batches=micro_batches)
  return grads, outcome.loss, outcome.terms


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def batch():
  return make_batch()


@pytest.fixture(scope="module")
def params(batch):
  return mesh_lib.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(0), batch)[0])


@pytest.fixture(scope="module")
def seen(params, batch):
  return jax.device_get(look(params, batch))


@pytest.fixture(scope="module")
def whole(params, batch):
  return jax.device_get(gradient(params, batch))


def same(got, want, tolerance=2e-5):
  """Floats of order one, summed in another order."""
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=2e-6), got, want)


def test_as_many_patches_are_shown_as_the_config_says(seen):
  features, index = seen["features"], seen["index"]
  assert index.shape == (ROWS, 10)
  np.testing.assert_array_equal((~features["masked"]).sum((1, 2)), 10)
  counts = (~features["masked"]).sum(2)  # of each task; they differ from row to row
  assert len(np.unique(counts, axis=0)) > ROWS // 2


def test_what_is_masked_has_no_gradient(seen, batch):
  features = seen["features"]
  patches = np.abs(patchify(seen["pixels"], (4, 4))).max((2, 3, 4))
  masked = features["masked"][:, 0]
  assert masked.any() and not masked.all()
  shown = ~masked & batch["valid"][:, None]  # a bad record has none either
  assert (patches[shown] > 0).all() and (patches[masked] == 0).all()


def test_losses_are_means_over_masked_patches(seen, batch):
  """Against NumPy; the tolerance is that of float32 sums in another order."""
  features, terms = seen["features"], seen["terms"]
  weight = features["masked"] & batch["valid"][:, None, None]
  patches = lambda x: np.asarray(patchify(x, (4, 4))).reshape(ROWS, 16, -1)
  image = np.square(features["image/prediction"] - patches(batch["image"])).mean(2)
  depth = np.abs(features["depth/prediction"] - patches(standardise(batch["depth"]))).mean(2)
  cells = np.asarray(patchify(batch["semantic"][:, 1::2, 1::2, None], (2, 2))).reshape(ROWS, 16, 4)
  logits = features["semantic/prediction"].reshape(ROWS, 16, 4, CLASSES).astype(np.float64)
  log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  entropy = -np.take_along_axis(log_probability, cells[..., None], -1).mean((2, 3))
  errors = {"image": image, "depth": depth, "semantic": entropy}
  want = {name: error[weight[:, i]].mean() for i, (name, error) in enumerate(errors.items())}
  same({name: term.sum / term.weight for name, term in terms.items()}, want)
  same(seen["loss"], want["image"] + want["depth"] + 0.5 * want["semantic"])


def test_a_loss_moves_with_its_own_targets_only(params, batch, seen):
  features = seen["features"]

  @jax.jit
  def means(batch):
    terms, _ = OBJECTIVE.terms(context(), params, features, batch)
    return {name: term.mean for name, term in terms.items()}

  before = means(batch)
  other = {"image": batch["image"] + 1, "depth": batch["depth"] ** 2,
           "semantic": batch["semantic"] // 2}
  for name, value in other.items():
    after = means({**batch, name: value})
    assert [task for task in before if before[task] != after[task]] == [name]


def test_gradient_reaches_every_parameter(seen):
  grads = {jax.tree_util.keystr(path): np.abs(x).max()
           for path, x in jax.tree_util.tree_leaves_with_path(seen["grads"])}
  # Softmax does not change with what is added to all keys.
  assert not [path for path, x in grads.items() if x < 1e-7 and "'key'" not in path]


@pytest.mark.slow
def test_two_micro_batches_equal_one_step(params, batch, whole, seen):
  same(gradient(params, batch, 2), whole)
  same(whole, (seen["grads"], seen["loss"], seen["terms"]))


@pytest.mark.slow
def test_eight_devices_equal_one(params, batch, whole):
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  with mesh_lib.use(mesh, mesh_lib.RULES):
    placed = jax.device_put(batch, mesh_lib.batch_sharding(mesh, mesh_lib.RULES))
    same(jax.device_get(gradient(params, placed)), whole)


def test_a_bad_record_and_unknown_classes_change_nothing(params, batch, seen):
  other = {name: x.copy() for name, x in batch.items()}
  other["image"][3], other["semantic"][3] = 9.0, 1
  again = look(params, other)
  for name in ("loss", "terms", "grads"):
    same(again[name], seen[name], 1e-7)
  other["semantic"][0] = -1
  term = look(params, other)["terms"]["semantic"]
  assert term.weight < seen["terms"]["semantic"].weight and np.isfinite(term.mean)


def test_standardised_depth_leaves_out_a_tenth_on_each_side():
  depth = np.arange(100, dtype=np.float32).reshape(1, 10, 10, 1)
  depth[0, 0, 0], depth[0, 9, 9] = -1e4, 1e5  # neither mean nor variance knows them
  middle = np.arange(10, 90)
  want = (depth - middle.mean()) / middle.std(ddof=1)
  np.testing.assert_allclose(standardise(depth), want, rtol=1e-5)


def test_the_encoder_is_a_plain_vit_in_evaluation(params, batch):
  got, want = jax.jit(lambda params, image: (
      OBJECTIVE.forward(context(train=False), params, {"image": image})[0],
      VIT.apply({"params": params["encoder"]}, image)[0]))(params, batch["image"])
  same(got["image/pooled"], want)
  shapes = jax.eval_shape(VIT.init, jax.random.key(0), batch["image"])["params"]
  assert jax.tree.structure(mesh_lib.unbox(shapes)) == jax.tree.structure(params["encoder"])


@pytest.mark.parametrize("changes, without, message", [
    ({"visible": 48}, None, "visible=48: at least one of the 48 patches"),
    ({"visible": 0}, None, "visible=0: at least one of the 48 patches"),
    ({"cells": 3}, None, "cells=3: does not divide a patch of 4x4 pixels"),
    ({"alpha": 0.0}, None, "alpha: must be positive"),
    ({"classes": 1}, None, "classes: at least 2"),
    ({"loss_weights": {"rgb": 1.0}}, None, "loss_weights.rgb: no such task"),
    ({"encoder": VIT.clone(position="none")}, None, "encoder.position: 'none'"),
    ({"decoder_heads": 3}, None, "decoder_heads: width 16 does not divide into 3 heads"),
    ({}, "depth", "the batch has no 'depth', and multimae reads image, depth, semantic"),
])
def test_bad_input_is_one_line_that_names_the_key(changes, without, message):
  batch = {name: x for name, x in make_batch().items() if name != without}
  with pytest.raises(ValueError) as error:
    jax.eval_shape(dataclasses.replace(OBJECTIVE, **changes).init, jax.random.key(0), batch)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_maps_of_another_size_than_the_image_are_named():
  batch = make_batch()
  batch["depth"] = batch["depth"][:, :8]
  with pytest.raises(ValueError, match=r"'depth' is of \[8, 16\] beside an image of \[16, 16\]"):
    jax.eval_shape(OBJECTIVE.init, jax.random.key(0), batch)
