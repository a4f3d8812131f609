"""I-JEPA and C-JEPA: what is predicted from what, the teacher, the added terms, and that no part of a
batch or mesh changes a step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.masking.multi_block import MultiBlock
from mmjax.masking.random import Random
from mmjax.models.predictor import Predictor
from mmjax.models.vit import ViT
from mmjax.objectives.contract import Context
from mmjax.objectives.jepa import Jepa
from mmjax.parallel import mesh as mesh_lib
from mmjax.training import state as state_lib
from mmjax.training.gradients import loss_and_grad
from mmjax.training.step import make_eval_step, make_features, make_train_step

ROWS, PIXELS, PATCH, SEED = 16, 32, 4, 3
GRID = (PIXELS // PATCH, PIXELS // PATCH)
TOLERANCE = dict(rtol=2e-4, atol=2e-6)  # float32 sums in another order, through a variance's root
ENCODER = ViT(patch=PATCH, width=16, depth=1, heads=2, pool="mean", position="sincos", scan=False)
PREDICTOR = Predictor(width=12, depth=1, heads=2, scan=False)
MOMENTUM = {"start": 0.8, "final": 1.0, "ramp_steps": 10}
PLAIN = Jepa(ENCODER, PREDICTOR, MultiBlock(), MOMENTUM)
OBJECTIVE = dataclasses.replace(
    PLAIN, regularise={"invariance": 0.5, "variance": 0.25, "covariance": 2.0})


def make_batch():
  rng = np.random.default_rng(0)
  row = np.stack([np.zeros(ROWS), np.arange(ROWS)], -1).astype(np.uint32)
  return {"image": rng.normal(size=(ROWS, PIXELS, PIXELS, 3)).astype(np.float32), "row": row,
          "valid": np.arange(ROWS) % 7 != 3}


def context(params, **changes):
  # A teacher that is not the encoder, so that one in the other's place shows.
  teacher = jax.tree.map(lambda x: 1.1 * x + 0.02, params["encoder"])
  return Context(**{"step": jnp.int32(0), "state": {}, "teachers": {"encoder": teacher},
                    "seed": SEED, **changes})


@functools.partial(jax.jit, static_argnums=2)
def gradient(params, batch, micro_batches=1):
  return loss_and_grad(OBJECTIVE, context(params), params, batch, micro_batches=micro_batches)


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def params():
  return mesh_lib.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(0), make_batch())[0])


@pytest.fixture(scope="module")
def whole(params):
  return gradient(params, make_batch())


@pytest.fixture(scope="module")
def found(params):
  """Features of a training step, and its blocks."""
  batch = make_batch()
  keys = context(params).keys("mask", batch)
  forward = jax.jit(lambda params: OBJECTIVE.forward(context(params), params, batch)[0])
  return jax.device_get((forward(params), jax.jit(lambda k: MultiBlock()(k, GRID))(keys)))


def same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **TOLERANCE), jax.device_get(a),
               jax.device_get(b))


def test_targets_are_the_teachers_normalised_tokens_of_the_whole_image(params, found):
  features, blocks = found
  teacher = context(params).teachers["encoder"]
  tokens = np.asarray(jax.jit(lambda p, x: ENCODER.apply({"params": p}, x, want=("tokens",)))(
      teacher, make_batch()["image"])[1]["tokens"], np.float64)
  tokens -= tokens.mean(axis=-1, keepdims=True)
  tokens /= np.sqrt(tokens.var(axis=-1, keepdims=True) + 1e-5)
  want = tokens[np.arange(ROWS)[:, None, None], blocks.targets]
  np.testing.assert_allclose(features["target"], want, rtol=1e-4, atol=1e-4)


def test_the_terms_are_those_of_the_papers(found, whole):
  features, _ = found
  good = make_batch()["valid"]
  pick = lambda name: np.asarray(features[name], np.float64)[good]
  prediction, target, seen = pick("prediction"), pick("target"), pick("context/mean")
  size = np.abs(prediction - target)
  hinge = lambda x: np.maximum(0, 1 - np.sqrt(x.var(axis=0, ddof=1) + 1e-4)).mean()
  apart = lambda x: (np.square(np.cov(x, rowvar=False)).sum()
                     - np.square(x.var(axis=0, ddof=1)).sum()) / x.shape[1]
  mean = prediction.mean(axis=(1, 2))
  want = {"prediction": np.where(size < 1, size ** 2 / 2, size - 0.5).mean(),
          "invariance": np.square(mean - target.mean(axis=(1, 2))).mean(),
          "variance": hinge(seen) + hinge(mean), "covariance": apart(seen) + apart(mean)}
  outcome = whole[1]
  for name, value in want.items():
    np.testing.assert_allclose(outcome.terms[name].mean, value, rtol=1e-4)
  total = (want["prediction"] + 0.5 * want["invariance"] + 0.25 * want["variance"]
           + 2 * want["covariance"])
  np.testing.assert_allclose(outcome.loss, total, rtol=1e-4)


def test_the_context_encoder_never_sees_a_target(params, found):
  blocks, batch = found[1], make_batch()

  @jax.jit
  def of_pixels(image):
    inputs = {**batch, "image": image}
    features, _ = OBJECTIVE.forward(context(params), params, inputs)
    return sum(term.sum for term in OBJECTIVE.terms(context(params), params, features, inputs)[0]
               .values())

  gradient = np.asarray(jax.jit(jax.grad(of_pixels))(batch["image"]))
  side = GRID[0]
  by_patch = np.abs(gradient).reshape(ROWS, side, PATCH, side, PATCH, 3).max(axis=(2, 4, 5))
  reached = by_patch.reshape(ROWS, -1) > 0
  for row in np.flatnonzero(batch["valid"]):
    assert set(np.flatnonzero(reached[row])) == set(blocks.context[row])
    assert not reached[row][np.setdiff1d(blocks.targets[row], blocks.context[row])].any()


def test_each_block_is_predicted_without_the_others(params, found):
  features, blocks = found
  alone = jax.jit(lambda tokens, targets: PREDICTOR.apply(
      {"params": params["predictor"]}, tokens, blocks.context, targets, GRID))
  tokens = np.random.default_rng(1).normal(size=(*blocks.context.shape, 16)).astype(np.float32)
  every = alone(tokens, blocks.targets)
  changed = blocks.targets.copy()
  changed[:, 1:] = 0
  np.testing.assert_allclose(alone(tokens, changed)[:, 0], every[:, 0], rtol=1e-5, atol=1e-6)
  assert np.abs(alone(tokens, changed)[:, 1] - every[:, 1]).max() > 1e-3  # places matter


def test_micro_batches_equal_the_whole_batch(params, whole):
  same(gradient(params, make_batch(), 4), whole)


@pytest.mark.parametrize("axes", [
    dict(data=2, fsdp=2, sequence=2),
    pytest.param(dict(fsdp=2, tensor=2, sequence=2), marks=pytest.mark.slow),
    pytest.param(dict(data=8), marks=pytest.mark.slow)])
def test_eight_devices_equal_one(axes, params, whole):
  mesh = mesh_lib.make_mesh(**axes)
  with mesh_lib.use(mesh, mesh_lib.RULES):
    batch = jax.device_put(make_batch(), mesh_lib.batch_sharding(mesh, mesh_lib.RULES))
    same(gradient(params, batch), whole)


def test_bad_rows_change_nothing(params, whole):
  batch = make_batch()
  other = np.where(batch["valid"][:, None, None, None], batch["image"], 7).astype(np.float32)
  same(gradient(params, {**batch, "image": other}), whole)


def test_every_parameter_of_the_added_terms_is_trained(params, whole):
  """Variance and covariance reach the encoder from the context and through the predictions."""
  grads = whole[0]
  assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(grads))


def test_the_teacher_is_the_average_of_the_encoder_over_several_steps():
  batch, optimizer = make_batch(), optax.adam(1e-2)
  state = jax.jit(lambda: state_lib.create(PLAIN, optimizer, batch, seed=SEED))()
  step = jax.jit(make_train_step(PLAIN, optimizer, seed=SEED))
  want = jax.device_get(state.params["encoder"])
  for t in range(4):
    state, metrics = step(state, batch)
    decay = 1 - 0.2 * (1 + np.cos(np.pi * t / 10)) / 2
    want = jax.tree.map(lambda e, p: decay * e + (1 - decay) * np.asarray(p), want,
                        state.params["encoder"])
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
                 jax.device_get(state.teachers["encoder"]), want)
  moved = optax.tree.norm(jax.tree.map(jnp.subtract, state.params["encoder"], want))
  assert moved > 0.01  # it is an average, and no copy
  assert set(metrics) >= {"effective_rank", "feature_std", "prediction"}


def test_evaluation_is_of_the_whole_image_with_teacher_or_student(params):
  batch = make_batch()
  teachers = context(params).teachers
  for who, encoder in ("teacher", teachers["encoder"]), ("student", params["encoder"]):
    objective = dataclasses.replace(OBJECTIVE, eval_with=who)
    features = jax.jit(make_features(objective, seed=0))(params, {}, teachers, batch)
    pooled, _ = jax.jit(ENCODER.apply)({"params": encoder}, batch["image"])
    np.testing.assert_allclose(features["image/pooled"], pooled, rtol=1e-4, atol=1e-5)
  terms = jax.eval_shape(make_eval_step(OBJECTIVE, seed=0), params, {}, teachers, batch)
  assert set(terms) == {"prediction", "invariance", "effective_rank", "feature_std"}


def test_collapsed_features_are_below_the_thresholds_and_random_ones_above(params, whole):
  least, metrics = OBJECTIVE.collapsed_below(ROWS), whole[1].metrics
  assert all(metrics[name].mean > least[name] for name in least)
  features = {"image/pooled": jnp.ones((ROWS, 16)), **{
      name: jnp.ones((ROWS, 16)) for name in ("context/mean", "prediction/mean")}}
  _, collapsed = OBJECTIVE.couple(context(params), params, features, make_batch())
  assert all(collapsed[name].mean < least[name] for name in least)


def test_bad_input_is_named():
  change = functools.partial(dataclasses.replace, PLAIN)
  for message, changes in {
      "encoder.pool: nothing here trains 'map'": dict(encoder=ViT(grid=(2, 2))),
      "loss": dict(loss="l3"), "eval_with": dict(eval_with="both"),
      "regularise": dict(regularise={"spread": 1.0}),
      "regularise.variance: its weight is a number": dict(regularise={"variance": -1}),
      "momentum.start": dict(momentum={"start": 2}),
  }.items():
    with pytest.raises(ValueError, match=f"^{message}"):
      change(**changes)
  init = lambda objective, pixels=PIXELS: jax.eval_shape(objective.init, jax.random.key(0), {
      "image": jnp.zeros((2, pixels, pixels, 3))})
  with pytest.raises(ValueError, match="^mask.name: gives one mask"):
    init(change(mask=Random(0.5)))
  with pytest.raises(ValueError, match="^mask.target_scale=.*a block may have no token on a grid of 2x2"):
    init(PLAIN, pixels=8)
