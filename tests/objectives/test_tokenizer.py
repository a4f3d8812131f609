"""A tokenizer's step: averages of codes exact over micro-batches and devices, revival, critic."""

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import adversarial
from mmjax.models.conv_decoder import ConvDecoder
from mmjax.models.conv_encoder import ConvEncoder
from mmjax.models.patch_critic import PatchCritic
from mmjax.models.text import TextTransformer
from mmjax.models.token_decoder import TokenDecoder
from mmjax.models.vit import ViT
from mmjax.models.vq import VQ
from mmjax.nn.patch import patchify, unpatchify
from mmjax.objectives.contract import Context
from mmjax.objectives.tokenizer import Tokenizer
from mmjax.parallel import mesh as mesh_lib
from mmjax.targets.features import Features
from mmjax.targets.pixels import Pixels
from mmjax.training.gradients import loss_and_grad

ROWS, PIXELS, CODES, DIM = 16, 4, 12, 3
# float32 sums in another order; the values are of order one.
TOLERANCE = dict(rtol=2e-5, atol=2e-6)


class Patches(nn.Module):
  """An encoder that compiles quickly: one matrix on patches of 2x2 pixels."""

  patch = 2

  def grid_of(self, shape):
    return (shape[1] // 2, shape[2] // 2)

  @nn.compact
  def __call__(self, image, *, keys=None, train=False, want=()):
    tokens = nn.Dense(6, name="patches")(patchify(image, (2, 2)).reshape(len(image), -1, 12))
    return tokens.mean(1), {"tokens": tokens}


class Pictures(nn.Module):
  """Its counterpart."""

  @nn.compact
  def __call__(self, codes):
    pixels = nn.Dense(12, name="pixels")(codes.reshape(len(codes), -1, codes.shape[-1]))
    return unpatchify(pixels.reshape(*pixels.shape[:2], 2, 2, 3), codes.shape[1:3])


def make_batch():
  rng = np.random.default_rng(0)
  valid = np.ones(ROWS, bool)
  valid[[3, 10]] = False
  image = rng.normal(size=(ROWS, PIXELS, PIXELS, 3)).astype(np.float32)
  return {"image": image * valid[:, None, None, None], "valid": valid,
          "row": np.stack([np.zeros(ROWS), np.arange(ROWS) + 5], 1).astype(np.uint32)}


class ByIdentity(Tokenizer):
  """jit is told which objective it is by identity, since `losses` is a dict."""

  __hash__ = object.__hash__


def objective(**changes):
  tokenizer = VQ(Patches(), Pictures(), codes=CODES, dim=DIM)
  return ByIdentity(**{"tokenizer": tokenizer, "revive": 8, "decay": 0.7, **changes})


@functools.partial(jax.jit, static_argnums=(0, 5))
def one_step(objective, step, params, state, batch, micro_batches):
  ctx = Context(step=step, state=state, teachers={}, seed=3)
  grads, outcome = loss_and_grad(objective, ctx, params, batch, micro_batches=micro_batches)
  return grads, outcome, objective.update(ctx, outcome.stats)


def two_steps(objective, params, state, batch, micro_batches=1):
  """Gradient, outcome and state of a step, and of one more of other rows, same parameters."""
  first = one_step(objective, 0, params, state, batch, micro_batches)
  later = {**batch, "image": 2 - batch["image"], "row": batch["row"] + jnp.uint32(ROWS)}
  return first, one_step(objective, 1, params, first[2], later, micro_batches)


def same(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **TOLERANCE), jax.device_get(a),
               jax.device_get(b))


@pytest.fixture(scope="module")
def case():
  tokenizer, batch = objective(), make_batch()
  params, state = mesh_lib.unbox(jax.jit(tokenizer.init)(jax.random.key(0), batch))
  return tokenizer, params, state, batch, two_steps(tokenizer, params, state, batch)


@pytest.fixture(scope="module")
def singly():
  """Gradients of the reconstruction, of the generator's term and of the critic's, each alone."""
  tokenizer, batch = objective(critic=PatchCritic(4, 1)), make_batch()

  @jax.jit
  def grads(batch):
    params, state = mesh_lib.unbox(tokenizer.init(jax.random.key(0), batch))
    ctx = Context(step=jnp.int32(0), state=state, teachers={}, seed=3)
    return [loss_and_grad(tokenizer, ctx, params, batch, only=only)[0]
            for only in (("l2",), ("adversarial",), ("critic/real", "critic/fake"))]

  return grads(batch)


def test_eight_devices_with_micro_batches_equal_one(case):
  tokenizer, params, state, batch, whole = case
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  with mesh_lib.use(mesh):
    placed = jax.device_put(batch, mesh_lib.batch_sharding(mesh))
    same(two_steps(tokenizer, params, state, placed, 2), whole)


