"""Hugging Face's CLIP: `CLIPModel`, its vision tower alone, and `CLIPForImageClassification`."""

import math

import numpy as np

from mmjax.checkpoint.interop import forms, hf_vit, towers
from mmjax.checkpoint.interop import layout as to

MODEL_TYPES = ("clip", "clip_vision_model")
RENAMES = (towers.ALONE,)
UNUSED = r".*embeddings\.position_ids"
VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TEXT = {"vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
        "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "eos_token_id": 49407}
OLD_EOS = 2  # configs from before the end of text was right: the highest id is meant
IMAGE_FORM = {"class_token": True, "class_position": True, "registers": 0, "position": "learned",
              "patch_bias": False, "pre_norm": True, "rep_dim": None, "out_bias": False, "qk_norm": False,
              "layer_scale": None, "attention_bias": "qkvo", "mlp_bias": True}
TEXT_FORM = {"causal": True, "pool": ("eos", "last"), "final_norm": True, "out_bias": False, "qk_norm": False,
             "layer_scale": None}


def objective(config, names):
  """The objective node of a config.json and the names of its tensors."""
  vision = {**VISION, **(_part(config, "vision") or config)}
  image = {
      "name": "vit", "patch": forms.plain_size(vision["patch_size"]), "width": vision["hidden_size"],
      "depth": vision["num_hidden_layers"], "heads": vision["num_attention_heads"],
      "mlp_dim": vision["intermediate_size"], "activation": forms.activation(vision["hidden_act"], "vision_config"),
      "norm_eps": vision["layer_norm_eps"], "pool": "cls", "class_token": True, "class_position": True,
      "position": "learned", "grid": forms.grid(vision["image_size"], vision["patch_size"]),
      "resample": "bicubic_plain", "patch_bias": False, "pre_norm": True}
  if "classifier.weight" in names:  # of the mean of patches before the last norm
    return hf_vit.with_classifier({**image, "pool": "mean", "final_norm": False}, config, names)
  if "visual_projection.weight" in names:
    image["out_dim"] = config.get("projection_dim", 512)
  if "text_model.embeddings.token_embedding.weight" not in names:
    return {"name": "encoder", "model": image}
  t = {**TEXT, **_part(config, "text")}
  if isinstance(t["eos_token_id"], list):
    raise ValueError(f"text_config.eos_token_id = {t['eos_token_id']}: it must be one number, of the token to pool at")
  text = {
      "name": "text", "vocab": t["vocab_size"], "length": t["max_position_embeddings"], "width": t["hidden_size"],
      "depth": t["num_hidden_layers"], "heads": t["num_attention_heads"], "mlp_dim": t["intermediate_size"],
      "activation": forms.activation(t["hidden_act"], "text_config"), "norm_eps": t["layer_norm_eps"],
      "causal": True, "pool": "eos", "eos_id": None if t["eos_token_id"] == OLD_EOS else t["eos_token_id"],
      "out_dim": image["out_dim"]}
  return {"name": "contrastive", "image": image, "text": text, "losses": {"softmax": 1.0},
          "scale_init": math.exp(config.get("logit_scale_init_value", 2.6592))}


def _part(config, tower):
  """A tower's config. What stands under its older name goes before, as in transformers."""
  old = config.get(f"{tower}_config_dict")
  return (config.get(f"{tower}_config") or {}) if old is None else old


def unused(objective):
  """Tensors of this model without a place in ours: a classifier has no use for the last norm."""
  return UNUSED if objective["name"] != "classification" else rf"{UNUSED}|vision_model\.post_layernorm\..*"


def _vision(node):
  entries = [
      to.one("embeddings.class_embedding", "class_token", to.reshaped((1, -1), (-1,))),
      to.one("embeddings.patch_embedding.weight", "patch_embed/kernel", to.CONV),
      to.Entry("embeddings.position_embedding.weight", ("class_position", "position"),
               to.class_and_grid(forms.square(node["grid"]))),
      *to.norm("pre_layrnorm", "pre_norm"), *towers.trunk(node["heads"])]
  return entries + (to.norm("post_layernorm", "final_norm") if node["final_norm"] else [])


def layout(objective, names=None):
  """(entries, {their prefix: number of blocks}) of an objective node; see `forms`."""
  del names
  alone = objective.get("model")
  node = forms.complete(alone or objective["image"], "objective.model" if alone else "objective.image")
  ours = "" if alone else "image/"
  entries = to.under(towers.VISION, ours, _vision(node))
  if node["out_dim"]:
    entries += to.linear("visual_projection", f"{ours}projection", bias=False)
  if node["classes"]:
    entries += to.linear("classifier", "classifier")
  if alone:
    return entries, {"": node["depth"]}
  text = forms.complete(objective["text"], "objective.text", "text")
  entries += to.under(towers.TEXT, "text/", towers.text(text))
  entries += to.linear("text_projection", "text/projection", bias=False)
  entries.append(to.one("logit_scale", "logit_scale", to.reshaped((), ())))
  return entries, {towers.VISION: node["depth"], towers.TEXT: text["depth"]}


def config(pretrained):
  """What config.json says of a model; `forms.Mismatch` where this form cannot say it."""
  objective = pretrained.objective
  alone, path = ("model" in objective), "objective.model" if "model" in objective else "objective.image"
  node = forms.complete(objective["model" if alone else "image"], path)
  acts = tuple(forms.THEIR_ACTIVATIONS)
  classifier = node["classes"] is not None
  wrong = forms.differences(path, node, {
      **IMAGE_FORM, "activation": acts, "pool": "mean" if classifier else "cls", "final_norm": not classifier})
  if classifier and node["out_dim"]:
    wrong.append(f"{path}.out_dim = {node['out_dim']}, it has None before a classifier")
  if wrong:
    raise forms.Mismatch(wrong)
  patch = forms.one_number(node["patch"], f"{path}.patch")
  vision = towers.vision_config(node, forms.THEIR_ACTIVATIONS[node["activation"]]) | {
      "model_type": "clip_vision_model", "patch_size": patch, "image_size": forms.image_side(pretrained, node, path)}
  if classifier:
    return {"model_type": "clip", "architectures": ["CLIPForImageClassification"], "vision_config": vision,
            **forms.labels(pretrained, node["classes"])}
  if alone:
    projected = {"architectures": ["CLIPVisionModelWithProjection"], "projection_dim": node["out_dim"]}
    return vision | (projected if node["out_dim"] else {"architectures": ["CLIPVisionModel"]})
  text, text_path = forms.complete(objective["text"], "objective.text", "text"), "objective.text"
  wrong = forms.differences(text_path, text, {**TEXT_FORM, "activation": acts})
  if not node["out_dim"] or text["out_dim"] != node["out_dim"]:
    wrong.append(f"{path}.out_dim = {node['out_dim']} and {text_path}.out_dim = {text['out_dim']}, "
                 "it has the same number for both")
  if objective.get("bias_init") is not None:
    wrong.append("objective.bias_init is a bias of the logits, it has none")
  if wrong:
    raise forms.Mismatch(wrong)
  eos = _eos(pretrained, text)
  return {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": node["out_dim"],
          "vision_config": vision,
          "text_config": towers.text_config(text, forms.THEIR_ACTIVATIONS[text["activation"]])
                         | {"model_type": "clip_text_model", "eos_token_id": eos}}


def extra_tensors(objective):
  """The last norm, which their classifier holds and does not use."""
  if objective["name"] != "classification":
    return {}
  width = objective["model"]["width"]
  return {"vision_model.post_layernorm.weight": np.ones(width, np.float32),
          "vision_model.post_layernorm.bias": np.zeros(width, np.float32)}


def _eos(pretrained, text):
  """Their eos_token_id, by which they find the place to pool."""
  if text["pool"] == "eos":
    eos = OLD_EOS if text["eos_id"] is None else text["eos_id"]
  else:  # the last real token, which is the end of text where the tokenizer adds one
    eos = pretrained.eos_id
    if eos is None:
      raise forms.Mismatch(["objective.text.pool = 'last', it pools at the end of text, and no transform "
                            "Tokenise(eos=True) says what that is"])
  if eos == OLD_EOS and text["eos_id"] is not None or eos == OLD_EOS and text["pool"] == "last":
    raise forms.Mismatch(["the end of text is token 2, which transformers reads as 'the highest id'"])
  return eos
