"""The encoder of a tokenizer, and MAGE's, which reads a tokenizer's ids: plain ones for all other tools."""

import shutil

import jax
import numpy as np
import pytest

import mmjax
from mmjax import interop, train
from mmjax.checkpoint import paths
from mmjax.checkpoint.checkpointer import CheckpointError
from mmjax.checkpoint.interop.read import read
from mmjax.config import ConfigError
from mmjax.training import frozen, interpolate, pretrained
from mmjax.training.assemble import assemble
from mmjax.training.step import make_features
from tests.training import tiny

TRUNK = {"width": 16, "depth": 1, "heads": 2, "scan": False}
CNN = {"width": 8, "multipliers": [1, 1], "blocks": 1}
VQ = {"name": "tokenizer", "tokenizer": {
    "name": "vq", "codes": 32, "dim": 4, "encoder": {"name": "conv_encoder", **CNN},
    "decoder": {"name": "conv_decoder", **CNN}}}
MAGE = {"name": "mage", "mask": {"name": "variable"}, "decoder": {"name": "masked_decoder", **TRUNK},
        "encoder": {"name": "vit", "patch": 1, "pool": "mean", "position": "sincos", "class_token": True,
                    "tokenizer": {"name": "pretrained", "tower": "tokenizer"}, **TRUNK}}
