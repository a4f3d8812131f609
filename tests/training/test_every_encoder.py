"""The encoder of every masked and self-distilled recipe goes where encoders go."""

import json
import re

import jax
import numpy as np
from PIL import Image
import pytest

import mmjax
from mmjax import cli, interop
from mmjax import config as config_lib
from mmjax.checkpoint import paths
from mmjax.checkpoint.interop import workdir
from mmjax.checkpoint.interop.pretrained import Pretrained
from mmjax.checkpoint.interop.read import read
from mmjax.parallel import mesh as mesh_lib
from mmjax.training import frozen, interpolate, pretrained, streams
from mmjax.training.assemble import assemble
from tests.conftest import needs

RECIPES = [name for name in config_lib.shipped() if name.startswith(("masked/", "selfdistill/"))]
NO_VIT = ("masked/spark", "masked/vq")
TEXT = {"name": "text", "vocab": 259, "length": 8, "width": 16, "depth": 1, "heads": 2, "out_dim": 24}
ROWS = 8
LEVEL = 1 / 255 / 0.224  # of 8 bits, in normalised pixels: the least standard deviation of the presets in use


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


def test_it_is_fine_tuned_put_in_a_dual_encoder_and_built_alone(source):
  """Shapes only."""
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


WITHOUT_FORM = {  # what keeps an encoder from being written for transformers; of the last three in one line
    "masked/eva02": "position = 'rotary'",
    "masked/fourm": "mlp_bias = False",
    "masked/mae_st": r"\A.*patch = \[2, 8, 8\], of clips, but only models of pictures are written.*\Z",
    "masked/mage": r"\A.*objective.model.tokenizer: makes ids of pictures first.*\Z",
    "masked/vq": r"\A.*objective.model.name = 'conv_encoder' has no counterpart in transformers.*\Z",
}


@pytest.fixture(scope="module", params=RECIPES)
def workdir_of(request, tmp_path_factory):
  """The recipe's name, and the workdir of a run of it, of random weights."""
  run = assemble(config_lib.load(f"{request.param}:smoke"), devices=jax.devices()[:1], example_data=True)
  rng = np.random.default_rng(0)
  flat = {path: jax.numpy.asarray(rng.normal(size=x.shape, scale=0.1).astype(x.dtype))
          for path, x in paths.flatten(run.abstract).items()}
  flat |= {path: jax.numpy.zeros_like(flat[path]) for path in ("step", "halted")}
  path = str(tmp_path_factory.mktemp("runs") / "run")
  interpolate.save(run, paths.unflatten(flat, like=run.abstract), path)
  return request.param, path


def convert(path, to, form):
  return cli.main(["convert", f"--from={path}", f"--to={to}", f"--format={form}", "--encoder"])


def test_it_is_written_as_it_is(workdir_of, tmp_path):
  _, path = workdir_of
  assert convert(path, tmp_path / "encoder", "mmjax") == 0
  source, copy = read(path).encoder(), read(str(tmp_path / "encoder"))
  for theirs, ours in (source.params, copy.params), (source.state, copy.state):
    assert theirs.keys() == ours.keys()
    for name, x in theirs.items():
      np.testing.assert_array_equal(x, ours[name], err_msg=name)
  assert all(np.any(x) for x in copy.params.values())
  assert copy.image == source.image and copy.image[-1]["name"] == "Normalise"


def test_it_is_written_for_transformers_or_says_why_not(workdir_of, tmp_path, capsys):
  name, path = workdir_of
  to = tmp_path / "encoder"
  status = convert(path, to, "hf")
  if name in WITHOUT_FORM:
    told = capsys.readouterr().err.strip()
    assert status == 1 and not to.exists()
    assert told.startswith("mmjax convert: ") and told.count("mmjax convert --format=mmjax") == 1
    assert re.search(WITHOUT_FORM[name], told), told
    return
  assert status == 0
  torch, transformers = needs("torch"), needs("transformers")
  picture = Image.fromarray(np.random.default_rng(1).integers(0, 255, (70, 90, 3), np.uint8))
  image = mmjax.processor(path)(images=[picture])["image"]
  objective, params = interop.build(read(path).encoder())
  ours = mmjax.features(objective, params, {"image": image}, want=("image/tokens",))["image/tokens"]
  model = getattr(transformers, json.loads((to / "config.json").read_text())["architectures"][0]).from_pretrained(to)
  given = transformers.AutoImageProcessor.from_pretrained(to)(picture, return_tensors="pt")["pixel_values"]
  # Ours resizes to within a level of Pillow.
  np.testing.assert_allclose(given.permute(0, 2, 3, 1), image, rtol=0, atol=1.001 * LEVEL)
  with torch.no_grad():
    theirs = getattr(model, model.base_model_prefix, model).eval()(
        pixel_values=torch.tensor(np.asarray(image)).permute(0, 3, 1, 2)).last_hidden_state
  theirs = theirs.flatten(2).transpose(1, 2) if theirs.ndim == 4 else theirs  # of a CNN, [B, D, H, W]
  theirs = theirs[:, -ours.shape[1]:].numpy()  # the class token and registers stand before
  np.testing.assert_allclose(theirs, ours, rtol=0, atol=2e-5 * np.abs(theirs).max())


def test_the_whole_picture_stands_for_its_views():
  nodes = [{"name": "Decode"}, {"name": "MultiCrop", "global_size": (32, 48), "filter": "lanczos"},
           {"name": "Normalise", "preset": "clip", "key": "local_views"},
           {"name": "Normalise", "preset": "half", "key": ["local_views", "global_views"]},
           {"name": "Keep", "keys": ["global_views"]}]
  image, _ = workdir.transforms({"data": {"transforms": nodes}})
  assert image == ({"name": "Decode"}, {"name": "Resize", "size": (32, 48), "filter": "lanczos"},
                   {"name": "Normalise", "preset": "half"})
