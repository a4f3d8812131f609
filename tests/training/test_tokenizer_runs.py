"""From pictures to a tokenizer, to a model of its ids, and back to pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax import train
from mmjax.config import ConfigError
from mmjax.data.sources import scenes
from mmjax.objectives.contract import Context
from mmjax.training.assemble import assemble

SCENES = 400


def with_count(node):
  """The config with SCENES scenes wherever it reads scenes."""
  if isinstance(node, dict):
    changed = {key: with_count(value) for key, value in node.items()}
    return {**changed, "count": SCENES} if node.get("name") == "scenes" else changed
  return [with_count(value) for value in node] if isinstance(node, list) else node


@pytest.fixture(scope="module")
def data(tmp_path_factory):
  folder = tmp_path_factory.mktemp("scenes")
  scenes.build(count=SCENES, data_dir=str(folder))
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("MMJAX_DATA_DIR", str(folder))
    yield


@pytest.fixture(scope="module")
def tokenizer(data, tmp_path_factory):
  """A workdir of masked/vq's smoke run, and its results."""
  path = str(tmp_path_factory.mktemp("vq") / "run")
  config = with_count(config_lib.load("masked/vq:smoke"))
  del config["evals"]["shape_linear_probe"]
  return path, train.train(config, path)


def mage(path, **changes):
  config = with_count(config_lib.load("masked/mage:smoke", {"total_steps": "5"}))
  source = {"name": "pretrained", "from": path, "tower": "tokenizer", **changes}
  config["objective"]["encoder"]["tokenizer"] = source
  return {**config, "evals": {}}


@pytest.mark.slow
def test_reconstruction_beats_the_mean_colour_and_most_codes_are_used(tokenizer):
  path, results = tokenizer
  stream = assemble(with_count(config_lib.load("masked/vq:smoke"))).eval_stream
  images = np.stack([stream.record(i)["image"] for i in range(len(stream))])
  trivial = np.abs(images - images.mean(axis=(1, 2), keepdims=True)).mean()  # its own mean colour
  assert results["loss/l1"] < 0.6 * trivial
  assert results["reconstruction/psnr"] > results["reconstruction/psnr/mean"] + 3
  assert results["codebook/used"] > 0.5
  assert results["codebook/perplexity"] > 8


@pytest.mark.slow
def test_mage_learns_from_a_trained_tokenizer_that_stays_as_it_is_and_generates(
    tokenizer, tmp_path):
  path, _ = tokenizer
  _, source = train._open(path, None, None)
  workdir = str(tmp_path / "mage")
  train.train(mage(path), workdir)
  run, state = train._open(workdir, None, None)
  frozen = state.state["encoder"]["tokenizer"]
  np.testing.assert_array_equal(frozen["codes"], source.state["tokenizer"]["codes"])
  jax.tree.map(np.testing.assert_array_equal, frozen["encoder"],
               source.params["tokenizer"]["encoder"])
  batch = {"image": jnp.stack([run.eval_stream.record(i)["image"] for i in range(2)])}
  batch["row"] = jnp.array([[0, 0], [0, 1]], jnp.uint32)
  ctx = Context(step=0, state=state.state, teachers={}, train=False,
                want=("image/ids", "image/generated"))
  features = jax.jit(lambda batch: run.objective.forward(ctx, state.params, batch)[0])(batch)
  ids, pictures = features["image/ids"], features["image/generated"]
  grid = run.objective.tokenizer.grid_of(batch["image"].shape)
  assert ids.shape == (2, grid[0] * grid[1]) and len(np.unique(ids)) > 4
  assert pictures.shape == (2, 32, 32, 3) and np.isfinite(pictures).all()
  assert np.abs(pictures).max() < 3  # about the range of Normalise, [-1, 1]


@pytest.mark.slow
def test_a_tokenizer_of_another_vocabulary_or_grid_is_named(tokenizer, tmp_path):
  path, _ = tokenizer
  wrong = r"objective.encoder.tokenizer.from: .* encoder/tokenizer/codes have \[64, 8\], want \[100, 8\]"
  with pytest.raises(ConfigError, match=wrong):
    train.train(mage(path, codes=100), str(tmp_path / "a"))
  config = with_count(config_lib.load("masked/beit_v2:smoke"))
  config["objective"]["target"]["tokenizer"] = {
      "name": "pretrained", "from": path, "tower": "tokenizer"}
  config["objective"]["encoder"]["patch"] = 8
  with pytest.raises(ConfigError, match="target.tokenizer: makes 8x8 tokens .* encoder 4x4"):
    assemble(config)
  config["objective"]["target"]["tokenizer"]["tower"] = "image"
  with pytest.raises(ConfigError, match="tokenizer"):
    assemble(config)
