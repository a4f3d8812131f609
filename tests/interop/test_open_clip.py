"""OpenCLIP's folders in, against what OpenCLIP computed: `data/conformance/open_clip_*.npz`.

Values of open_clip_torch and timm (torch), float32 on a CPU, random weights; made by
`conformance/make_reference.py`. The bar, 1e-5 of the reference's largest entry, is what float32
leaves after a few layers.
"""

import json
import pathlib

import numpy as np
import pytest

import mmjax
from mmjax.checkpoint.interop import open_clip, tensors
from tests.conftest import needs

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "conformance"
CASES = ("open_clip_plain", "open_clip_custom", "open_clip_siglip")


def case(name):
  """(arrays, state dict, model_cfg)."""
  with np.load(FOLDER / f"{name}.npz") as data:
    arrays = {key: data[key] for key in data}
  state = {key.removeprefix("par/"): x for key, x in arrays.items() if key.startswith("par/")}
  return arrays, state, json.loads(str(arrays["meta"]))["model_cfg"]


def folder(path, state, model_cfg):
  """A folder as OpenCLIP's save_for_hf writes it, without a tokenizer."""
  path.mkdir(exist_ok=True)
  preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "resize_mode": "squash"}
  (path / open_clip.CONFIG).write_text(json.dumps(
      {"model_cfg": model_cfg, "preprocess_cfg": preprocess}))
  if state is not None:
    tensors.write_safetensors(path / "open_clip_model.safetensors", state)
  return str(path)


def changed(model_cfg, part, **changes):
  return {**model_cfg, part: {**model_cfg[part], **changes}}


def embeds(path, arrays):
  features = mmjax.features(*mmjax.load(path), {
      "image": arrays["in/image"].transpose(0, 2, 3, 1), "text": arrays["in/text"].astype(np.int32),
      "text_mask": arrays["in/text"] < 30})  # a mask that OpenCLIP does not know either
  return features["image/embed"], features["text/embed"], features


def assert_close(got, want):
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def assert_embeds(path, arrays):
  image, text, features = embeds(path, arrays)
  assert_close(image, arrays["out/image"])
  assert_close(text, arrays["out/text"])
  return features


@pytest.mark.parametrize("name", CASES)
def test_images_and_texts_embed_as_in_open_clip(name, tmp_path):
  arrays, state, model_cfg = case(name)
  features = assert_embeds(folder(tmp_path, state, model_cfg), arrays)
  assert_close(features["logit_scale"], np.exp(state["logit_scale"]))
  assert ("logit_bias" in features) == ("logit_bias" in state)
  if "logit_bias" in state:
    assert_close(features["logit_bias"], state["logit_bias"])


def test_a_torch_pickle_of_a_parallel_run_with_old_buffers_is_the_same_model(tmp_path):
  torch = needs("torch")
  arrays, state, model_cfg = case("open_clip_plain")
  old = {**state, "attn_mask": np.zeros((10, 10), np.float32)}
  path = folder(tmp_path, None, model_cfg)
  wrapped = {f"module.{key}": torch.tensor(x) for key, x in old.items()}
  torch.save({"epoch": 3, "state_dict": wrapped}, tmp_path / "open_clip_pytorch_model.bin")
  assert_embeds(path, arrays)


def test_scale_and_bias_of_one_entry_are_read(tmp_path):
  arrays, state, model_cfg = case("open_clip_siglip")
  state |= {key: state[key].reshape(1) for key in ("logit_scale", "logit_bias")}
  assert_embeds(folder(tmp_path, state, model_cfg), arrays)


@pytest.mark.parametrize("proj, name, has_bias", [
    ("linear", "visual.head.proj", False), (None, "visual.trunk.head", True)])
def test_a_projection_after_a_timm_tower_is_applied(proj, name, has_bias, tmp_path):
  arrays, state, model_cfg = case("open_clip_siglip")
  # Turned by one place, which a projection can do and nothing else here.
  state[f"{name}.weight"] = np.roll(np.eye(24, dtype=np.float32), 1, axis=0)
  if has_bias:
    state[f"{name}.bias"] = np.zeros(24, np.float32)
  path = folder(tmp_path, state, changed(model_cfg, "vision_cfg", timm_proj=proj))
  assert_close(embeds(path, arrays)[0], np.roll(arrays["out/image"], 1, axis=1))


@pytest.mark.parametrize("name, heads, activation", [
    ("vit_base_patch16_siglip_512", 12, "gelu"),
    ("vit_base_patch32_siglip_256.v2", 12, "gelu_tanh"),
    ("vit_large_patch16_siglip_384", 16, "gelu"), ("vit_large_patch16_siglip_512", 16, "gelu_tanh"),
    ("vit_so400m_patch14_siglip_384", 16, "gelu"),
    ("vit_so400m_patch16_siglip_256", 16, "gelu_tanh"),
    ("vit_giantopt_patch16_siglip_384", 16, "gelu_tanh")])
