"""MAGE: what is masked nobody sees, its ids are the loss, and what it generates are pictures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.masking.variable import Variable
from mmjax.models.masked_decoder import MaskedDecoder
from mmjax.models.palette import Palette
from mmjax.models.vit import ViT
from mmjax.objectives.contract import Context
from mmjax.objectives.mage import Mage
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.gradients import loss_and_grad

ROWS, PIXELS, GRID = 16, 8, (4, 4)
ENCODER = dict(patch=1, width=16, depth=1, heads=2, class_token=True, pool="mean",
               position="sincos", tokenizer=Palette(patch=2, levels=3))
# float32 sums in another order; the values are of order one.
TOLERANCE = dict(rtol=2e-5, atol=2e-6)


def mage(**changes):
  return Mage(**{"encoder": ViT(**ENCODER), "decoder": MaskedDecoder(width=16, depth=1, heads=2),
                 "mask": Variable(), **changes})


def make_batch():
  rng = np.random.default_rng(0)
  valid = np.arange(ROWS) != 3
  image = rng.uniform(-1, 1, (ROWS, *GRID, 3)).astype(np.float32).repeat(2, 1).repeat(2, 2)
  return {"image": image * valid[:, None, None, None], "valid": valid,
          "row": np.stack([np.zeros(ROWS), np.arange(ROWS)], 1).astype(np.uint32)}


@functools.partial(jax.jit, static_argnums=(0, 4))
def gradient(objective, params, state, batch, micro_batches=1):
  ctx = Context(step=jnp.int32(0), state=state, teachers={}, seed=3)
  return loss_and_grad(objective, ctx, params, batch, micro_batches=micro_batches)


def same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **TOLERANCE), jax.device_get(a),
               jax.device_get(b))


@pytest.fixture(scope="module")
def case():
  objective, batch = mage(), make_batch()
  shapes, state = jax.eval_shape(objective.init, jax.random.key(0), batch)
  rng = np.random.default_rng(1)  # quicker than to compile what draws the parameters
  params = jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape, scale=0.2)),
                        mesh_lib.unbox(shapes))
  return objective, params, state, batch


@pytest.fixture(scope="module")
def whole(case):
  """Gradient and outcome of the batch at once, on one device."""
  return gradient(*case)


@pytest.mark.slow
def test_eight_devices_with_micro_batches_equal_one(case, whole):
  objective, params, state, batch = case
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  with mesh_lib.use(mesh):
    placed = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
    same(gradient(objective, params, state, placed, 2), whole)


@pytest.mark.slow
def test_loss_is_over_all_masked_tokens_of_valid_rows(case, whole):
  objective, _, _, batch = case
  grads, outcome = whole
  ctx = Context(step=0, state={}, teachers={}, seed=3)
  masked = np.asarray(objective.mask(ctx.keys("mask", batch), GRID).masked)
  assert len(set(masked.sum(1))) > 2  # the ratio varies
  assert float(outcome.terms["cross_entropy"].weight) == masked[batch["valid"]].sum()
  for name in ("encoder", "decoder", "head"):
    assert max(np.abs(g).max() for g in jax.tree.leaves(grads[name])) > 1e-4, name


def test_ids_that_are_masked_influence_no_prediction(case):
  objective, params, _, batch = case
  ids = objective.tokenizer.ids({}, batch["image"])
  mask = objective.mask(jax.random.split(jax.random.key(0), ROWS), GRID)
  predict = jax.jit(lambda ids: objective._predict(params, ids, mask.masked, GRID, mask))
  logits, other = predict(ids), (ids + 1) % objective.tokenizer.codes
  np.testing.assert_array_equal(logits, predict(jnp.where(mask.masked, other, ids)))
  assert np.abs(logits - predict(other)).max() > 1e-3  # what is not masked does


def test_a_picture_is_encoded_as_its_ids(case):
  """So that what is probed and fine-tuned on pictures is what was trained on ids."""
  objective, params, state, batch = case
  weights = {"params": params["encoder"], "frozen": state["encoder"]}
  encode = jax.jit(lambda image: objective.encoder.apply(weights, image)[0])
  ids = objective.tokenizer.ids({}, batch["image"]).reshape(ROWS, *GRID)
  pooled = encode(batch["image"])
  np.testing.assert_allclose(pooled, encode(ids), **TOLERANCE)
  assert np.abs(pooled - encode((ids + 1) % objective.tokenizer.codes)).max() > 1e-3


@functools.partial(jax.jit, static_argnums=0)
def generated(objective, params, state, batch):
  ctx = Context(step=0, state=state, teachers={}, seed=3, train=False, want=("image/generated",))
  return objective.forward(ctx, params, batch)[0]["image/generated"]


@pytest.fixture(scope="module")
def pictures(case):
  return np.asarray(generated(mage(decoding_steps=3), *case[1:]))


def test_generated_pictures_have_the_colours_of_the_palette(pictures):
  assert pictures.shape == (ROWS, PIXELS, PIXELS, 3)
  assert set(np.unique(pictures)) <= {-1.0, 0.0, 1.0}
  assert len(np.unique(pictures.reshape(-1, 3), axis=0)) > 3  # all not the same


def test_generated_pictures_follow_from_the_row_alone(case, pictures):
  """Not from the batch, its size or order, nor from what the records show; each is another."""
  _, params, state, batch = case
  batch = {**batch, "image": -batch["image"]}
  for rows in np.arange(ROWS)[::-1].reshape(4, 4):
    part = {name: x[rows] for name, x in batch.items()}
    np.testing.assert_array_equal(generated(mage(decoding_steps=3), params, state, part),
                                  pictures[rows])
  assert len(np.unique(pictures.reshape(ROWS, -1), axis=0)) == ROWS


@pytest.mark.parametrize("changes", [
    dict(decoding_steps=2), dict(temperature=0.1), dict(choice_temperature=0.0)])
def test_generation_goes_by_its_settings(case, pictures, changes):
  other = generated(mage(**{"decoding_steps": 3, **changes}), *case[1:])
  assert (np.asarray(other) != pictures).any()


def test_features_in_evaluation(case):
  objective, params, state, batch = case
  ctx = Context(step=0, state=state, teachers={}, train=False,
                want=("image/ids", "image/tokens", "image/vocabulary", "image/reconstruction",
                      "image/generated"))
  features = jax.eval_shape(lambda: objective.forward(ctx, params, batch)[0])
  assert jax.tree.map(jnp.shape, features) == {
      "image/pooled": (ROWS, 16), "image/embed": (ROWS, 16), "image/tokens": (ROWS, 16, 16),
      "image/ids": (ROWS, 16), "image/vocabulary": (), "image/reconstruction": batch["image"].shape,
      "image/generated": batch["image"].shape}
  ctx = dataclasses.replace(ctx, want=())
  bare = jax.eval_shape(lambda: objective.forward(ctx, params, batch)[0])
  assert set(bare) == {"image/pooled", "image/embed"}


@pytest.mark.parametrize("changes, message", [
    (dict(encoder=ViT(**{**ENCODER, "tokenizer": None})), "encoder.tokenizer: is missing"),
    (dict(encoder=ViT(**{**ENCODER, "class_token": False})), "encoder: needs class_token=True"),
    (dict(smoothing=1.0), "smoothing: must be at least 0"),
    (dict(decoding_steps=0), "decoding_steps: must be at least 1"),
    (dict(temperature=0.0), "temperature: must be positive"),
    (dict(choice_temperature=-1.0), "choice_temperature: must not be negative"),
])
def test_bad_settings_are_named(changes, message):
  with pytest.raises(ValueError, match="ViT.patch: must be 1 with a tokenizer"):
    ViT(**{**ENCODER, "patch": 2})
  with pytest.raises(ValueError, match=message):
    mage(**changes)