def test_rows_that_are_not_valid_change_nothing(case):
  tokenizer, params, state, batch, whole = case
  other = {**batch, "image": np.where(batch["valid"][:, None, None, None], batch["image"], 7)}
  got = two_steps(tokenizer, params, state, other)
  same([step[::2] for step in got], [step[::2] for step in whole])


def test_codebook_and_revival_are_those_of_numpy(case):
  tokenizer, params, state, batch, (first, _) = case
  weights = {**params["tokenizer"], **state["tokenizer"]}
  vectors = np.asarray(tokenizer.tokenizer.encode(weights, batch["image"])[2], np.float64)
  ids = np.asarray(tokenizer.tokenizer.ids(weights, batch["image"]))
  codes, count, total = np.array(weights["codes"]), np.zeros(CODES), np.zeros((CODES, DIM))
  for b in np.flatnonzero(batch["valid"]):
    for t, k in enumerate(ids[b]):
      count[k] += 0.3  # 1 - decay
      total[k] += 0.3 * vectors[b, t]
  used = count > 0
  codes[used] = total[used] / count[used, None]
  mean = count.mean()
  dead = np.flatnonzero(count <= 0.02 * mean)
  assert 1 < len(dead) <= 8  # else the case would not show what it is for
  got = np.asarray(first[2]["tokenizer"]["codes"])
  np.testing.assert_allclose(np.delete(got, dead, 0), np.delete(codes, dead, 0), **TOLERANCE)
  np.testing.assert_allclose(first[2]["uses"]["count"], np.where(count > 0.02 * mean, count, mean),
                             rtol=1e-5)
  rows = []
  for k in dead:  # each is an encoder output, of another valid row each
    b, _ = np.unravel_index(np.abs(vectors - got[k]).sum(-1).argmin(), ids.shape)
    assert np.abs(vectors[b] - got[k]).sum(-1).min() < 1e-5
    rows.append(b)
  assert len(set(rows)) == len(dead) and batch["valid"][rows].all()


def test_without_revival_codes_that_nobody_chose_stay(case):
  _, _, state, _, ((_, outcome, _), _) = case
  ctx = Context(step=jnp.int32(0), state=state, teachers={})
  new = objective(revive=0).update(ctx, outcome.stats)
  idle = np.asarray(outcome.stats["count"]) == 0
  assert idle.any()
  np.testing.assert_array_equal(new["tokenizer"]["codes"][idle], state["tokenizer"]["codes"][idle])


def moved(tree):
  return any(np.abs(g).max() > 1e-7 for g in jax.tree.leaves(tree))


@pytest.mark.slow
def test_encoder_learns_from_the_decoders_loss_through_the_codes(singly):
  assert moved(singly[0]["tokenizer"]["encoder"]) and moved(singly[0]["tokenizer"]["to_code"])
  assert not moved(singly[0]["critic"])


@pytest.mark.slow
def test_each_adversary_learns_from_its_own_term_only(singly):
  _, generator, critic = singly
  assert moved(generator["tokenizer"]["decoder"]) and not moved(generator["critic"])
  assert moved(critic["critic"]) and not moved(critic["tokenizer"])


@dataclasses.dataclass(frozen=True)
class Fixed:
  """A target: the same features for every picture, from its state."""

  def init(self, rng, batch):
    return {"features": jax.random.normal(rng, (4, 12))}

  def size(self, batch, grid):
    return 12

  def __call__(self, state, batch, grid, guide=None):
    return jnp.broadcast_to(state["features"], (len(batch["image"]), 4, 12)), None


class Vectors(nn.Module):
  """A decoder to features."""

  @nn.compact
  def __call__(self, codes):
    return nn.Dense(12)(codes.reshape(len(codes), -1, codes.shape[-1]))


def test_with_a_target_its_features_are_what_is_told_and_they_stay():
  batch = make_batch()
  taught = objective(tokenizer=VQ(Patches(), Vectors(), codes=CODES, dim=DIM, normalise=True),
                     target=Fixed(), losses={"cosine": 1.0})

  @jax.jit
  def run(batch):
    params, state = mesh_lib.unbox(taught.init(jax.random.key(0), batch))
    ctx = Context(step=jnp.int32(0), state=state, teachers={}, seed=3)
    batch = taught.augment(ctx, batch)
    features, stats = taught.forward(ctx, params, batch)
    terms = taught.terms(ctx, params, features, batch)[0]
    return features["made"], terms["cosine"], state, taught.update(ctx, stats)

  made, term, state, new = run(batch)
  made, wanted = np.asarray(made, np.float64), np.asarray(state["target"]["features"], np.float64)
  cosine = (made * wanted).sum(-1) / np.linalg.norm(made, axis=-1) / np.linalg.norm(wanted, axis=-1)
  assert float(term.mean) == pytest.approx(1 - cosine[batch["valid"]].mean(), rel=1e-5)
  np.testing.assert_array_equal(new["target"]["features"], state["target"]["features"])
  np.testing.assert_allclose(np.linalg.norm(new["tokenizer"]["codes"], axis=-1), 1, rtol=1e-5)


