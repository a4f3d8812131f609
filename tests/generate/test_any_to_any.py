"""Chained generation with 4M: counts, ranges, guidance, and what a modality is conditioned on."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.generate import any_to_any, logits
from mmjax.generate.any_to_any import Stage
from mmjax.models.modality import Modality
from mmjax.models.vit import ViT
from mmjax.objectives.fourm import FourM
from mmjax.parallel import mesh as mesh_lib
from mmjax.targets.depth_bins import DepthBins
from mmjax.targets.patch_class import PatchClass

ROWS, SIDE, LENGTH, VOCAB = 4, 16, 5, 12
TABLE = {
    "image": Modality("patches", "image", target_alpha=0.0),
    "depth": Modality("tokens", vocab=8, grid=(4, 4), target=DepthBins(bins=8)),
    "semantic": Modality("tokens", vocab=5, grid=(2, 2), target=PatchClass(classes=5)),
    "text": Modality("sequence", "text", vocab=VOCAB, length=LENGTH),
}
VIT = ViT(patch=4, width=16, depth=1, heads=2, pool="mean", position="sincos", scan=False)
OBJECTIVE = FourM(VIT, TABLE, input_tokens=8, target_tokens=8, decoder_depth=1)
COLD = 1e-6  # a temperature at which only the likeliest id is drawn
SEMANTIC = Stage("semantic", steps=1, temperature=COLD)


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def batch():
  rng = np.random.default_rng(0)
  return {
      "image": rng.normal(size=(ROWS, SIDE, SIDE, 3)).astype(np.float32),
      "depth": np.ones((ROWS, SIDE, SIDE, 1), np.float32),
      "semantic": np.zeros((ROWS, SIDE, SIDE), np.int32),
      "text": np.ones((ROWS, LENGTH), np.int32),
  }


@pytest.fixture(scope="module")
def made(batch):
  params, state = mesh_lib.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(0), batch))
  # As at the start, what is shown hardly tells; enlarged, it decides which id is the likeliest.
  cross, tokens = params["decoder"]["layers"]["cross"], params["decoder"]["token_depth"]
  cross["out"]["kernel"] = 20 * cross["out"]["kernel"]
  tokens["embedding"] = 20 * tokens["embedding"]
  return params, state


def run(made, batch, condition, stages):
  keys = jax.random.split(jax.random.key(7), ROWS)
  generate = jax.jit(functools.partial(any_to_any.generate, OBJECTIVE, condition=condition,
                                       stages=stages))
  return jax.device_get(generate(*made, batch, keys))


@pytest.fixture(scope="module")
def chain(made, batch):
  return run(made, batch, ("image",), (Stage("depth", steps=3), SEMANTIC))


def test_grids_are_complete_and_ids_in_range(chain):
  assert chain["depth"].shape == (ROWS, 16) and chain["semantic"].shape == (ROWS, 4)
  assert chain["depth"].dtype == chain["semantic"].dtype == np.int32
  for name, vocab in (("depth", 8), ("semantic", 5)):
    assert chain[name].min() >= 0 and chain[name].max() < vocab
  assert len(np.unique(chain["depth"])) > 3


def test_what_was_generated_conditions_what_comes_next(made, batch, chain):
  depth = 20 ** ((chain["depth"] + 0.5) / 8)  # the middle of each bin
  picture = np.kron(depth.reshape(ROWS, 4, 4), np.ones((4, 4)))[..., None].astype(np.float32)
  given = run(made, {**batch, "depth": picture}, ("image", "depth"), (SEMANTIC,))
  np.testing.assert_array_equal(given["semantic"], chain["semantic"])
  other = run(made, {**batch, "depth": picture[::-1]}, ("image", "depth"), (SEMANTIC,))
  assert (other["semantic"] != chain["semantic"]).any()


def test_the_branch_without_condition_sees_nothing_but_its_own_modality(made, batch, chain):
  """Whatever the condition is, guidance of 0 gives what there is without any."""
  stages = lambda guidance: (Stage("depth", steps=3, guidance=guidance),)
  want = run(made, batch, (), stages(1.0))
  for image in batch["image"], batch["image"][::-1]:
    got = run(made, {**batch, "image": image}, ("image",), stages(0.0))
    np.testing.assert_array_equal(got["depth"], want["depth"])
  assert (want["depth"] != chain["depth"]).any()


def test_guided_logits_of_the_model_are_those_of_the_formula(made, batch):
  """Half of the depth is decoded, which both branches see; the image only one of them does."""
  params, state = made
  done = jnp.broadcast_to(jnp.arange(16) < 8, (ROWS, 16))

  @functools.partial(jax.jit, static_argnums=(0, 1))
  def depth(condition, guidance, image, ids):
    now = {**batch, "image": image}
    model = any_to_any._Model(OBJECTIVE, params, now)
    shown = model.given(state, now, condition).plus("depth", ids, done)
    stage = Stage("depth", steps=3, guidance=guidance)
    return any_to_any._guided(model, stage, shown)(~done)

  image, ids = batch["image"], jnp.full((ROWS, 16), 3)
  seen, alone = depth(("image",), 1.0, image, ids), depth((), 1.0, image, ids)
  assert np.abs(seen - alone).max() > 0.01
  for guidance in (0.0, 0.5, 3.0):
    np.testing.assert_allclose(depth(("image",), guidance, image, ids),
                               alone + guidance * (seen - alone), rtol=1e-4, atol=1e-5)
  other = [depth(("image",), 0.0, x, ids) for x in (image, -image)]
  np.testing.assert_array_equal(*other)
  assert np.abs(depth(("image",), 0.0, image, ids + 1) - alone).max() > 0.01


@pytest.mark.slow
def test_guidance_of_one_is_none(made, batch, chain):
  guided = Stage("depth", steps=3, guidance=1 + 1e-12)  # goes both ways, and is 1 in float32
  got = run(made, batch, ("image",), (guided, SEMANTIC))
  jax.tree.map(np.testing.assert_array_equal, got, chain)


def test_guidance_goes_from_the_unconditional_to_the_conditional_logits_and_beyond():
  seen, alone = jnp.array([1.0, 2.0]), jnp.array([0.5, 4.0])
  np.testing.assert_allclose(logits.guide(seen, alone, 1.0), seen)
  np.testing.assert_allclose(logits.guide(seen, alone, 0.0), alone)
  np.testing.assert_allclose(logits.guide(seen, alone, 3.0), [2.0, -2.0])


def test_text_is_tokens_up_to_its_end(made, batch):
  stages = (Stage("text", guidance=2.0), Stage("semantic", steps=3, order="confidence",
                                               schedule="cosine", temperature_schedule="linear"))
  got = run(made, batch, ("image",), stages)
  there = got["text_mask"]
  assert (there == (np.arange(LENGTH) < there.sum(1)[:, None])).all()
  assert got["text"][there].max() < VOCAB and (got["text"][~there] == 0).all()
  assert got["semantic"].shape == (ROWS, 4) and got["semantic"].max() < 5


def test_each_step_decodes_its_tokens_and_none_twice():
  done = jnp.array([[True, False, False, True, False]])
  score = jnp.array([[9.0, 0.1, 0.3, 9.0, 0.2]])
  np.testing.assert_array_equal(any_to_any._highest(score, done, 2),
                                [[False, False, True, False, True]])


@pytest.mark.parametrize("condition, stages, message", [
    (("image",), (Stage("image"),), "'image' is there already"),
    (("text",), (Stage("image"),), "'image' has target_alpha=0"),
    (("image",), (Stage("depth"),), "steps of depth: a grid needs them"),
    (("image",), (Stage("text", steps=2),), "steps of text: a grid needs them, a sequence has"),
    (("image",), (Stage("semantic", steps=9, schedule="cosine"),), "9 steps cannot decode 4"),
    (("image",), (Stage("deepth", steps=1),), "Did you mean 'depth'?"),
    (("depth",), (SEMANTIC, SEMANTIC), "'semantic' is there already"),
])
def test_a_stage_that_cannot_be_had_is_named(made, batch, condition, stages, message):
  keys = jax.random.split(jax.random.key(0), ROWS)
  with pytest.raises(ValueError) as error:
    jax.eval_shape(functools.partial(any_to_any.generate, OBJECTIVE, condition=condition,
                                     stages=stages), *made, batch, keys)
  assert message in str(error.value)


def test_a_grid_that_is_never_shown_is_decoded_in_one_step(made, batch):
  table = {**TABLE, "depth": dataclasses.replace(TABLE["depth"], input_alpha=0.0)}
  objective = dataclasses.replace(OBJECTIVE, modalities=table)
  with pytest.raises(ValueError, match="steps of depth: its input_alpha is 0"):
    any_to_any.generate(objective, *made, batch, None, condition=("image",),
                        stages=(Stage("depth", steps=2),))
