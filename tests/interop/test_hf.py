"""Hugging Face folders in and out against transformers, from the same JPEG bytes and the same strings.

Every model is made here with random weights, all of them (biases, norms and tokens too, so that a
missing one shows). Bar: 2e-5 of the reference's largest entry, float32 on a CPU.
"""

import io
import json
import shutil

from etils import epath
import numpy as np
from PIL import Image
import pytest

import mmjax
from mmjax import cli
from mmjax import interop
from mmjax.checkpoint.checkpointer import Checkpointer, CheckpointError
from mmjax.checkpoint.interop import workdir
from mmjax.checkpoint.interop.pretrained import Pretrained
from mmjax.checkpoint.interop.read import read
from tests.conftest import needs
from tests.interop import folders

torch = needs("torch")
transformers = needs("transformers")

SIZE = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4)
VISION = dict(SIZE, intermediate_size=48, image_size=32, patch_size=8)
DINO = dict(SIZE, image_size=48, patch_size=8, mlp_ratio=2)  # positions of 6x6 patches, seen at 4x4
TEXT = dict(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, intermediate_size=40,
            max_position_embeddings=12)
STRINGS = ["a red cube", "There is a GREEN sphere, left of the cone!", "cone"]
PICTURES = [folders.encode(folders.picture(*size, seed=i), quality=90)
            for i, size in enumerate([(50, 70), (64, 40), (33, 90)])]
SQUARE = dict(size=dict(height=32, width=32))


def _clip(eos=None, act="quick_gelu", size=32):
  tokenizer = folders.clip_tokenizer(model_max_length=12)
  words = dict(TEXT, vocab_size=len(tokenizer), hidden_act=act, eos_token_id=eos or tokenizer.eos_token_id)
  config = transformers.CLIPConfig(vision_config=dict(VISION, hidden_act=act, image_size=size), text_config=words,
                                   projection_dim=20)
  images = transformers.CLIPImageProcessor(size=dict(shortest_edge=size), crop_size=dict(height=size, width=size))
  return transformers.CLIPModel(config), images, tokenizer


def _siglip(tmp_path, image_size=32, gemma=False, **vision):
  if gemma:
    vocabulary, merges = folders.gemma_vocabulary()
    tokenizer = transformers.GemmaTokenizer(vocab=vocabulary, merges=merges, model_max_length=12)
  else:
    tokenizer = transformers.SiglipTokenizer(folders.sentencepiece_model(tmp_path / "spiece.model"),
                                             model_max_length=12, model_input_names=["input_ids"])
  config = transformers.SiglipConfig(
      vision_config=dict(VISION, image_size=image_size, **vision),
      text_config=dict(TEXT, vocab_size=len(tokenizer), projection_size=32))
  images = transformers.SiglipImageProcessor(size=dict(height=image_size, width=image_size))
  return transformers.SiglipModel(config), images, tokenizer


def _siglip2(tmp_path):
  vocabulary, merges = folders.gemma_vocabulary()
  tokenizer = transformers.GemmaTokenizer(vocab=vocabulary, merges=merges, model_max_length=12)
  config = transformers.Siglip2Config(
      vision_config=dict(SIZE, intermediate_size=48, patch_size=8, num_patches=36),
      text_config=dict(TEXT, vocab_size=len(tokenizer), projection_size=32))
  images = transformers.Siglip2ImageProcessor(patch_size=8, max_num_patches=20)
  return transformers.Siglip2Model(config), images, tokenizer


def _dinov2(registers=False, labels=None, **changes):
  more = dict(num_labels=labels) if labels else {}
  name = "Dinov2WithRegisters" if registers else "Dinov2"
  config = getattr(transformers, f"{name}Config")(**DINO, **changes, **more)
  model = getattr(transformers, f"{name}ForImageClassification" if labels else f"{name}Model")(config)
  images = transformers.BitImageProcessor(size=dict(shortest_edge=36), crop_size=SQUARE["size"])
  return model, images, None


def _dinov3(**changes):
  config = transformers.DINOv3ViTConfig(**VISION, num_register_tokens=3, **changes)
  images = transformers.ViTImageProcessor(size=dict(height=32, width=48))  # positions of any grid
  return transformers.DINOv3ViTModel(config), images, None


