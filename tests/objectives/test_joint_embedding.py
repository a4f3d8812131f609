"""VICReg: its terms, what each is good for, and that no part of a batch or mesh changes them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax.losses import collapse
from mmjax.models.expander import Expander
from mmjax.models.vit import ViT
from mmjax.objectives.contract import Context
from mmjax.objectives.joint_embedding import JointEmbedding
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.gradients import loss_and_grad
from mmjax.training.step import make_eval_step

ROWS, PIXELS = 16, 16
TOLERANCE = dict(rtol=2e-4, atol=2e-6)  # float32 sums in another order, through a variance's root
ENCODER = ViT(patch=8, width=16, depth=1, heads=2, pool="mean", position="sincos", scan=False)
OBJECTIVE = JointEmbedding(ENCODER, Expander((24, 20)))


def make_batch(valid=True):
  rng = np.random.default_rng(0)
  views = rng.normal(size=(ROWS, 1, PIXELS, PIXELS, 3)) + 0.3 * rng.normal(
      size=(ROWS, 2, PIXELS, PIXELS, 3))
  keep = np.ones(ROWS, bool) if valid else np.arange(ROWS) % 7 != 3
  row = np.stack([np.zeros(ROWS), np.arange(ROWS)], -1).astype(np.uint32)
  return {"global_views": views.astype(np.float32), "valid": keep, "row": row}


@functools.partial(jax.jit, static_argnums=(0, 3))
def gradient(objective, params, batch, micro_batches=1):
  ctx = Context(step=jnp.int32(0), state={}, teachers={}, seed=3)
  return loss_and_grad(objective, ctx, params, batch, micro_batches=micro_batches)


pytestmark = pytest.mark.usefixtures("quick_compilation")


@functools.partial(jax.jit, static_argnums=(0, 3))
def forward(objective, params, batch, want=()):
  ctx = Context(step=jnp.int32(0), state={}, teachers={}, train=False, want=want)
  return objective.forward(ctx, params, batch)[0]


@pytest.fixture(scope="module")
def params():
  return mesh_lib.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(0), make_batch())[0])


@pytest.fixture(scope="module")
def whole(params):
  return gradient(OBJECTIVE, params, make_batch(valid=False))


def same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **TOLERANCE), jax.device_get(a),
               jax.device_get(b))


def test_the_loss_is_that_of_the_paper(params, whole):
  batch = make_batch(valid=False)
  features = forward(OBJECTIVE, params, batch)
  a, b = np.moveaxis(np.asarray(features["image/expanded"], np.float64)[batch["valid"]], 1, 0)
  hinge = lambda x: np.maximum(0, 1 - np.sqrt(x.var(axis=0, ddof=1) + 1e-4)).mean()
  apart = lambda x: (np.square(np.cov(x, rowvar=False)).sum()
                     - np.square(x.var(axis=0, ddof=1)).sum()) / x.shape[1]
  want = {"invariance": np.square(a - b).mean(), "variance": (hinge(a) + hinge(b)) / 2,
          "covariance": apart(a) + apart(b)}
  outcome = whole[1]
  for name, value in want.items():
    np.testing.assert_allclose(outcome.terms[name].mean, value, rtol=1e-4)
  total = 25 * want["invariance"] + 25 * want["variance"] + want["covariance"]
  np.testing.assert_allclose(outcome.loss, total, rtol=1e-4)


def test_micro_batches_equal_the_whole_batch(params, whole):
  same(gradient(OBJECTIVE, params, make_batch(valid=False), 4), whole)


@pytest.mark.parametrize("axes", [
    dict(data=2, fsdp=2, sequence=2),
    pytest.param(dict(fsdp=2, tensor=2, sequence=2), marks=pytest.mark.slow),
    pytest.param(dict(data=8), marks=pytest.mark.slow)])
def test_eight_devices_equal_one(axes, params, whole):
  mesh = mesh_lib.make_mesh(**axes)
  with mesh_lib.use(mesh, mesh_lib.RULES):
    batch = jax.device_put(make_batch(valid=False), mesh_lib.batch_sharding(mesh, mesh_lib.RULES))
    same(gradient(OBJECTIVE, params, batch), whole)


def test_bad_rows_change_nothing(params, whole):
  batch = make_batch(valid=False)
  other = np.where(batch["valid"][:, None, None, None, None], batch["global_views"], 7)
  same(gradient(OBJECTIVE, params, {**batch, "global_views": other}), whole)


def trained(params, **weights):
  """How far apart the embeddings of the batch lie after some steps with these weights."""
  objective, batch = dataclasses.replace(OBJECTIVE, **weights), make_batch()
  optimizer = optax.adam(3e-3)

  @jax.jit
  def step(params, opt_state):
    ctx = Context(step=jnp.int32(1), state={}, teachers={})
    grads, _ = loss_and_grad(objective, ctx, params, batch)
    updates, opt_state = optimizer.update(grads, opt_state)
    return optax.apply_updates(params, updates), opt_state

  opt_state = optimizer.init(params)
  for _ in range(150):
    params, opt_state = step(params, opt_state)
  z = np.asarray(forward(OBJECTIVE, params, batch)["image/expanded"][:, 0])
  return z.std(axis=0).mean(), collapse.effective_rank(z - z.mean(axis=0))


def test_without_variance_the_embeddings_collapse(params):
  spread, rank = trained(params)
  collapsed, _ = trained(params, variance=0.0)
  assert spread > 0.5 and collapsed < 0.3 * spread
  assert rank > trained(params, covariance=0.0)[1] + 0.5  # which covariance is for


def test_an_image_is_evaluated_as_one_view(params):
  batch = make_batch()
  alone = {"image": batch["global_views"][:, 0], "valid": batch["valid"], "row": batch["row"]}
  of_image, of_views = (forward(OBJECTIVE, params, one, ("image/tokens",))
                        for one in (alone, batch))
  for name in ("image/pooled", "image/embed", "image/tokens"):
    np.testing.assert_allclose(of_image[name], of_views[name], rtol=1e-4, atol=1e-5)
  pooled, _ = jax.jit(ENCODER.apply)({"params": params["encoder"]}, alone["image"])
  np.testing.assert_allclose(of_image["image/pooled"], pooled, rtol=1e-5, atol=1e-6)
  terms = jax.eval_shape(make_eval_step(OBJECTIVE, seed=0), params, {}, {}, alone)
  assert {"variance", "effective_rank"} <= set(terms) and "invariance" not in terms


def test_bad_input_is_named():
  for key in ("invariance", "variance", "covariance"):
    with pytest.raises(ValueError, match=f"^{key}: must be 0 or more, not -1"):
      dataclasses.replace(OBJECTIVE, **{key: -1})
  with pytest.raises(ValueError, match="^invariance: must be positive"):
    dataclasses.replace(OBJECTIVE, invariance=0)
  with pytest.raises(ValueError, match="^encoder.pool: 'none'"):
    dataclasses.replace(OBJECTIVE, encoder=ViT(pool="none", position="none"))
  batch = make_batch()
  with pytest.raises(ValueError, match="^data: one view an image has nothing to agree with"):
    OBJECTIVE.init(jax.random.key(0), {**batch, "global_views": batch["global_views"][:, :1]})
  with pytest.raises(ValueError, match=r"^data: a batch of \['row'\] has neither"):
    OBJECTIVE.init(jax.random.key(0), {"row": batch["row"]})
  with pytest.raises(ValueError, match="Expander.widths"):
    Expander(widths=())
