"""4M's objective: what is masked is not seen, what is predicted is what the table says."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mmjax import config
from mmjax.config import ConfigError
from mmjax.models.modality import Modality
from mmjax.models.vit import ViT
from mmjax.nn.patch import patchify
from mmjax.objectives.contract import Context
from mmjax.objectives.fourm import FourM
from mmjax.parallel import mesh as mesh_lib
from mmjax.targets.depth_bins import DepthBins
from mmjax.targets.patch_class import PatchClass
from mmjax.training import streams
from mmjax.training.gradients import loss_and_grad

ROWS, SIDE, LENGTH, VOCAB = 8, 16, 6, 20
TABLE = {
    "image": Modality("patches", "image", target_alpha=0.0),
    "depth": Modality("tokens", vocab=8, grid=(4, 4), target=DepthBins(bins=8)),
    "semantic": Modality("tokens", vocab=5, grid=(2, 2), target=PatchClass(classes=5), weight=2.0),
    "text": Modality("sequence", "text", vocab=VOCAB, length=LENGTH),
}
VIT = ViT(patch=4, width=16, depth=1, heads=2, pool="mean", position="sincos", class_token=True,
          scan=False)
OBJECTIVE = FourM(VIT, TABLE, input_tokens=12, target_tokens=10, decoder_depth=1)


def make_batch():
  rng = np.random.default_rng(0)
  length = rng.integers(2, LENGTH + 1, ROWS)
  return {
      "image": rng.normal(size=(ROWS, SIDE, SIDE, 3)).astype(np.float32),
      "depth": rng.uniform(1, 20, (ROWS, SIDE, SIDE, 1)).astype(np.float32),
      "semantic": rng.integers(0, 5, (ROWS, SIDE, SIDE)).astype(np.int32),
      "text": rng.integers(3, VOCAB, (ROWS, LENGTH)).astype(np.int32),
      "text_mask": np.arange(LENGTH) < length[:, None],
      "row": np.stack([np.zeros(ROWS), np.arange(ROWS) * 7], 1).astype(np.uint32),
      "valid": np.arange(ROWS) != 3,
  }


def context(state, train=True):
  return Context(step=jnp.int32(0), state=state, teachers={}, seed=3, train=train)


@jax.jit
def look(made, batch):
  """The loss, its gradient in the parameters and in the pixels shown; and what led to it."""
  params, state = made
  ctx = context(state)

  def loss(params, image):
    features, _ = OBJECTIVE.forward(ctx, params, {**batch, "image": image})
    terms, _ = OBJECTIVE.terms(ctx, params, features, batch)
    weights = OBJECTIVE.weights(ctx.step)
    row = OBJECTIVE.divide(ctx, batch, OBJECTIVE.ids(state, batch))
    return sum(weights[name] * term.mean for name, term in terms.items()), (terms, features, row)

  (value, (terms, features, row)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(
      params, batch["image"])
  return {"loss": value, "terms": terms, "grads": grads[0], "pixels": grads[1],
          "features": features, "row": row}


@functools.partial(jax.jit, static_argnums=2)
def gradient(made, batch, micro_batches=1):
  params, state = made
  grads, outcome = loss_and_grad(OBJECTIVE, context(state), params, batch,
                                 micro_batches=micro_batches)
  return grads, outcome.loss, outcome.terms


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def batch():
  return make_batch()


@pytest.fixture(scope="module")
def made(batch):
  return mesh_lib.unbox(jax.jit(OBJECTIVE.init)(jax.random.key(0), batch))


@pytest.fixture(scope="module")
def seen(made, batch):
  return jax.device_get(look(made, batch))


@pytest.fixture(scope="module")
def whole(made, batch):
  return jax.device_get(gradient(made, batch))


def same(got, want, tolerance=2e-5):
  """Floats of order one, summed in another order."""
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=tolerance, atol=2e-6), got, want)


def test_every_valid_row_predicts_as_many_tokens_as_the_config_says(seen):
  terms = seen["terms"]
  assert sorted(terms) == ["depth", "semantic", "text"]
  assert sum(float(term.weight) for term in terms.values()) == 10 * (ROWS - 1)


def test_the_loss_is_the_weighted_mean_over_modalities_of_means_over_tokens(seen):
  mean = {name: term.sum / term.weight for name, term in seen["terms"].items()}
  same(seen["loss"], (mean["depth"] + 2 * mean["semantic"] + mean["text"]) / 3)


def test_gradient_reaches_every_parameter(seen):
  grads = {jax.tree_util.keystr(path): np.abs(x).max()
           for path, x in jax.tree_util.tree_leaves_with_path(seen["grads"])}
  # Softmax does not change with what is added to all keys.
  assert not [path for path, x in grads.items() if x < 1e-6 and "'key'" not in path]


@pytest.mark.slow
def test_two_micro_batches_equal_one_step(made, batch, whole, seen):
  same(gradient(made, batch, 2), whole)
  same(whole, (seen["grads"], seen["loss"], seen["terms"]))


@pytest.mark.slow
def test_eight_devices_equal_one(made, batch, whole):
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  with mesh_lib.use(mesh, mesh_lib.RULES):
    placed = jax.device_put(batch, mesh_lib.batch_sharding(mesh, mesh_lib.RULES))
    same(jax.device_get(gradient(made, placed)), whole)


def test_a_bad_record_changes_nothing(made, batch, seen):
  other = {name: x.copy() for name, x in batch.items()}
  other["image"][3], other["semantic"][3], other["text"][3] = 9.0, 1, 4
  again = look(made, other)
  for name in ("loss", "terms", "grads"):
    same(again[name], seen[name], 1e-7)


def own(index, sizes, name):
  """Which tokens of a modality a pool's index [B, K] holds, bool [B, N]."""
  start = sum(size for other, size in sizes.items() if other < name)
  found = np.zeros((ROWS, sum(sizes.values())), bool)
  found[np.arange(ROWS)[:, None], index] = True
  return found[:, start:start + sizes[name]]


