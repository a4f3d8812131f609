"""Every shipped recipe, in every variant: it assembles, its model gives its features, it trains."""

import functools
import importlib
import io
import pathlib
import re

import jax
import numpy as np
from PIL import Image
import pytest

from configs import common
from mmjax import config as config_lib
from mmjax import train
from mmjax.checkpoint.interop.pretrained import Pretrained
from mmjax.config import ConfigError
from mmjax.data.scenes import attributes
from mmjax.data.sources import scenes
from mmjax.training import pretrained
from mmjax.training.assemble import assemble
from mmjax.training.step import make_features

RECIPES = config_lib.shipped()


def docstring(name):
  return importlib.import_module("configs." + name.replace("/", ".")).__doc__


def variants(name):
  """The names after "Variants:", without what stands in brackets."""
  listed = re.search(r"Variants: (.*?)\.\n", docstring(name), re.DOTALL).group(1)
  return [word.strip() for word in re.sub(r"\(.*?\)", "", listed, flags=re.DOTALL).split(",")]


class FakeScenes:
  """Records of the kinds that `scenes` gives, at no cost."""

  name, digest = "fake", "0"

  def __init__(self, captions, keys, frames):
    self.captions, self.keys, self.frames = captions, keys, frames

  def class_names(self, key):
    return attributes.SHAPES if key == "shape" else None

  def __len__(self):
    return 4000  # about as many as the built-in train split has of one object

  def __getitem__(self, i):
    grey = lambda kind, *channels: np.full((64, 64, *channels), i % 256, kind)
    record = {"id": str(i), "image": _file(grey(np.uint8, 3), "JPEG"), "num_objects": 1,
              "caption": [f"a {kind} of a red cube" for kind in self.captions],
              "colour": i % 8, "shape": i % 6, "colour_shape": i % 48}
    maps = {"depth": grey(np.uint16), "normals": grey(np.uint8, 3), "semantic": grey(np.uint8) % 8}
    record |= {key: _file(x, "PNG") for key, x in maps.items()}
    record |= {"video": self.frames * [record["image"]], "moves": i % 2, "direction": i % 4,
               "motion": i % 8}
    return {key: record[key] for key in self.keys}


def _file(pixels, kind):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, kind)
  return file.getvalue()


@pytest.fixture
def fake_scenes(monkeypatch):
  @functools.wraps(scenes.build)  # so that a config's keys are checked against the real signature
  def build(captions=attributes.COMPLETE_CAPTIONS, keys=None, frames=1, **rest):
    own = scenes.KEYS if frames == 1 else scenes.CLIP_KEYS
    return FakeScenes(captions, keys or own, frames)

  monkeypatch.setattr(scenes, "build", build)


@pytest.fixture
def fake_checkpoint(monkeypatch, tmp_path):
  """Gives a config that fine-tunes what its user gives: a checkpoint and data, of 128 records."""
  tower = dict(width=32, depth=2, heads=2, out_dim=32)
  source = Pretrained(
      objective={"name": "contrastive", "losses": {"softmax": 1.0},
                 "image": {"name": "vit", "patch": 8, "grid": [2, 2], **tower},
                 "text": {"name": "text", "vocab": 259, "length": 16, **tower}},
      params={}, image=({"name": "Decode"}, {"name": "Resize", "size": 16},
                        {"name": "Normalise", "preset": "half"}),
      text=({"name": "Tokenise", "tokenizer": "bytes", "length": 16},))
  monkeypatch.setattr(pretrained, "read", lambda path: source)
  np.savez(tmp_path / "data.npz", image=np.zeros((128, 20, 20), np.uint8),
           label=np.arange(128) % 5, caption=np.array(["a picture"] * 128))

  def give(config):
    data = {"name": "arrays", "path": str(tmp_path / "data.npz")}
    return {**config, "init_from": "the/source", "data": {**config["data"], "source": data},
            "eval_data": {**config["eval_data"], "source": data}}
  return give


def test_the_recipes_are_there():
  assert {"contrastive/clip", "contrastive/siglip", "supervised/vit", "finetune/classify",
          "finetune/retrieve"} <= set(RECIPES)


