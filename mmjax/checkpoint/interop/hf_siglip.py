"""Hugging Face's SigLIP and SigLIP 2, fixed and variable resolution (NaFlex), their vision towers and classifiers.

SigLIP 2 at a fixed resolution is a `SiglipModel` with another tokenizer.
"""

import math

import numpy as np

from mmjax.checkpoint.interop import forms, hf_vit, towers
from mmjax.checkpoint.interop import layout as to
from mmjax.nn.positions import sincos_2d

MODEL_TYPES = ("siglip", "siglip_vision_model", "siglip2", "siglip2_vision_model")
RENAMES = (towers.ALONE,)
VISION = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
          "num_channels": 3, "image_size": 224, "patch_size": 16, "num_patches": 256,
          "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "vision_use_head": True}
TEXT = {"vocab_size": 32000, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
        "num_attention_heads": 12, "max_position_embeddings": 64, "hidden_act": "gelu_pytorch_tanh",
        "layer_norm_eps": 1e-6, "projection_size": None}
IMAGE_FORM = {"class_token": False, "registers": 0, "patch_bias": True, "pre_norm": False, "final_norm": True,
              "rep_dim": None, "out_dim": None, "qk_norm": False, "layer_scale": None, "attention_bias": "qkvo",
              "mlp_bias": True, "position": ("learned", "sincos", "sincos_endpoint")}
TEXT_FORM = {"causal": False, "pool": ("final", "last"), "final_norm": True, "out_bias": True,
             "qk_norm": False, "layer_scale": None}
NAFLEX = "Patchify"  # the transform that makes an image a sequence of patches


def objective(config, names):
  """The objective node of a config.json and the names of its tensors."""
  naflex = config["model_type"].startswith("siglip2")
  v = {**VISION, **(config.get("vision_config") or config)}
  side = math.isqrt(v["num_patches"])
  head = "vision_model.head.probe" in names and "classifier.weight" not in names
  image = {
      "name": "vit", "patch": forms.plain_size(v["patch_size"]), "width": v["hidden_size"],
      "depth": v["num_hidden_layers"], "heads": v["num_attention_heads"], "mlp_dim": v["intermediate_size"],
      "activation": forms.activation(v["hidden_act"], "vision_config"), "norm_eps": v["layer_norm_eps"],
      "pool": "map" if head else "mean", "position": "learned",
      "grid": [side, side] if naflex else forms.grid(v["image_size"], v["patch_size"]),
      "resample": "bilinear" if naflex else "bicubic_plain"}
  if "text_model.embeddings.token_embedding.weight" not in names:
    return hf_vit.with_classifier(image, config, names)
  t = {**TEXT, **(config.get("text_config") or {})}
  text = {
      "name": "text", "vocab": t["vocab_size"], "length": t["max_position_embeddings"], "width": t["hidden_size"],
      "depth": t["num_hidden_layers"], "heads": t["num_attention_heads"], "mlp_dim": t["intermediate_size"],
      "activation": forms.activation(t["hidden_act"], "text_config"), "norm_eps": t["layer_norm_eps"],
      "pool": "final", "out_dim": t["projection_size"] or t["hidden_size"], "out_bias": True}
  return {"name": "contrastive", "image": image, "text": text, "losses": {"sigmoid": 1.0}, "scale_init": 10.0,
          "bias_init": -10.0}


def unused(objective):
  """Tensors of this model without a place in ours: a classifier has no use for the pooling head."""
  ids = r".*embeddings\.position_ids"
  return ids if objective["name"] != "classification" else rf"{ids}|vision_model\.head\..*"


def _vision(node, patches):
  """Entries of the vision tower; `patches`: its patch embedding is a Linear, of flattened patches."""
  conv = to.CONV
  if patches:
    height, width = forms.square(node["patch"])
    conv = to.Codec(lambda x: [x.T.reshape(height, width, -1, x.shape[0])],
                    lambda ys: ys[0].reshape(-1, ys[0].shape[-1]).T)
  entries = [
      *to.linear("embeddings.patch_embedding", "patch_embed", conv),
      to.one("embeddings.position_embedding.weight", "position",
             to.Codec(lambda x: [x.reshape(*forms.square(node["grid"]), -1)],
                      lambda ys: ys[0].reshape(-1, ys[0].shape[-1]))),
      *towers.trunk(node["heads"]), *to.norm("post_layernorm", "final_norm")]
  if node["pool"] == "map":
    entries += [to.one("head.probe", "pool/probe", to.reshaped((1, -1), (1, 1, -1))),
                *to.packed_attention("head.attention", "pool/attention", node["heads"]),
                *to.norm("head.layernorm", "pool/norm"), *to.linear("head.mlp.fc1", "pool/mlp/up"),
                *to.linear("head.mlp.fc2", "pool/mlp/down")]
  return entries


