"""Hugging Face's ConvNeXt (`ConvNextModel`, `ConvNextForImageClassification`).

There the norms have an epsilon of 1e-6 whatever config.json says, which is about the last one only.
"""

from mmjax.checkpoint.interop import forms
from mmjax.checkpoint.interop import hf_vit
from mmjax.checkpoint.interop import layout as to

MODEL_TYPES = ("convnext",)
PREFIX = "convnext."
RENAMES = ((r"^convnext\.", ""),)
UNUSED = r"(?!)"  # none
NORM_EPS = 1e-6
DEFAULTS = {"hidden_sizes": [96, 192, 384, 768], "depths": [3, 3, 9, 3], "num_stages": 4, "patch_size": 4,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "layer_scale_init_value": 1e-6, "drop_path_rate": 0.0}
FORM = {"norm_eps": NORM_EPS, "out_dim": None}


def objective(config, names):
  """The objective node of a config.json and the names of its tensors."""
  c = {**DEFAULTS, **config}
  if not len(c["hidden_sizes"]) == len(c["depths"]) == c["num_stages"]:
    raise ValueError(f"config.json.num_stages = {c['num_stages']}, but hidden_sizes has {len(c['hidden_sizes'])} and "
                     f"depths {len(c['depths'])}")
  if forms.activation(c["hidden_act"], "config.json") != "gelu":
    raise ValueError(f"config.json.hidden_act = {c['hidden_act']!r}: only gelu has a place here")
  scale = float(c["layer_scale_init_value"])
  model = {
      "name": "convnext", "widths": list(c["hidden_sizes"]), "depths": list(c["depths"]),
      "stem": forms.one_number(c["patch_size"], "config.json.patch_size"), "layer_scale": scale if scale > 0 else None,
      "drop_path": float(c["drop_path_rate"]), "norm_eps": NORM_EPS, "final_norm_eps": c["layer_norm_eps"]}
  return hf_vit.with_classifier(model, config, names)


def layout(objective, names=None):
  """(entries, {their prefix: number of blocks}) of an objective node; see `forms`."""
  node = forms.complete(objective["model"], "objective.model", "convnext")
  entries = [*to.linear("embeddings.patch_embeddings", "patch_embed", to.CONV),
             *to.norm("embeddings.layernorm", "patch_norm"), *to.norm("layernorm", "final_norm")]
  block = [*to.linear("dwconv", "depthwise", to.CONV), *to.norm("layernorm", "norm"),
           *to.linear("pwconv1", "mlp/up"), *to.linear("pwconv2", "mlp/down")]
  if node["layer_scale"] is not None:
    block.append(to.one("layer_scale_parameter", "scale", to.SAME))
  depths = {}
  for i, depth in enumerate(node["depths"]):
    stage = f"encoder.stages.{i}."
    if i:
      entries += to.norm(f"{stage}downsampling_layer.0", f"down_{i}_norm")
      entries += to.linear(f"{stage}downsampling_layer.1", f"down_{i}", to.CONV)
    entries += to.under(f"{stage}layers.{{i}}.", f"stage_{i}/", block)
    depths[stage] = depth
  if names is None and node["classes"]:
    entries = to.under(PREFIX, "", entries)
  if node["classes"]:
    entries += to.linear("classifier", "classifier")
  return entries, depths


def config(pretrained):
  """What config.json says of a model; `forms.Mismatch` where this form cannot say it."""
  path = "objective.model"
  node = forms.complete(pretrained.objective["model"], path, "convnext")
  wrong = forms.differences(path, node, FORM)
  scale = node["layer_scale"]
  if scale is not None and scale <= 0:
    wrong.append(f"{path}.layer_scale = {scale}, it has None or more than 0")
  if wrong:
    raise forms.Mismatch(wrong)
  eps = node["norm_eps"] if node["final_norm_eps"] is None else node["final_norm_eps"]
  result = {
      "model_type": "convnext", "architectures": ["ConvNextForImageClassification" if node["classes"] else
                                                  "ConvNextModel"],
      "hidden_sizes": list(node["widths"]), "depths": list(node["depths"]), "num_stages": len(node["depths"]),
      "patch_size": node["stem"], "hidden_act": "gelu", "layer_norm_eps": eps,
      "layer_scale_init_value": 0.0 if scale is None else scale, "drop_path_rate": node["drop_path"]}
  size = forms.seen_size(pretrained)
  if size:  # the model takes any
    result["image_size"] = forms.plain_size(size)
  return result | (forms.labels(pretrained, node["classes"]) if node["classes"] else {})