def test_what_is_not_shown_has_no_gradient(seen, batch):
  row = seen["row"]
  shown = own(row.index, OBJECTIVE.decoder(batch).input_sizes, "image")
  patches = np.abs(patchify(seen["pixels"], (4, 4))).max((2, 3, 4))
  assert row.there.all() and shown.any() and not shown.all()
  assert (patches[shown & batch["valid"][:, None]] > 0).all() and (patches[~shown] == 0).all()


def test_no_token_is_both_shown_and_predicted(seen, batch):
  decoder, row = OBJECTIVE.decoder(batch), seen["row"]
  assert row.target_there.all()
  for name in ("depth", "semantic"):
    shown = own(row.index, decoder.input_sizes, name)
    told = own(row.target_index, decoder.target_sizes, name)
    assert shown.any() and told.any() and not (shown & told).any()


def test_the_loss_of_a_modality_moves_with_its_own_targets_only(made, batch, seen):
  params, state = made
  features = seen["features"]

  @jax.jit
  def means(ids):
    terms, _ = OBJECTIVE.terms(context(state), params, {**features, "ids": ids}, batch)
    return {name: term.mean for name, term in terms.items()}

  before = means(features["ids"])
  for number, name in enumerate(("depth", "semantic", "text")):
    ids = features["ids"]
    after = means(jnp.where(features["modality"] == number, (ids + 1) % 5, ids))
    assert [other for other in before if before[other] != after[other]] == [name]


def test_targets_see_those_of_their_modality_and_text_what_stands_before():
  decoder = OBJECTIVE.decoder(make_batch())
  sizes = decoder.target_sizes  # depth 16, semantic 4, text 9
  assert list(sizes.items()) == [("depth", 16), ("semantic", 4), ("text", 9)]
  index = jnp.array([[0, 5, 17, 20, 21, 23]])
  there = jnp.array([[True, True, True, True, True, False]])
  want = [[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0],
          [0, 0, 0, 1, 1, 0], [0, 0, 0, 1, 1, 1]]  # padding sees itself, and nobody sees it
  np.testing.assert_array_equal(decoder.visible(index, there)[0], np.array(want, bool))


def test_what_is_shown_tells_what_is_hidden(made):
  """Near or far, and light or dark with it: who sees nothing of the input stays at ln 2 = 0.69."""
  params, state = made
  optimizer = optax.adam(3e-3)
  opt_state = optimizer.init(params)
  update = jax.jit(lambda *x: optimizer.update(*x))
  losses = []
  for step in range(100):
    one = make_batch()
    far = np.random.default_rng(step).integers(0, 2, ROWS)[:, None, None, None]
    one["depth"] = np.broadcast_to(np.where(far, 18.0, 1.2), one["depth"].shape).astype(np.float32)
    one["image"] = one["image"] / 4 + 2 * far.astype(np.float32) - 1
    one["row"][:, 1] += step * 1000
    one = look((params, state), one)
    updates, opt_state = update(one["grads"], opt_state)
    params = optax.apply_updates(params, updates)
    losses.append(float(one["terms"]["depth"].mean))
  assert np.mean(losses[-20:]) < 0.35