def _vit(kind="ViTModel", size=(32, 32), **changes):
  model = getattr(transformers, kind)(transformers.ViTConfig(**{**VISION, "image_size": list(size), **changes}))
  return model, transformers.ViTImageProcessor(size=dict(height=size[0], width=size[1])), None


def _convnext(kind="ConvNextModel", **changes):
  config = transformers.ConvNextConfig(patch_size=4, hidden_sizes=[8, 12], depths=[2, 1], num_stages=2, **changes)
  return getattr(transformers, kind)(config), transformers.ConvNextImageProcessor(size=dict(shortest_edge=40)), None


def _classifier(kind, config):
  model = getattr(transformers, kind)(config(vision_config=VISION, text_config=dict(TEXT, vocab_size=99),
                                             num_labels=5))
  return model, transformers.SiglipImageProcessor(**SQUARE), None


KINDS = {
    "clip": lambda _: _clip(),
    "clip with an old end of text": lambda _: _clip(eos=2, act="gelu"),
    "clip of partial patches": lambda _: _clip(size=36),
    "clip vision tower": lambda _: (transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(**VISION, projection_dim=20)), *_clip()[1:2], None),
    "clip classifier": lambda _: _classifier("CLIPForImageClassification", transformers.CLIPConfig),
    "siglip": _siglip,
    "siglip of partial patches": lambda tmp: _siglip(tmp, image_size=38),
    "siglip 2 fixed, padding masked": lambda tmp: _siglip(tmp, gemma=True),
    "siglip 2 naflex": _siglip2,
    "siglip vision tower": lambda _: (transformers.SiglipVisionModel(transformers.SiglipVisionConfig(
        **VISION)), transformers.SiglipImageProcessor(**SQUARE), None),
    "siglip classifier": lambda _: _classifier("SiglipForImageClassification", transformers.SiglipConfig),
    "vit": lambda _: _vit(),
    "vit without biases": lambda _: _vit(qkv_bias=False, hidden_act="gelu_new"),
    "vit classifier": lambda _: _vit("ViTForImageClassification", num_labels=5),
    "vit of oblong images and patches": lambda _: _vit(size=(32, 48), patch_size=[8, 16],
                                                           hidden_act="gelu_python"),
    "dinov2": lambda _: _dinov2(),
    "dinov2 swiglu": lambda _: _dinov2(use_swiglu_ffn=True),
    "dinov2 classifier": lambda _: _dinov2(labels=5),
    "dinov2 registers": lambda _: _dinov2(registers=True, num_register_tokens=3),
    "dinov2 registers, none of them": lambda _: _dinov2(registers=True, num_register_tokens=0),
    "dinov2 registers swiglu classifier": lambda _: _dinov2(registers=True, labels=4, use_swiglu_ffn=True),
    "dinov3": lambda _: _dinov3(),
    "dinov3 gated": lambda _: _dinov3(use_gated_mlp=True, hidden_act="silu", key_bias=True, mlp_bias=False),
    "convnext": lambda _: _convnext(),
    "convnext without scales, another last norm": lambda _: _convnext(layer_scale_init_value=0.0, layer_norm_eps=0.3),
    "convnext classifier": lambda _: _convnext("ConvNextForImageClassification", num_labels=5),
}


def _save(made, folder):
  """Randomises and saves; returns the folder as a str."""
  model, images, tokenizer = made
  draw = torch.Generator().manual_seed(7)
  with torch.no_grad():
    for parameter in model.parameters():
      parameter.add_(0.2 * torch.randn(parameter.shape, generator=draw))
  for part in (model, images, *([tokenizer] if tokenizer else [])):
    part.save_pretrained(folder)
  return str(folder)


