"""The encoder of a masked or self-distilled run, plain: loaded, fine-tuned, exported."""

import contextlib
import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

import mmjax
from mmjax import config as config_lib
from mmjax import interop, train
from mmjax.checkpoint.checkpointer import Checkpointer, CheckpointError
from mmjax.checkpoint.interop.read import read
from mmjax.parallel import mesh as mesh_lib
from mmjax.training import interpolate, pretrained
from mmjax.training.assemble import assemble

ENCODER = {"name": "vit", "patch": 8, "width": 32, "depth": 2, "heads": 2, "activation": "gelu"}
# How an encoder may stand in a masked run, and what of it is not in its result.
MAE = {"hide": "drop", "decoder": {"name": "masked_decoder", "width": 16, "depth": 1, "heads": 2},
       "encoder": {**ENCODER, "pool": "mean", "class_token": True, "position": "sincos"}}
SIMMIM = {"hide": "token", "encoder": {**ENCODER, "pool": "cls", "class_token": True,
                                       "mask_token": True, "position": "learned", "grid": [2, 2]}}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
  """An .npz of 32 grey pictures with the labels dark and bright."""
  path = tmp_path_factory.mktemp("data") / "pictures.npz"
  label = np.arange(32) % 2
  pixels = np.random.default_rng(0).integers(0, 40, (32, 20, 20)) + 160 * label[:, None, None]
  np.savez(path, image=pixels.astype(np.uint8), label=label)
  return str(path)


def config(pictures, objective, **changes):
  stream = {"source": {"name": "arrays", "path": pictures}, "transforms": [
      {"name": "Decode"}, {"name": "Resize", "size": 16}, {"name": "Normalise", "preset": "half"},
      {"name": "Keep", "keys": ["image", "label"]}]}
  return {"seed": 1, "batch_size": 16, "total_steps": 2, "objective": objective, "data": stream,
          "eval_data": {**stream, "shuffle": False}, "optim": {"lr": 1e-2}, **changes}


@pytest.fixture(scope="module", params=["mae", "simmim"])
def workdir(request, pictures, tmp_path_factory):
  """A run's, at its first step."""
  path = str(tmp_path_factory.mktemp("runs") / request.param)
  objective = {"name": "masked", "mask": {"name": "random", "ratio": 0.5},
               "target": {"name": "pixels"}, **{"mae": MAE, "simmim": SIMMIM}[request.param]}
  run = assemble(config(pictures, objective), devices=jax.devices()[:1])
  interpolate.save(run, run.create_state(), path)
  return path


@pytest.mark.slow
def test_it_is_loaded_and_written_for_transformers_with_the_same_tokens(workdir, tmp_path):
  torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
  images = [Image.fromarray(np.full((16, 16, 3), level, np.uint8)) for level in (10, 200)]
  batch = mmjax.processor(workdir)(images=images)
  features = mmjax.features(*mmjax.load(workdir), batch, want=("image/tokens",))
  with pytest.raises(CheckpointError, match="'masked' has no counterpart .* mmjax convert --encoder"):
    interop.convert(workdir, str(tmp_path / "whole"))
  told = interop.convert(workdir, str(tmp_path / "hf"), encoder=True)
  assert ("mean of last_hidden_state[:, 1:]" in told) == ("mae" in workdir)
  model = transformers.ViTForImageClassification.from_pretrained(tmp_path / "hf").eval()
  pixels = torch.from_numpy(np.array(batch["image"]).transpose(0, 3, 1, 2))
  with torch.no_grad():
    theirs = model.vit(pixels).last_hidden_state.numpy()
  np.testing.assert_allclose(theirs[:, 1:], features["image/tokens"], atol=2e-5)
  pooled = theirs[:, 1:].mean(1) if "mae" in workdir else theirs[:, 0]
  np.testing.assert_allclose(pooled, features["image/pooled"], atol=2e-5)