CLASSIFIER = {"name": "classification", "model": {"name": "pretrained", "classes": 4}}
PAIRS = {"name": "contrastive", "losses": {"softmax": 1.0}, "image": {"name": "pretrained", "out_dim": 16},
         "text": {"name": "text", "vocab": 12, "length": 3, "out_dim": 16, **TRUNK}}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
  """From an objective and `init_from` to a run."""
  pairs = tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz")
  return lambda objective, path=None: assemble(
      tiny.config(pairs, objective=objective, init_from=path, optim={"weight_decay": 0.1}),
      devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def workdirs(run_of, tmp_path_factory):
  """That of a tokenizer, and that of a MAGE whose tokenizer has been moved since; of random weights."""
  root, rng = tmp_path_factory.mktemp("runs"), np.random.default_rng(0)

  def save(objective, name):
    run = run_of(objective)
    flat = {path: jax.numpy.asarray(rng.normal(size=x.shape, scale=0.3).astype(x.dtype))
            for path, x in paths.flatten(run.abstract).items()}
    flat |= {f"state/{path}": jax.numpy.asarray(x)
             for path, x in frozen.initial(run.frozen, run.abstract.state)[0].items()}
    flat |= {path: jax.numpy.zeros_like(flat[path]) for path in ("step", "halted")}
    interpolate.save(run, paths.unflatten(flat, like=run.abstract), str(root / name))

  save(VQ, "vq")
  tokenizer = {**MAGE["encoder"]["tokenizer"], "from": str(root / "vq")}
  save({**MAGE, "encoder": {**MAGE["encoder"], "tokenizer": tokenizer}}, "mage")
  shutil.move(root / "vq", root / "moved")
  return {"vq": str(root / "moved"), "mage": str(root / "mage")}


@pytest.fixture(scope="module", params=["vq", "mage"])
def case(request, workdirs):
  """A workdir, pictures, and what the objective's own evaluators see of them."""
  path = workdirs[request.param]
  images = np.random.default_rng(1).normal(size=(16, 16, 16, 3)).astype(np.float32)
  seen = features(*train._open(path, None, None), images, "image/ids")
  assert len(np.unique(seen["image/ids"])) > 3
  return path, images, seen


def begin(run):
  """A run and its state before the first step."""
  path, init = run.settings.init_from, run.settings.init
  return run, run.create_state(pretrained.initial(path, init, run.abstract.params)[0],
                               frozen.initial(run.frozen, run.abstract.state)[0])


def features(run, state, images, *more):
  batch = {"image": images, "row": np.zeros((16, 2), np.uint32), "valid": np.ones(16, bool)}
  see = make_features(run.objective, seed=0, want=("image/tokens", "image/pooled", *more))
  return jax.jit(see)(state.params, state.state, state.teachers, batch)


def same(ours, seen, *names):
  for name in names:  # the same operations in float32, perhaps fused otherwise
    np.testing.assert_allclose(ours[name], seen[name], rtol=1e-5, atol=1e-6, err_msg=name)
  assert np.abs(np.diff(seen["image/pooled"], axis=0)).max() > 1e-3


def test_the_whole_is_loaded_with_its_codes(case):
  path, images, seen = case
  found = mmjax.features(*mmjax.load(path), {"image": images}, want=("image/tokens", "image/ids"))
  same(found, seen, "image/tokens", "image/pooled")
  np.testing.assert_array_equal(found["image/ids"], seen["image/ids"])


@pytest.mark.slow
def test_a_classifier_begins_with_it_and_leaves_its_tokenizer_alone(case, run_of):
  path, images, seen = case
  run, state = begin(run_of(CLASSIFIER, path))
  same(features(run, state, images), seen, "image/tokens", "image/pooled")
  before = jax.device_get([paths.flatten(state.params), paths.flatten(state.state)])
  batch = {name: np.zeros(x.shape, x.dtype) for name, x in run.abstract_batch.items()}
  batch |= {"image": images, "valid": np.ones(16, bool), "label": np.arange(16, dtype=np.int32) % 4}
  with run.use():
    state, _ = run.step_fn()(state, jax.device_put(batch, run.batch_sharding))
  params, kept = jax.device_get([paths.flatten(state.params), paths.flatten(state.state)])
  assert np.any(params["classifier/kernel"] != before[0]["classifier/kernel"])
  assert ("model/tokenizer/codes" in kept) == ("mage" in path)
  for name, x in kept.items():
    np.testing.assert_array_equal(x, before[1][name], err_msg=name)


@pytest.mark.slow
def test_an_image_tower_begins_with_it(case, run_of):
  path, images, seen = case
  run, state = begin(run_of(PAIRS, path))
  same(features(run, state, images), seen, "image/tokens")


def test_it_is_written_and_read_again(case, run_of, tmp_path):
  path, images, seen = case
  to = str(tmp_path / "encoder")
  interop.convert(path, to, "mmjax", encoder=True)
  same(mmjax.features(*mmjax.load(to), {"image": images}, want=("image/tokens",)), seen, "image/tokens", "image/pooled")
  source, copied = read(path).encoder(), read(to)
  for theirs, ours in (source.params, copied.params), (source.state, copied.state):
    assert theirs.keys() == ours.keys()
    for name, x in theirs.items():
      np.testing.assert_array_equal(x, ours[name], err_msg=name)
  assert ("model/tokenizer/codes" in source.state) == ("mage" in path)
  same(features(*begin(run_of(CLASSIFIER, to)), images), seen, "image/tokens", "image/pooled")
  reason = "makes ids of pictures first" if "mage" in path else "objective.model.name = 'conv_encoder' has no counterpart"
  with pytest.raises(CheckpointError, match=reason):
    interop.convert(path, str(tmp_path / "hf"), encoder=True)


@pytest.mark.parametrize("model, message", [
    ({"tower": "tokenizer.encodr"}, r"^objective\.model\.tower: .* has no 'tokenizer.encodr'; it has tokenizer, "
                                    r"tokenizer\.decoder, tokenizer\.encoder$"),
    ({"tower": "encoder"}, r"^objective\.model\.tower: .* has no 'encoder'; it has tokenizer, "),
])
def test_a_wrong_path_is_one_line_that_names_the_key(workdirs, run_of, model, message):
  with pytest.raises(ConfigError, match=message):
    run_of({**CLASSIFIER, "model": {**CLASSIFIER["model"], **model}}, workdirs["vq"])


def test_a_tower_may_be_inside_another(workdirs, run_of):
  """As a frozen network and as what a classifier begins with; of MAGE too the tokenizer's encoder."""
  tower = {"name": "pretrained", "tower": "tokenizer.encoder"}
  run = run_of({**CLASSIFIER, "model": {**tower, "classes": 4}}, workdirs["vq"])
  taken, _ = pretrained.initial(workdirs["vq"], run.settings.init, run.abstract.params)
  kernel = read(workdirs["vq"]).params["tokenizer/encoder/in/kernel"]
  np.testing.assert_array_equal(taken["in/kernel"], kernel)
  resolved = frozen.resolve({"objective": {"target": {"teacher": {
      **tower, "from": workdirs["mage"], "tower": "encoder.tokenizer.encoder"}}}})
  node, sources = frozen.split(resolved["objective"])
  assert node["target"]["teacher"] == VQ["tokenizer"]["encoder"]
  shapes = {"target": {"teacher": {**run.abstract.params}}}
  del shapes["target"]["teacher"]["classifier"]
  tensors, _ = frozen.initial(sources, shapes)
  np.testing.assert_array_equal(tensors["target/teacher/in/kernel"], kernel)