def _theirs(folder):
  """{feature: value} of the model in a folder by transformers, strictly loaded."""
  name = json.loads(open(f"{folder}/config.json").read())["architectures"][0]
  model, told = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
  assert not any(told[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), told
  opened = [Image.open(io.BytesIO(data)) for data in PICTURES]
  given = transformers.AutoImageProcessor.from_pretrained(folder)(opened, return_tensors="pt")
  if hasattr(model, "text_model"):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    given |= tokenizer(STRINGS, padding="max_length", truncation=True, max_length=12, return_tensors="pt")
  with torch.no_grad():
    result = model.eval()(**given)
  if hasattr(model, "text_model"):
    return {"image/embed": result.image_embeds, "text/embed": result.text_embeds,
            "logits": result.logits_per_image, "text/tokens": result.text_model_output.last_hidden_state}
  if "logits" in result:
    return {"logits": result.logits}
  pooled = result.image_embeds if "image_embeds" in result else result.pooler_output
  tokens = result.last_hidden_state
  if tokens.ndim == 4:  # of a CNN, [B, D, H, W]
    tokens = tokens.flatten(2).transpose(1, 2)
  return {"image/pooled": pooled, "tokens": tokens}


def _ours(path):
  objective, params = mmjax.load(path)
  given, want = dict(images=PICTURES), ["image/tokens", "image/prefix"]
  if hasattr(objective, "text"):
    given["texts"] = STRINGS
    want.append("text/tokens")
  features = mmjax.features(objective, params, mmjax.processor(path)(**given), want)
  if "text/embed" in features:
    logits = features["logit_scale"] * features["image/embed"] @ features["text/embed"].T
    features["logits"] = logits + features.get("logit_bias", 0)
  features["tokens"] = np.concatenate([features["image/prefix"], features["image/tokens"]], axis=1)
  return features


def _close(got, want):
  for name, value in want.items():
    value = value.numpy()
    if name == "tokens" and value.shape != got[name].shape:
      continue  # of a tower whose tokens are given out before the last norm
    np.testing.assert_allclose(got[name], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_outputs_agree_in_both_directions(kind, tmp_path):
  folder = _save(KINDS[kind](tmp_path), tmp_path / "theirs")
  want = _theirs(folder)
  if kind.startswith("clip vision"):
    want.pop("tokens")  # before their last norm
  _close(_ours(folder), want)
  interop.convert(folder, str(tmp_path / "converted"), "mmjax")
  shutil.rmtree(folder)  # nothing of it is needed any more, and what was made can be moved
  shutil.move(tmp_path / "converted", tmp_path / "mmjax")
  _close(_ours(str(tmp_path / "mmjax")), want)
  interop.convert(str(tmp_path / "mmjax"), str(tmp_path / "out"))
  again = _theirs(str(tmp_path / "out"))
  for name, value in want.items():
    np.testing.assert_allclose(again[name].numpy(), value.numpy(), rtol=0, atol=1e-5 * np.abs(value.numpy()).max())


TOWERS = {kind: KINDS[kind] for kind in (
    "clip vision tower", "siglip vision tower", "vit", "dinov2", "dinov3", "convnext")}


@pytest.mark.parametrize("kind", TOWERS)
def test_a_trained_classifier_is_written_whole_or_as_its_encoder(kind, tmp_path):
  path = _with_new_classifier(_save(TOWERS[kind](tmp_path), tmp_path / "tower"), tmp_path / "run")
  objective, params = mmjax.load(path)
  features = mmjax.features(objective, params, mmjax.processor(path)(images=PICTURES))
  whole, encoder = str(tmp_path / "whole"), str(tmp_path / "encoder")
  if kind in ("vit", "dinov2", "convnext"):
    interop.convert(path, whole)
    np.testing.assert_allclose(_theirs(whole)["logits"], features["logits"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(_ours(whole)["logits"], features["logits"], rtol=0, atol=1e-4)
  else:  # of another pooling than the classifiers of transformers
    with pytest.raises(CheckpointError, match="mmjax convert --encoder"):
      interop.convert(path, whole)
  assert cli.main(["convert", f"--from={path}", f"--to={encoder}", "--encoder"]) == 0
  theirs = _theirs(encoder)
  pooled = theirs["logits" if kind == "vit" else "image/pooled"]
  np.testing.assert_allclose(pooled, features["image/pooled"], rtol=0, atol=2e-5 * np.abs(pooled.numpy()).max())
  again = _ours(encoder)["image/pooled"]
  np.testing.assert_allclose(again, features["image/pooled"], rtol=0, atol=2e-5 * np.abs(again).max())


def _with_new_classifier(folder, path):
  """A workdir with the tower of a folder and another head, as fine-tuning makes one."""
  model = read(folder)
  node = {key: x for key, x in model.objective["model"].items() if key not in ("out_dim", "rep_dim")} | {"classes": 3}
  kept = {name: x for name, x in model.params.items() if not name.startswith(("projection/", "rep/"))}
  kernel = np.random.default_rng(0).normal(size=(model.params["final_norm/scale"].size, 3)).astype(np.float32)
  head = {"classifier/kernel": kernel, "classifier/bias": np.arange(3, dtype=np.float32)}
  workdir.write(model.replace(objective={"name": "classification", "model": node}, params={**kept, **head}),
                epath.Path(path))
  return str(path)


def test_the_image_tower_of_two_is_written_alone(tmp_path):
  folder = _save(_clip(), tmp_path / "clip")
  interop.convert(folder, str(tmp_path / "tower"), encoder=True)
  embed = _theirs(str(tmp_path / "tower"))["image/pooled"]
  want = _theirs(folder)["image/embed"]
  np.testing.assert_allclose(embed / embed.norm(dim=-1, keepdim=True), want, rtol=0, atol=1e-5)


def test_a_vit_without_pooler_and_classifier_is_its_class_token(tmp_path):
  model = transformers.ViTModel(transformers.ViTConfig(**VISION), add_pooling_layer=False)
  folder = _save((model, transformers.ViTImageProcessor(**SQUARE), None), tmp_path / "vit")
  want = _ours(folder)
  interop.convert(folder, str(tmp_path / "out"))
  _close(want, {"image/pooled": _theirs(str(tmp_path / "out"))["logits"]})
  model = transformers.ViTModel.from_pretrained(tmp_path / "out", add_pooling_layer=False)
  given = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")(
      [Image.open(io.BytesIO(data)) for data in PICTURES], return_tensors="pt")
  with torch.no_grad():
    _close(want, {"tokens": model.eval()(**given).last_hidden_state})


def test_grey_images_stay_grey(tmp_path):
  model, _, _ = _vit(num_channels=1)
  images = transformers.ViTImageProcessor(**SQUARE, image_mean=[0.4], image_std=[0.3])
  folder, out = _save((model, images, None), tmp_path / "vit"), tmp_path / "out"
  interop.convert(folder, str(out))
  grey = folders.encode(folders.picture(40, 30).convert("L"))
  for path in (folder, out):
    want = transformers.AutoImageProcessor.from_pretrained(path)(Image.open(io.BytesIO(grey)), return_tensors="pt")
    got = mmjax.processor(str(path))(images=[grey])["image"]
    np.testing.assert_allclose(got, want["pixel_values"].permute(0, 2, 3, 1), rtol=0, atol=1e-5)
  with torch.no_grad():
    want = transformers.ViTModel.from_pretrained(out).eval()(**want).pooler_output
  _close(mmjax.features(*mmjax.load(folder), {"image": got}), {"image/pooled": want})


def test_towers_under_their_older_names(tmp_path):
  folder = _save(_clip(), tmp_path / "clip")
  want = mmjax.load(folder)[0]
  config = json.loads((tmp_path / "clip/config.json").read_text())
  folders.rewrite(tmp_path / "clip/config.json", text_config_dict=config["text_config"], text_config={"hidden_size": 7},
                  vision_config_dict=config["vision_config"], vision_config=None)
  assert mmjax.load(folder)[0] == want
  assert transformers.CLIPConfig.from_pretrained(folder).text_config.hidden_size == TEXT["hidden_size"]


def test_ends_of_text_and_text_towers_that_have_no_place(tmp_path):
  folder = _save(_clip(), tmp_path / "clip")
  words = json.loads((tmp_path / "clip/config.json").read_text())["text_config"]
  folders.rewrite(tmp_path / "clip/config.json", text_config={**words, "eos_token_id": [1, 2]})
  with pytest.raises(CheckpointError, match=r"eos_token_id = \[1, 2\]: it must be one number"):
    mmjax.load(folder)
  folders.rewrite(tmp_path / "clip/config.json", model_type="siglip_text_model")
  with pytest.raises(CheckpointError, match="is a text tower alone.*take the folder of both"):
    mmjax.load(folder)


def test_features_say_what_they_expect(tmp_path):
  objective, params = mmjax.load(_save(_vit(), tmp_path / "vit"))
  with pytest.raises(ValueError, match="want='image/tokens': it is a list of names"):
    mmjax.features(objective, params, {"image": np.zeros((1, 32, 32, 3))}, want="image/tokens")
  with pytest.raises(ValueError, match="the batch is empty; expected `image`"):
    mmjax.features(objective, params, {})


def test_a_folder_in_parts_and_in_half_precision(tmp_path):
  model, images, _ = _vit()
  whole = _save((model, images, None), tmp_path / "whole")
  model.save_pretrained(tmp_path / "parts", max_shard_size="10KB")
  images.save_pretrained(tmp_path / "parts")
  assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
  _close(_ours(str(tmp_path / "parts")), _theirs(whole))
  model.bfloat16().save_pretrained(tmp_path / "half")
  params = read(str(tmp_path / "half")).params
  exact = read(whole).params
  for name, value in params.items():
    assert value.dtype == np.float32
    np.testing.assert_allclose(value, exact[name], rtol=2**-8, atol=0)


def test_labels_go_along(tmp_path):
  names = ["ant", "bee", "cat"]
  made = _vit("ViTForImageClassification", id2label=dict(enumerate(names)),
              label2id={name: i for i, name in enumerate(names)})
  folder = _save(made, tmp_path / "in")
  assert read(folder).labels == tuple(names)
  interop.convert(folder, str(tmp_path / "out"))
  config = transformers.AutoConfig.from_pretrained(tmp_path / "out")
  assert [config.id2label[i] for i in range(3)] == names and config.num_labels == 3


def test_what_does_not_fit_is_a_table(tmp_path):
  folder = _save(_vit(), tmp_path / "vit")
  config = json.loads((tmp_path / "vit/config.json").read_text())
  (tmp_path / "vit/config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
  with pytest.raises(CheckpointError, match=r"(?s)model.safetensors.*\+ encoder.layer.2.*missing|\+"):
    mmjax.load(folder)


@pytest.mark.parametrize("tower, change, tensor", [
    ("text_config", {"vocab_size": 7}, "text/embedding"), ("vision_config", {"hidden_size": 64}, "image/patch_embed"),
    ("text_config", {"intermediate_size": 9}, "mlp/up"),
    ("text_config", {"max_position_embeddings": 5}, "text/position")])
def test_other_shapes_than_the_config_says_are_a_table(tower, change, tensor, tmp_path):
  folder = _save(_clip(), tmp_path / "clip")
  config = json.loads((tmp_path / "clip/config.json").read_text())
  folders.rewrite(tmp_path / "clip/config.json", **{tower: {**config[tower], **change}})
  with pytest.raises(CheckpointError, match=rf"(?s)model.safetensors: tensors have other shapes.*{tensor}"):
    mmjax.load(folder)


def test_a_bounded_logit_scale_is_written_as_the_model_uses_it(tmp_path):
  model = read(_save(_clip(), tmp_path / "clip"))
  interop.hf.write(model.replace(objective={**model.objective, "scale_max": 1.5}), tmp_path / "out")
  np.testing.assert_allclose(np.exp(read(str(tmp_path / "out")).params["logit_scale"]), 1.5, rtol=1e-6)


@pytest.mark.parametrize("change, message", [
    ({"hidden_act": "relu"}, "hidden_act = 'relu': only gelu"),
    ({"num_stages": 3}, "num_stages = 3, but hidden_sizes has 2 and depths 2"),
    ({"patch_size": [4, 8]}, r"config.json: config.json.patch_size = \[4, 8\], it must be square"),
    ({"depths": [2, 2]}, r"(?s)model.safetensors.*encoder.stages.1.layers.1"),
    ({"hidden_sizes": [8, 16]}, r"(?s)tensors have other shapes.*stage_1/"),
    ({"layer_scale_init_value": 0}, "layer_scale_parameter"),
])
def test_a_convnext_that_is_not_understood(change, message, tmp_path):
  folder = _save(_convnext(), tmp_path / "convnext")
  mmjax.load(folder)
  folders.rewrite(tmp_path / "convnext/config.json", **change)
  with pytest.raises(CheckpointError, match=message):
    mmjax.load(folder)


@pytest.mark.parametrize("change, message", [
    ({"out_dim": 7}, "objective.model.out_dim = 7, it has None"),
    ({"norm_eps": 1e-5}, "objective.model.norm_eps = 1e-05, it has 1e-06"),
    ({"layer_scale": 0.0}, "objective.model.layer_scale = 0.0, it has None or more than 0"),
])
def test_a_convnext_that_cannot_be_written(change, message, tmp_path):
  model = read(_save(_convnext(), tmp_path / "convnext"))
  changed = model.replace(objective={"name": "encoder", "model": {**model.objective["model"], **change}})
  with pytest.raises(ValueError, match=f"no model of transformers has this form .*\n  convnext: {message}$"):
    interop.hf.write(changed, tmp_path / "out")
  assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change, message", [
    ({"name": "contrastive", "image": {"name": "convnext"}, "text": {"name": "text"}},
     r"^a/run: objective.image.name = 'convnext' has no counterpart in transformers; what has one: vit "
     r"\(its encoder alone may have one: mmjax convert --encoder\)$"),
    ({"name": "encoder", "model": {"name": "conv_encoder"}},
     r"^a/run: objective.model.name = 'conv_encoder' has no counterpart in transformers; what has one: vit, convnext "
     r"\(for mmjax.load and init_from: mmjax convert --format=mmjax\)$"),
    ({"name": "encoder", "model": {"name": "vit", "patch": (2, 8, 8), "grid": [4, 4, 4]}},
     r"^a/run: objective.model.patch = \[2, 8, 8\], of clips, but only models of pictures are written "
     r"\(for mmjax.load and init_from: mmjax convert --format=mmjax\)$"),
])
def test_what_no_form_can_say_is_one_line(change, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    interop.hf.write(Pretrained(change, {}, origin="a/run"), tmp_path / "out")


@pytest.mark.parametrize("change, message", [
    ({"model_type": "bert"}, "model_type = 'bert' is not known here"),
    ({"hidden_act": "mish"}, "hidden_act = 'mish' is unknown"),
    ({"pooler_act": "relu"}, "only tanh"),
])
def test_a_config_that_is_not_understood(change, message, tmp_path):
  folder = _save(_vit(), tmp_path / "vit")
  folders.rewrite(tmp_path / "vit/config.json", **change)
  with pytest.raises(CheckpointError, match=message):
    mmjax.load(folder)


def test_a_damaged_file_and_an_absent_folder(tmp_path):
  folder = _save(_vit(), tmp_path / "vit")
  file = tmp_path / "vit/model.safetensors"
  file.write_bytes(file.read_bytes()[:500])
  with pytest.raises(CheckpointError, match="model.safetensors: cannot be read"):
    mmjax.load(folder)
  with pytest.raises(CheckpointError, match="there is nothing here"):
    mmjax.load(str(tmp_path / "absent"))
  (tmp_path / "vit/config.json").write_text("[1]")
  with pytest.raises(CheckpointError, match="config.json: holds a list, not the config"):
    mmjax.load(folder)
  (tmp_path / "empty").mkdir()
  with pytest.raises(CheckpointError, match="is no checkpoint that is known here"):
    mmjax.load(str(tmp_path / "empty"))


def test_a_checkpoint_that_a_run_replaces_while_it_is_read(tmp_path, monkeypatch):
  run = tmp_path / "run"
  interop.convert(_save(_vit(), tmp_path / "vit"), str(run), "mmjax")
  restore, moved = Checkpointer.restore_as_saved, []

  def restore_meanwhile(self, step=None, only=("",)):
    if moved:
      return restore(self, step, only)
    moved.append((run / "checkpoints/0").rename(run / "checkpoints/1"))
    raise ValueError("not enough data")

  monkeypatch.setattr(Checkpointer, "restore_as_saved", restore_meanwhile)
  mmjax.load(str(run))
  assert moved


def test_a_model_without_counterpart_says_what_is_in_the_way(tmp_path):
  model = read(_save(_vit(), tmp_path / "vit"))
  changed = model.replace(objective={"name": "encoder", "model": {**model.objective["model"], "qk_norm": True}})
  with pytest.raises(ValueError, match="objective.model.qk_norm = True, it has False"):
    interop.hf.write(changed, tmp_path / "out")
  assert not (tmp_path / "out").exists()


def test_a_folder_that_is_taken_is_left_alone(tmp_path):
  folder = _save(_vit(), tmp_path / "vit")
  before = sorted(path.name for path in (tmp_path / "vit").iterdir())
  for form in interop.FORMATS:
    with pytest.raises(FileExistsError, match="not empty"):
      interop.convert(folder, folder, form)
  assert sorted(path.name for path in (tmp_path / "vit").iterdir()) == before