def layout(objective, names=None):
  """(entries, {their prefix: number of blocks}) of an objective node; see `forms`."""
  alone = objective.get("model")
  path = "objective.model" if alone else "objective.image"
  node = forms.complete(alone or objective["image"], path)
  ours = "" if alone else "image/"
  entries = to.under(towers.VISION, ours, _vision(node, node["resample"] == "bilinear"))
  if node["classes"]:
    entries += to.linear("classifier", "classifier")
  if alone:
    return entries, {"": node["depth"]}
  text = forms.complete(objective["text"], "objective.text", "text")
  entries += to.under(towers.TEXT, "text/", [*towers.text(text), *to.linear("head", "projection")])
  scalar = to.reshaped((), (1,))
  entries += [to.one("logit_scale", "logit_scale", scalar), to.one("logit_bias", "logit_bias", scalar)]
  return entries, {towers.VISION: node["depth"], towers.TEXT: text["depth"]}


def is_naflex(pretrained):
  """Whether images reach the model as patches of any grid."""
  return any(node["name"] == NAFLEX for node in pretrained.image)


def config(pretrained):
  """What config.json says of a model; `forms.Mismatch` where this form cannot say it."""
  objective = pretrained.objective
  alone, path = ("model" in objective), "objective.model" if "model" in objective else "objective.image"
  node = forms.complete(objective["model" if alone else "image"], path)
  naflex, acts = is_naflex(pretrained), tuple(forms.THEIR_ACTIVATIONS)
  pools = "mean" if node["classes"] else ("map", "mean") if alone else "map"
  wrong = forms.differences(path, node, {**IMAGE_FORM, "activation": acts, "pool": pools})
  if naflex and node["resample"] != "bilinear":
    wrong.append(f"{path}.resample = {node['resample']!r}, with variable resolution it has 'bilinear'")
  if not naflex and node["resample"] == "bilinear":
    wrong.append(f"{path}.resample = 'bilinear', which at a fixed resolution it has not")
  if wrong:
    raise forms.Mismatch(wrong)
  kind = "siglip2" if naflex else "siglip"
  patch = forms.one_number(node["patch"], f"{path}.patch")
  side = forms.image_side(pretrained, node, path)
  size = {"num_patches": (side // patch) ** 2} if naflex else {"image_size": side}
  vision = towers.vision_config(node, forms.THEIR_ACTIVATIONS[node["activation"]]) | {
      "model_type": f"{kind}_vision_model", "patch_size": patch, "vision_use_head": node["pool"] == "map", **size}
  name = kind.capitalize()
  if node["classes"]:
    return {"model_type": kind, "architectures": [f"{name}ForImageClassification"], "vision_config": vision,
            **forms.labels(pretrained, node["classes"])}
  if alone:
    return vision | {"architectures": [f"{name}VisionModel"]}
  text = forms.complete(objective["text"], "objective.text", "text")
  wrong = forms.differences("objective.text", text, {**TEXT_FORM, "activation": acts})
  if text["out_dim"] != node["width"]:
    wrong.append(f"objective.text.out_dim = {text['out_dim']}, it has the image tower's width {node['width']}")
  padded = any(node.get("reads_padding") for node in pretrained.text)
  if text["pool"] == "last" and text["mask_padding"] and not padded:
    wrong.append("objective.text.pool = 'last' with mask_padding = True is the last real token, it has the final "
                 "place (pool='final', or mask_padding=False)")
  if objective.get("bias_init") is None:
    wrong.append("objective.bias_init is None, it has a bias of the logits")
  if wrong:
    raise forms.Mismatch(wrong)
  return {"model_type": kind, "architectures": [f"{name}Model"], "vision_config": vision,
          "text_config": towers.text_config(text, forms.THEIR_ACTIVATIONS[text["activation"]])
                         | {"model_type": f"{kind}_text_model", "projection_size": text["out_dim"]}}


def default_transforms(model_type, image):
  """Transforms of a folder that names none: without patches, variable resolution would be forgotten."""
  return ({"name": "Decode"}, {"name": NAFLEX, "patch": image["patch"]}) if model_type.startswith("siglip2") else ()


def prepared(pretrained):
  """The same model as this form says it: texts without a mask where it is ignored, positions as a table."""
  text = pretrained.objective.get("text")
  if text and not forms.complete(text, "objective.text", "text")["mask_padding"]:
    pretrained = pretrained.replace(text=tuple(
        {**node, "reads_padding": True} if node["name"] == "Tokenise" else node for node in pretrained.text))
  return _with_table(pretrained)


def _with_table(pretrained):
  """With fixed sine-cosine positions as the table that their config can only learn."""
  objective = pretrained.objective
  alone = "model" in objective
  node = forms.complete(objective["model" if alone else "image"], "objective")
  if node["position"] == "learned":
    return pretrained
  side = forms.image_side(pretrained, node, "objective") // forms.square(node["patch"])[0]
  table = np.asarray(sincos_2d((side, side), node["width"], node["position"] == "sincos_endpoint"))
  changed = {**objective["model" if alone else "image"], "position": "learned", "grid": [side, side]}
  position = "position" if alone else "image/position"
  return pretrained.replace(objective={**objective, "model" if alone else "image": changed},
                            params={**pretrained.params, position: table.reshape(side, side, -1)})