def test_adversaries_wait_for_their_step():
  late = objective(critic=PatchCritic(), adversarial=0.3, adversarial_from_steps=10)
  names = ("adversarial", "critic/real", "critic/fake")
  assert [float(late.weights(jnp.int32(9))[name]) for name in names] == [0, 0, 0]
  after = [float(late.weights(jnp.int32(10))[name]) for name in names]
  assert after == pytest.approx([0.3, 0.5, 0.5])
  assert set(objective().weights(0)) == {"l2", "commitment"}


def test_hinge_losses_are_those_of_the_formula():
  x = np.array([-3.0, -1.0, 0.25, 1.0, 2.0], np.float32)
  np.testing.assert_allclose(adversarial.hinge_real(x), np.maximum(0, 1 - x))
  np.testing.assert_allclose(adversarial.hinge_fake(x), np.maximum(0, 1 + x))
  np.testing.assert_allclose(adversarial.generator(x), -x)


def test_features_in_evaluation(case):
  tokenizer, params, state, batch, _ = case
  want = ("image/ids", "image/tokens", "image/vocabulary", "image/reconstruction")
  ctx = Context(step=jnp.int32(0), state=state, teachers={}, train=False)
  features = jax.eval_shape(lambda: tokenizer.forward(ctx, params, batch)[0])
  assert set(features) == {"image/pooled", "image/embed"}
  ctx = dataclasses.replace(ctx, want=want)
  shapes = jax.tree.map(jnp.shape, jax.eval_shape(lambda: tokenizer.forward(ctx, params, batch)[0]))
  assert shapes == {
      "image/pooled": (ROWS, 6), "image/embed": (ROWS, 6), "image/tokens": (ROWS, 4, 6),
      "image/ids": (ROWS, 4), "image/vocabulary": (), "image/reconstruction": batch["image"].shape}
  with pytest.raises(ValueError, match="image/idss"):
    tokenizer.forward(dataclasses.replace(ctx, want=("image/idss",)), params, batch)


def test_convolutional_tokenizer_gives_pictures_of_the_same_size():
  shape = dict(width=4, multipliers=(1, 2, 2), blocks=1)
  tokenizer = VQ(ConvEncoder(**shape), ConvDecoder(**shape), codes=8, dim=2)
  image = jnp.zeros((2, 16, 8, 3))

  def make(rng):
    weights = mesh_lib.unbox(tokenizer.init(rng, image))
    ids = tokenizer.ids(weights, image)
    return ids, tokenizer.picture(weights, ids, tokenizer.grid_of(image.shape))

  ids, picture = jax.eval_shape(make, jax.random.key(0))
  assert ids.shape == (2, 4 * 2) and picture.shape == image.shape
  with pytest.raises(ValueError, match="18x8 is not a whole number of patches of 4x4"):
    jax.eval_shape(tokenizer.init, jax.random.key(0), jnp.zeros((2, 18, 8, 3)))


@pytest.mark.parametrize("changes, message", [
    (dict(losses={"l3": 1.0}), "losses = 'l3' is not one of"),
    (dict(losses={}), "losses: none given"),
    (dict(decay=1.0), "decay: must be at least 0 and below 1"),
    (dict(revive=-1), "revive: must not be negative"),
    (dict(critic=PatchCritic(), target=Pixels()), "critic: judges pictures"),
    (dict(target=Features(ViT(pool="mean", grid=(2, 2)), text=TextTransformer())),
     "target.text: is for a mask"),
])
def test_bad_settings_are_named(changes, message):
  with pytest.raises(ValueError, match=message):
    objective(**changes)


def test_a_decoder_that_does_not_fit_its_target_is_named():
  decoder = TokenDecoder(out_dim=5, width=8, depth=1, heads=2)
  wrong = objective(tokenizer=VQ(Patches(), decoder), target=Pixels(normalise=False))
  with pytest.raises(ValueError, match=r"tokenizer.decoder: gives \[4, 5\] for 2x2 codes, but the "
                                       r"target is \[4, 12\]"):
    jax.eval_shape(wrong.init, jax.random.key(0), make_batch())
