"""The encoder of every masked and self-distilled recipe goes where encoders go; shapes only."""

import functools

import jax
import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax import interop
from mmjax.checkpoint import paths
from mmjax.checkpoint.interop import workdir
from mmjax.checkpoint.interop.pretrained import Pretrained
from mmjax.parallel import mesh as mesh_lib
from mmjax.training import frozen, pretrained, streams
from mmjax.training.assemble import assemble

RECIPES = [name for name in config_lib.shipped() if name.startswith(("masked/", "selfdistill/"))]
NO_VIT = ("masked/spark", "masked/vq")
TEXT = {"name": "text", "vocab": 259, "length": 8, "width": 16, "depth": 1, "heads": 2, "out_dim": 24}
ROWS = 8


def shapes(objective, batch):
  """Those of the objective's parameters and state, {path: shape}."""
  made = jax.eval_shape(objective.init, jax.random.key(0), batch)
  return [{name: x.shape for name, x in paths.flatten(mesh_lib.unbox(part)).items()} for part in made]


@pytest.fixture(params=RECIPES)
def source(request, monkeypatch):
  """What a run of the recipe leaves; its name, and a stream of what its encoder takes, with labels."""
  config = config_lib.load(f"{request.param}:smoke")
  node = config_lib.resolve_durations(config["objective"], sizes=None, epoch=None, total=100)
  objective = config_lib.build("mmjax.objectives", frozen.split(node)[0], "objective")
  stream, _ = streams.make_stream(config["data"], "data", True)
  params, _ = shapes(objective, streams.abstract_batch(stream, ROWS))
  found = Pretrained(node, {name: np.zeros(shape, np.float32) for name, shape in params.items()},
                     *workdir.transforms(config), origin="the/source")
  monkeypatch.setattr(pretrained, "read", lambda path: found)
  probe = next(node for node in config["evals"].values() if "train" in node)
  rename = {"name": "Rename", "names": {"video": "image"}} if "video" in probe.get("feature", "") else None
  data = {**probe["train"], "transforms": [*probe["train"]["transforms"], *filter(None, [rename])]}
  return request.param, found, data, probe["label"]


def test_it_is_fine_tuned_put_in_a_dual_encoder_and_written(source):
  name, found, data, label = source
  inside = {key.removeprefix(f"{found.key().replace('.', '/')}/") for key in found.params}

  config = config_lib.load(f"finetune/classify:{'cnn' if name in NO_VIT else 'full'}")
  config["objective"] |= {"label": label}
  config["objective"]["model"]["classes"] = 6
  run = assemble({**config, "init_from": "the/source", "data": data, "eval_data": data, "batch_size": ROWS},
                 devices=jax.devices()[:1], example_data=True)
  tensors = pretrained.fitted(found, run.settings.init, paths.flatten(run.abstract.params))
  heads = {"classifier/kernel", "classifier/bias"}
  assert tensors.keys() == paths.flatten(run.abstract.params).keys() - heads
  assert tensors.keys() <= inside and len(tensors) > 8

  node = {"name": "contrastive", "losses": {"softmax": 1.0}, "text": TEXT,
          "image": {"name": "pretrained", "out_dim": 24}}
  resolved = pretrained.resolve({"objective": node, "init_from": "the/source"})
  dual = config_lib.build("mmjax.objectives", resolved["objective"], "objective")
  batch = {**run.abstract_batch, "text": jax.ShapeDtypeStruct((ROWS, 8), np.int32)}
  params, _ = shapes(dual, batch)
  want = {key: np.zeros(shape, np.float32) for key, shape in params.items()}
  taken = pretrained.fitted(found, resolved["init"], want)
  assert {key.removeprefix("image/") for key in taken} == tensors.keys()

  encoder = found.encoder()
  params, _ = shapes(interop.build(encoder)[0], run.abstract_batch)
  assert params == {key: x.shape for key, x in encoder.params.items()}