def test_heads_and_activation_are_those_of_timms_name(name, heads, activation):
  _, state, model_cfg = case("open_clip_siglip")
  config = changed(model_cfg, "vision_cfg", timm_model_name=name)
  node = open_clip._objective(config, state)["image"]
  assert (node["heads"], node["activation"]) == (heads, activation)


def test_what_the_config_says_of_inputs_and_initial_values_is_kept(tmp_path):
  _, state, model_cfg = case("open_clip_custom")
  model = open_clip.read(folder(tmp_path, state, {**model_cfg, "init_logit_scale": np.log(10.0)}))
  assert (model.objective["losses"], model.objective["bias_init"]) == ({"sigmoid": 1.0}, -10.0)
  assert abs(model.objective["scale_init"] - 10) < 1e-6
  assert (model.eos_id, model.text) == (2, ())
  assert model.image[1] == {"name": "Resize", "size": (24, 24), "filter": "pillow_bicubic"}


@pytest.mark.parametrize("name, part, change", [
    ("plain", "vision_cfg", {"layers": [3, 4, 6, 3]}),
    ("plain", "vision_cfg", {"attentional_pool": True}),
    ("plain", "vision_cfg", {"pool_type": "none"}),
    ("plain", "vision_cfg", {"qk_norm": True}),
    ("plain", "vision_cfg", {"norm_kwargs": {"eps": 1e-6, "bias": False}}),
    ("plain", "vision_cfg", {"of_tomorrow": 1}),
    ("custom", "vision_cfg", {"final_ln_after_pool": True}),
    ("custom", "text_cfg", {"act_kwargs": {"approximate": "sigmoid"}}),
    ("custom", "text_cfg", {"hf_model_name": "roberta-base"}),
    ("custom", "text_cfg", {"embed_cls": True}),
    ("siglip", "vision_cfg", {"timm_model_name": "convnext_base"}),
    ("siglip", "vision_cfg", {"timm_pool": "avg"}),
    ("siglip", "vision_cfg", {"timm_proj": "mlp"}),
    ("plain", "vision_cfg", {"timm_model_name": "vit_base_patch16_siglip_224", "timm_pool": "map"}),
])
def test_a_model_without_a_place_here_is_named_by_its_key(name, part, change, tmp_path):
  _, state, model_cfg = case(f"open_clip_{name}")
  path = folder(tmp_path, state, changed(model_cfg, part, **change))
  key = next(iter(change))
  with pytest.raises(ValueError, match=rf"{open_clip.CONFIG}: model_cfg\.{part}\.{key} ="):
    open_clip.read(path)


def test_cocas_decoder_has_no_place(tmp_path):
  _, state, model_cfg = case("open_clip_plain")
  with pytest.raises(ValueError, match="model_cfg.multimodal_cfg"):
    open_clip.read(folder(tmp_path, state, {**model_cfg, "multimodal_cfg": {"layers": 12}}))


def test_tensors_that_the_config_does_not_describe_are_listed(tmp_path):
  _, state, model_cfg = case("open_clip_plain")
  state["visual.mystery"] = state.pop("visual.ln_post.bias")
  with pytest.raises(ValueError) as error:
    open_clip.read(folder(tmp_path, state, model_cfg))
  assert "+ visual.ln_post.bias" in str(error.value) and "- visual.mystery" in str(error.value)


def test_an_image_size_of_another_table_of_positions_is_named(tmp_path):
  _, state, model_cfg = case("open_clip_plain")
  path = folder(tmp_path, state, changed(model_cfg, "vision_cfg", image_size=[32, 16]))
  with pytest.raises(ValueError, match=r"visual.positional_embedding has shape \[13, 16\]"):
    open_clip.read(path)


@pytest.mark.parametrize("content", ["not json", "[]", "{}", '{"model_cfg": {"embed_dim": 8}}'])
def test_a_config_of_something_else_is_named(content, tmp_path):
  path = folder(tmp_path, case("open_clip_plain")[1], {})
  (tmp_path / open_clip.CONFIG).write_text(content)
  with pytest.raises(ValueError, match=f"{open_clip.CONFIG}: is no config of OpenCLIP"):
    open_clip.read(path)


def test_a_folder_without_weights_says_which_files_were_looked_for(tmp_path):
  with pytest.raises(FileNotFoundError, match="open_clip_pytorch_model.bin"):
    open_clip.read(folder(tmp_path, None, case("open_clip_plain")[2]))
