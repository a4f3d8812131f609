"""Fine-tuning: what "pretrained" stands for, how a run begins, going on without the source."""

import json
import shutil

import jax
import numpy as np
from PIL import Image
import pytest

import mmjax
from mmjax import train
from mmjax.checkpoint import paths
from mmjax.checkpoint.checkpointer import CheckpointError
from mmjax.checkpoint.interop.pretrained import Pretrained
from mmjax.config import ConfigError
from mmjax.training import pretrained
from mmjax.training.assemble import assemble
from tests.training import tiny

VIT = {"name": "vit", "patch": 8, "grid": [2, 2], "width": 32, "depth": 2, "heads": 2}
IMAGE = ({"name": "Decode"}, {"name": "ResizeShort", "size": 20, "filter": "bicubic"},
         {"name": "CentreCrop", "size": 16}, {"name": "Normalise", "preset": "clip"})
TEXT = ({"name": "Tokenise", "tokenizer": "bytes", "length": 8},)
NAFLEX = ({"name": "Decode"}, {"name": "Patchify", "patch": 8, "max_patches": 4})


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A dual encoder with random weights, of which the image tower has a projection."""
  pairs = tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz")
  run = assemble(tiny.config(pairs))
  params = jax.device_get(paths.flatten(run.create_state().params))
  return Pretrained(run.config["objective"], params, IMAGE, TEXT)


@pytest.fixture
def at_path(source, monkeypatch):
  """Makes `read` know one path: it gives `source`, with the changes that the test asks for."""
  def put(**changes):
    found = Pretrained(**{**vars(source), **changes})
    def read(path):
      if path != "the/source":
        raise FileNotFoundError(f"nothing is at {path}")
      return found
    monkeypatch.setattr(pretrained, "read", read)
    return found
  put()
  return put


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """Three class folders of eight grey pictures of 24 x 20 pixels, each of its own brightness."""
  root, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
  for level, name in enumerate(("bright", "dark", "grey")):
    (root / name).mkdir()
    for i in range(8):
      pixels = rng.integers(0, 40, (20, 24)) + 80 * level
      Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{i}.png")
  return str(root)


def config(folder, model=None, image=None, **changes):
  """Fine-tuning of a classifier; `model` and `image` are keys of the "pretrained" nodes."""
  stream = {"source": {"name": "folder", "path": folder},
            "transforms": [{"name": "pretrained_image", **(image or {})}]}
  return {
      "seed": 1, "batch_size": 8, "total_steps": 4, "init_from": "the/source",
      "objective": {"name": "classification",
                    "model": {"name": "pretrained", "classes": "data.classes", **(model or {})}},
      "data": stream, "eval_data": {**stream, "shuffle": False}, "evals": {"classification": {}},
      "optim": {"lr": 1e-2, "ema_decay": 0.5}, **changes}


def start(settings):
  """The state with which a run of these settings begins, as {name: array}."""
  run = assemble(settings)
  tensors, _ = pretrained.initial(settings["init_from"], run.settings.init, run.abstract.params)
  return paths.flatten(run.create_state(tensors)), run


def test_a_classifier_stands_on_the_encoders_pooled_features(at_path, pictures):
  resolved = pretrained.resolve(config(pictures, {"drop_path": 0.1}))
  assert resolved["objective"]["model"] == {**VIT, "classes": "data.classes", "drop_path": 0.1}
  assert resolved["init"]["take"] == "image"
  assert resolved["init"]["exclude"] == ["projection/.*", "classifier/.*"]
  assert resolved["data"]["transforms"] == list(IMAGE)
  assert pretrained.resolve(resolved) == resolved


def test_a_classifiers_old_head_is_not_taken(at_path, pictures):
  at_path(objective={"name": "classification", "model": {**VIT, "classes": 7}})
  resolved = pretrained.resolve(config(pictures))
  assert (resolved["init"]["take"], resolved["init"]["exclude"]) == ("", ["classifier/.*"])


def test_the_config_says_all_that_differs_from_the_defaults(at_path, pictures):
  given = {"take": "text", "resample": "corners"}
  resolved = pretrained.resolve(config(pictures, {"tower": "text", "width": 48}, init=given))
  assert resolved["objective"]["model"]["name"] == "text"
  assert resolved["objective"]["model"]["width"] == 48
  assert resolved["init"]["resample"] == "corners"


def test_another_size_changes_positions_and_pictures(at_path, pictures):
  resolved = pretrained.resolve(config(pictures, init={"size": 32}))
  assert resolved["objective"]["model"]["grid"] == [4, 4]
  assert [node.get("size") for node in resolved["data"]["transforms"]] == [None, 40, 32, None]
  state, run = start(config(pictures, init={"size": 32}))
  assert run.abstract_batch["image"].shape == (8, 32, 32, 3)
  assert state["params/position"].shape == (4, 4, 32)


def test_augmentation_replaces_the_resizing_and_nothing_else(at_path, pictures):
  image = {"augment": True, "scale": [0.4, 1.0]}
  nodes = pretrained.resolve(config(pictures, image=image))["data"]["transforms"]
  assert [node["name"] for node in nodes] == ["Decode", "RandomResizedCrop", "Flip", "Normalise"]
  assert nodes[1] == {"name": "RandomResizedCrop", "size": 16, "scale": [0.4, 1.0],
                      "filter": "bicubic"}


def test_pictures_as_patches_keep_their_aspect_and_their_masks(at_path, pictures):
  at_path(image=NAFLEX)
  settings = config(pictures, image={"augment": True, "flip": 0.5})
  settings["data"]["transforms"].append({"name": "Keep", "keys": ["image", "label"]})
  nodes = pretrained.resolve(settings)["data"]["transforms"]
  assert [node["name"] for node in nodes] == ["Decode", "Flip", "Patchify", "Keep"]
  assert nodes[-1]["keys"] == ["image", "label", "image_mask", "image_grid"]
  assert {"image_mask", "image_grid"} <= set(start(settings)[1].abstract_batch)
  with pytest.raises(ConfigError, match="init.size: .* takes pictures of any size"):
    pretrained.resolve(config(pictures, init={"size": 32}))


def test_the_whole_objective_is_taken_with_texts_and_overrides(at_path, source, pictures):
  data = {"source": {"name": "arrays", "path": "no matter"},
          "transforms": [{"name": "pretrained_image"}, {"name": "pretrained_text"}]}
  objective = {"name": "pretrained", "image": {"drop_path": 0.2}}
  resolved = pretrained.resolve(config(pictures, objective=objective, data=data, eval_data=None))
  assert resolved["objective"]["image"] == {**source.objective["image"], "drop_path": 0.2}
  assert resolved["objective"]["losses"] == source.objective["losses"]
  assert resolved["data"]["transforms"] == [*IMAGE, *TEXT]
  assert set(resolved["init"]) == {"found"}


def test_a_tower_of_a_dual_encoder_begins_as_an_encoder_with_a_new_projection(
    at_path, source, pictures):
  """As do encoders of masked runs: without mask token, decoder and what else stood beside them."""
  encoder = {**VIT, "pool": "mean", "mask_token": True}
  params = {f"encoder/{name.removeprefix('image/')}": x for name, x in source.params.items()
            if name.startswith("image/") and not name.startswith("image/p")}
  extra = {"encoder/mask_token": np.zeros(32), "head/kernel": np.zeros((32, 5))}
  like = {name: source.params[f"image/{name}"] for name in
          ("position", "patch_embed/kernel", "patch_embed/bias")}
  at_path(objective={"name": "masked", "encoder": encoder},
          params={**params, **extra, **{f"encoder/{name}": x for name, x in like.items()}})
  objective = {**source.objective, "image": {"name": "pretrained", "out_dim": 16}}
  data = {"source": {"name": "arrays", "path": "no matter"}, "transforms": []}
  resolved = pretrained.resolve(config(pictures, objective=objective, data=data, eval_data=None))
  assert resolved["objective"]["image"] == {**VIT, "pool": "mean", "out_dim": 16}
  want = paths.flatten({"image": like | {"projection": {"kernel": np.zeros((32, 16), np.float32)}},
                        "text": {"embedding": np.zeros(3)}, "logit_bias": np.zeros(())})
  want |= {name: x for name, x in source.params.items() if name.startswith(("image/trunk", "image/f"))}
  taken = pretrained.fitted(pretrained.read_source("the/source"), resolved["init"], want)
  assert set(want) - set(taken) == {"image/projection/kernel", "logit_bias", "text/embedding"}
  np.testing.assert_array_equal(taken["image/position"], like["position"])


def test_parameters_average_and_optimizer_begin_with_the_source(at_path, source, pictures):
  """An average that begins at the random initialisation would be evaluated for the whole run."""
  state, _ = start(config(pictures))
  taken = [name for name in source.params if name.startswith("image/") and "projection" not in name]
  assert len(taken) > 10
  for name in taken:
    for part in "params", "teachers/ema":
      ours = state[f"{part}/{name.removeprefix('image/')}"]
      np.testing.assert_array_equal(ours, source.params[name], err_msg=f"{part}: {name}")
  assert state["params/classifier/kernel"].shape == (32, 3)
  np.testing.assert_array_equal(state["params/classifier/kernel"], 0)


def test_parameters_lie_where_the_mesh_wants_them(at_path, pictures):
  state, run = start(config(pictures, mesh={"data": 2, "fsdp": 4}))
  for name, sharding in paths.flatten(run.shardings).items():
    assert state[name].sharding == sharding, name
  assert any("fsdp" in str(leaf.sharding.spec) for leaf in state.values())


@pytest.fixture(scope="module")
def tuned(source, pictures, tmp_path_factory):
  """A workdir after 10 steps of fine-tuning, and what its evaluator said."""
  workdir = tmp_path_factory.mktemp("tuned")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(pretrained, "read", lambda path: source)
    return workdir, train.train(config(pictures, total_steps=10), str(workdir))


def test_a_run_learns_and_tells_where_it_began(tuned):
  workdir, results = tuned
  assert results["classification/top1"] > results["classification/top1/chance"]
  told = json.loads((workdir / "provenance.json").read_text())[0]["init_from"]
  assert told["path"] == "the/source" and len(told["params"]) == 64
  assert told["fresh"] == ["classifier/bias", "classifier/kernel"]
  explicit = json.loads((workdir / "config.json").read_text())
  assert explicit["objective"]["model"] == {**VIT, "classes": 3}
  assert explicit["labels"] == ["bright", "dark", "grey"]


def test_a_run_goes_on_when_the_source_is_gone(tuned, pictures, tmp_path, monkeypatch):
  def gone(path):
    raise FileNotFoundError("the source is gone")

  monkeypatch.setattr(pretrained, "read", gone)
  workdir, settings = tmp_path / "run", config(pictures, total_steps=12)
  shutil.copytree(tuned[0], workdir)
  results = train.train(settings, str(workdir))
  assert mmjax.digest(str(workdir))["step"] == 12 and results["classification/records"] == 24
  with pytest.raises(ConfigError, match="init_from: the source is gone"):
    train.train(settings, str(tmp_path / "another"))


def test_weights_between_source_and_run_are_evaluated_and_kept(at_path, tuned, tmp_path):
  workdir, of_run = str(tuned[0]), tuned[1]
  results = train.eval_between(workdir, "the/source", (0.0, 0.5, 1.0))
  assert results[1.0] == of_run
  losses = [results[alpha]["classification/cross_entropy"] for alpha in (0.0, 0.5, 1.0)]
  assert len(set(losses)) == 3
  half = str(tmp_path / "half")
  assert train.eval_between(workdir, "the/source", (0.5,), save=half)[0.5] == results[0.5]
  assert train.eval_workdir(half) == results[0.5]
  with pytest.raises(ConfigError, match="takes the weights of one alpha, not of 2"):
    train.eval_between(workdir, "the/source", (0.0, 0.5), save=half)
  with pytest.raises(FileExistsError, match="is not empty; give a new folder"):
    train.eval_between(workdir, "the/source", (0.5,), save=half)


def test_what_does_not_fit_is_told_with_the_source_and_a_table(at_path, pictures):
  with pytest.raises(CheckpointError) as error:
    start(config(pictures, {"mlp_dim": 48}))
  message = str(error.value)
  assert message.startswith("init_from=the/source: ") and "init.rename" in message
  assert "! trunk/layers/mlp/up/kernel" in message


@pytest.mark.parametrize("changes, message", [
    ({"init_from": None}, "init_from: is missing"),
    ({"init_from": "elsewhere"}, "init_from: nothing is at elsewhere"),
    ({"init": {"tkae": "image"}}, "init.tkae: unknown key; did you mean 'take'"),
    ({"init": {"resample": "bicubc"}}, "init: resample: no 'bicubc'; did you mean 'bicubic'"),
    ({"init": {"exclude": ["("]}}, "init: '\\(' is no regular expression"),
    ({"init": {"rename": ["a"]}}, "init: rename: expected pairs"),
    ({"model": {"tower": "audio"}}, "objective.model.tower: .* has no 'audio'; it has image, text"),
    ({"image": {"augmnt": True}}, "data.transforms.0.augmnt: unknown key; did you mean 'augment'"),
    ({"objective": {"name": "contrastive", "text": {"name": "pretrained"}}},
     "objective: \"pretrained\" can only be the name of objective itself or of one of objective.image"),
])
def test_what_is_wrong_is_one_line_with_its_path(changes, message, at_path, pictures):
  with pytest.raises(ConfigError, match=message):
    pretrained.resolve(config(pictures, **changes))


def test_source_without_preprocessing_is_refused(at_path, pictures):
  at_path(image=())
  with pytest.raises(ConfigError, match="data.transforms.0: the/source does not say how it"):
    pretrained.resolve(config(pictures))


def test_labels_mean_the_same_classes_in_training_and_evaluation(at_path, pictures, tmp_path):
  for name in "bright", "grey":
    (tmp_path / name).mkdir()
    Image.new("L", (20, 20)).save(tmp_path / name / "0.png")
  settings = config(pictures)
  settings["eval_data"] = {**settings["data"], "source": {"name": "folder", "path": str(tmp_path)}}
  with pytest.raises(ConfigError, match="eval_data: its classes are bright, grey, those of data "
                     "are bright, dark, grey"):
    assemble(settings)


def test_number_of_classes_that_nobody_knows_is_asked_for(at_path, pictures, tmp_path):
  np.savez(tmp_path / "data.npz", image=np.zeros((8, 20, 20, 3), np.uint8), label=np.zeros(8))
  source = {"name": "arrays", "path": str(tmp_path / "data.npz")}
  data = {**config(pictures)["data"], "source": source}
  with pytest.raises(ConfigError, match="objective.model.classes: the data do not say how many"):
    assemble(config(pictures, data=data, eval_data=data))