def test_the_encoder_is_a_plain_vit_in_evaluation(made, batch):
  params, state = made
  got, want = jax.jit(lambda params, image: (
      OBJECTIVE.forward(context(state, train=False), params, {"image": image})[0],
      VIT.apply({"params": params["encoder"]}, image)[0]))(params, batch["image"])
  same(got["image/pooled"], want)
  shapes = jax.eval_shape(VIT.init, jax.random.key(0), batch["image"])["params"]
  assert jax.tree.structure(mesh_lib.unbox(shapes)) == jax.tree.structure(params["encoder"])


TEXT = dict(kind="sequence", source="text", vocab=4, length=4)


def changed(name, **values):
  return {"modalities": {**TABLE, name: dataclasses.replace(TABLE[name], **values)}}


def without(name):
  return {key: x for key, x in make_batch().items() if key != name}


@pytest.mark.parametrize("changes, batch, message", [
    ({"input_tokens": 99}, make_batch(), "input_tokens=99: must be at least 1 and at most 42"),
    ({"target_tokens": 0}, make_batch(), "target_tokens=0: must be at least 1 and at most 29"),
    ({}, without("depth"), "modalities.depth.target: it reads 'depth', which the batch has not"),
    ({}, without("text"), "modalities.text.source: the batch has no 'text'; data gives depth, im"),
    (changed("depth", vocab=9), make_batch(), "modalities.depth.vocab: 9, but its tokenizer has 8"),
    (changed("text", length=7), make_batch(), "modalities.text.length: 7, but 'text' has 6 tokens"),
    (changed("depth", grid=(3, 3)), make_batch(), "16x16 does not divide into 3x3"),
    (changed("depth", input_alpha=(1.0, 2.0)), make_batch(),
     "modalities.depth.input_alpha: has 2 parts of a mixture, but image has 1"),
    ({"modalities": {"depth": TABLE["depth"]}}, make_batch(), "one must be of kind 'patches'"),
    ({"encoder": VIT.clone(position="rotary")}, make_batch(), "encoder.position"),
])
def test_bad_input_is_one_line_that_names_the_key(changes, batch, message):
  with pytest.raises(ValueError) as error:
    objective = dataclasses.replace(OBJECTIVE, **changes)
    jax.eval_shape(objective.init, jax.random.key(0), batch)
  assert message in str(error.value) and "\n" not in str(error.value)


def test_a_text_tokenizer_of_more_ids_than_the_table_says_is_named():
  stream = types.SimpleNamespace(transforms=(types.SimpleNamespace(tokenizer="bytes"),))
  with pytest.raises(ConfigError, match=r"objective\.modalities\.text\.vocab: 20 is too small for "
                     "the tokenizer 'bytes', which has 259 ids"):
    streams.check_vocabulary(OBJECTIVE, stream)


@pytest.mark.parametrize("values, message", [
    (dict(kind="patch", source="image"), "kind = 'patch' is not one of"),
    (dict(kind="patches", source="image"), "target_alpha: patches have no ids"),
    (dict(kind="patches"), "source: kind='patches' needs it"),
    (dict(kind="sequence", source="text", length=4), "vocab: kind='sequence' needs it"),
    (dict(TEXT, grid=(2, 2)), "grid: kind='sequence' has none"),
    (dict(TEXT, input_alpha=-1.0), "input_alpha: must not be negative"),
])
def test_a_bad_row_of_the_table_names_its_key(values, message):
  with pytest.raises(ValueError, match=re.escape(message)):
    Modality(**values)


def test_the_table_of_a_config_is_built_and_its_errors_name_the_path():
  row = {"name": "modality", "kind": "tokens", "vocab": 8, "grid": [4, 4],
         "target": {"name": "depth_bins", "bins": 8}}
  node = {"name": "fourm", "input_tokens": 4, "target_tokens": 4,
          "encoder": {"name": "vit", "position": "sincos"},
          "modalities": {"depth": row, "image": {"name": "modality", "kind": "patches",
                                                 "source": "image", "target_alpha": 0}}}
  built = config.build("mmjax.objectives", node, "objective")
  assert built.modalities["depth"].target == DepthBins(bins=8)
  row["target"]["bin"] = 3
  with pytest.raises(ConfigError, match=r"objective\.modalities\.depth\.target\.bin: unknown key"):
    config.build("mmjax.objectives", node, "objective")