@pytest.mark.parametrize(
    "name, variant", [(name, variant) for name in RECIPES for variant in variants(name)])
def test_variant_assembles_and_its_model_gives_its_features(
    name, variant, fake_scenes, fake_checkpoint):
  config = config_lib.load(f"{name}:{variant}")
  starts_fresh = variant == "smoke" or not name.startswith("finetune/")
  run = assemble(config if starts_fresh else fake_checkpoint(config))
  batch_size = run.settings.batch_size
  with run.use():
    features = jax.eval_shape(
        make_features(run.objective, seed=0), run.abstract.params, run.abstract.state,
        run.abstract.teachers, run.abstract_batch)
  kind = run.settings.objective.get("input", "image")
  if run.settings.objective["name"] == "classification":
    assert features["logits"].shape == (batch_size, run.objective.model.classes)
  elif run.settings.objective["name"] == "contrastive":
    image, text = features["image/embed"], features["text/embed"]
    assert image.shape == text.shape == (batch_size, run.objective.text.out_dim)
    assert features["logit_scale"].shape == ()
  else:  # pretraining on pictures or videos alone
    assert features[f"{kind}/embed"].shape[0] == batch_size
  assert {x.dtype for x in features.values()} == {np.dtype("float32")}
  assert {x.dtype for x in jax.tree.leaves(run.abstract.params)} == {np.dtype("float32")}
  for evaluation in run.evaluations:
    stream = evaluation.evaluator.data or run.eval_stream
    label = getattr(evaluation.evaluator, "label", kind)
    assert {label, kind} <= set(stream.spec), evaluation.name


@pytest.mark.parametrize("name", RECIPES)
def test_unknown_variant_is_an_error_that_names_those_of_the_docstring(name):
  with pytest.raises(ConfigError) as error:
    config_lib.load(f"{name}:smokee")
  listed = ", ".join(variants(name))
  assert f"unknown variant 'smokee'; did you mean 'smoke'? (valid: {listed})" in str(error.value)
  assert "smoke" in variants(name)


@pytest.mark.parametrize("name", RECIPES)
def test_docstring_holds_paper_command_figure_and_differences(name):
  text = docstring(name)
  assert re.search(r"arXiv:\d{4}\.\d{5}", text)
  assert re.search(r"\nPublished: .*\d", text) and re.search(r"\nDiffers here: \S", text)
  commands = re.findall(r"mmjax train --config=(\S+) --workdir=\S+((?: --config\.\S+)*)", text)
  assert (f"{name}:smoke", "") in commands
  for spec, overrides in commands:
    pairs = (flag.removeprefix("--config.").split("=", 1) for flag in overrides.split())
    config_lib.load(spec, dict(pairs))


def test_labels_are_those_of_the_dataset():
  assert common.COLOURS == attributes.COLOURS
  assert common.SHAPES == attributes.SHAPES


@pytest.fixture(scope="module")
def small_scenes(tmp_path_factory):
  """A folder with 200 scenes, and 20 in each of the other splits."""
  folder = tmp_path_factory.mktemp("scenes")
  scenes.build(count=200, data_dir=str(folder))
  return str(folder)


def _with_count(node, count):
  """The config with `count` scenes wherever it reads scenes."""
  if isinstance(node, dict):
    changed = {key: _with_count(value, count) for key, value in node.items()}
    return {**changed, "count": count} if node.get("name") == "scenes" else changed
  return [_with_count(value, count) for value in node] if isinstance(node, list) else node


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_smoke_variant_trains_and_evaluates(name, small_scenes, tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", small_scenes)
  config = _with_count(config_lib.load(f"{name}:smoke", {"total_steps": "3"}), 200)
  results = train.train(config, str(tmp_path))
  for evaluator in config["evals"]:
    values = [value for metric, value in results.items() if metric.startswith(f"{evaluator}/")]
    assert values and np.isfinite(values).all(), evaluator
  assert [path.name for path in pathlib.Path(tmp_path, "checkpoints").glob("[0-9]*")] == ["3"]