@pytest.mark.slow
def test_it_is_fine_tuned_without_what_stood_beside_it(workdir, pictures, tmp_path):
  objective = {"name": "classification", "model": {"name": "pretrained", "classes": 2}}
  settings = config(pictures, objective, init_from=workdir, total_steps=30,
                    evals={"classification": {}})
  run = assemble(settings)
  tensors, told = pretrained.initial(workdir, run.settings.init, run.abstract.params)
  assert told["fresh"] == ["classifier/bias", "classifier/kernel"]
  source = read(workdir)
  for name, x in tensors.items():
    np.testing.assert_array_equal(x, source.params[f"encoder/{name}"], err_msg=name)
  assert not any("mask_token" in name for name in tensors)
  assert train.train(settings, str(tmp_path / "run"))["classification/top1"] > 0.9


@pytest.mark.parametrize("teachers, eval_with, expected", [
    ({"encoder": {"x": 2.0}}, None, 2),
    ({"teacher": {"encoder": {"x": 3.0}, "head": {"x": 4.0}}}, None, 3),
    ({"teacher": {"encoder": {"x": 3.0}}}, "student", 1),
    ({"ema": {"encoder": {"x": 5.0}}}, None, 5),
    ({"ema": {"encoder": {"x": 5.0}}, "encoder": {"x": 2.0}}, None, 2),
])
def test_a_teacher_of_the_encoder_stands_for_it_as_in_evaluation(
    tmp_path, teachers, eval_with, expected):
  chosen = {"eval_with": eval_with} if eval_with else {}
  objective = {"name": "jepa", "encoder": {"name": "vit"}, **chosen}
  (tmp_path / "config.json").write_text(json.dumps({"objective": objective}))
  state = jax.tree.map(jnp.atleast_1d, {"params": {"encoder": {"x": 1.0}}, "teachers": teachers})
  with contextlib.closing(Checkpointer(str(tmp_path / "checkpoints"))) as checkpointer:
    checkpointer.save(0, state)
  model = read(str(tmp_path)).encoder()
  assert {name: x[0] for name, x in model.params.items()} == {"x": expected}


@pytest.mark.parametrize("objective, teacher", [
    ({"name": "jepa", "mask": {"name": "multi_block", "targets": 1, "target_scale": [0.3, 0.4]}, "momentum": {"start": 0.9},
      "predictor": {"name": "predictor", "width": 16, "depth": 1, "heads": 2}}, "encoder"),
    ({"name": "self_distillation", "losses": {"class": 1.0}, "prototypes": 8, "hidden": 16, "bottleneck": 8,
      "momentum": {"start": 0.9}, "teacher_temperature": {"start": 0.04}}, "teacher")])
def test_features_of_a_run_are_those_of_its_averaged_encoder(tmp_path, objective, teacher):
  node = {**objective, "encoder": {**ENCODER, "pool": "mean", "position": "sincos"}}
  image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  built = config_lib.build("mmjax.objectives", node, "objective")
  params, state = mesh_lib.unbox(jax.jit(built.init)(jax.random.key(0), {
      "image": image, "global_views": np.stack([image, image], 1)}))
  teachers = jax.tree.map(lambda x: 1.5 * x + 0.01, built.teachers(params))
  (tmp_path / "config.json").write_text(json.dumps({"objective": node}))
  with contextlib.closing(Checkpointer(str(tmp_path / "checkpoints"))) as checkpointer:
    checkpointer.save(0, {"params": params, "state": state, "teachers": teachers})
  found = mmjax.features(*mmjax.load(str(tmp_path)), {"image": image}, want=("image/tokens",))
  average = teachers["encoder"] if teacher == "encoder" else teachers["teacher"]["encoder"]
  pooled, _ = jax.jit(built.encoder.apply)({"params": average}, image)
  np.testing.assert_allclose(found["image/pooled"], pooled, rtol=1e-5, atol=1e-6)


def test_guide_of_hard_patches_does_not_stand_for_the_encoder(tmp_path):
  (tmp_path / "config.json").write_text(json.dumps({"objective": {"name": "masked", "encoder": {"name": "vit"}}}))
  state = jax.tree.map(jnp.atleast_1d, {"params": {"encoder": {"x": 1.0}}, "teachers": {
      "guide": {"encoder": {"x": 2.0}}}})
  with contextlib.closing(Checkpointer(str(tmp_path / "checkpoints"))) as checkpointer:
    checkpointer.save(0, state)
  assert read(str(tmp_path)).params["encoder/x"] == 1.0
