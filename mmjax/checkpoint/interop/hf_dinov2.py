"""Hugging Face's DINOv2, without and with registers, with an MLP or SwiGLU, and its classifier."""

import numpy as np

from mmjax.checkpoint.interop import forms
from mmjax.checkpoint.interop import hf_vit
from mmjax.checkpoint.interop import layout as to
from mmjax.nn.mlp import default_mlp_dim

MODEL_TYPES = ("dinov2", "dinov2_with_registers")
RENAMES = (
    (r"^dinov2(_with_registers)?\.", ""),
    (r"attention\.([qkv])_proj", lambda m: "attention.attention." + {"q": "query", "k": "key", "v": "value"}[m[1]]),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"mlp\.down_proj", "mlp.weights_out"),
)
UNUSED = r"embeddings\.mask_token"
DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "mlp_ratio": 4,
            "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 224, "qkv_bias": True,
            "layerscale_value": 1.0, "drop_path_rate": 0.0, "use_swiglu_ffn": False, "num_register_tokens": 4}
PATCH = {"dinov2": 14, "dinov2_with_registers": 16}
# Without antialiasing, and with it: the two published models differ in this.
RESAMPLE = {"dinov2": "bicubic_plain", "dinov2_with_registers": "bicubic"}
FORM = {"class_token": True, "class_position": True, "position": "learned", "patch_bias": True, "pre_norm": False,
        "final_norm": True, "rep_dim": None, "out_dim": None, "qk_norm": False, "mlp_bias": True,
        "attention_bias": ("qkvo", "o")}


def objective(config, names):
  """The objective node of a config.json and the names of its tensors."""
  kind = config["model_type"]
  c = {**DEFAULTS, "patch_size": PATCH[kind], **config}
  width, swiglu = c["hidden_size"], c["use_swiglu_ffn"]
  model = {
      "name": "vit", "patch": forms.plain_size(c["patch_size"]), "width": width, "depth": c["num_hidden_layers"],
      "heads": c["num_attention_heads"], "mlp_dim": _hidden(width, c["mlp_ratio"], swiglu),
      "activation": "swiglu" if swiglu else forms.activation(c["hidden_act"], "config.json"),
      "norm_eps": c["layer_norm_eps"], "pool": "cls_mean" if "classifier.weight" in names else "cls",
      "class_token": True, "class_position": True, "position": "learned",
      "grid": forms.grid(c["image_size"], c["patch_size"]), "resample": RESAMPLE[kind],
      "registers": c["num_register_tokens"] if kind == "dinov2_with_registers" else 0,
      "layer_scale": float(c["layerscale_value"]), "drop_path": float(c["drop_path_rate"]),
      "attention_bias": "qkvo" if c["qkv_bias"] else "o", "kernel_init": "truncated_normal"}
  return hf_vit.with_classifier(model, config, names)


def layout(objective, names=None):
  """(entries, {their prefix: number of blocks}) of an objective node; see `forms`."""
  node = forms.complete(objective["model"], "objective.model")
  theirs = {part: f"attention.attention.{part}" for part in ("query", "key", "value")}
  if node["activation"] != "swiglu":
    mlp = [*to.linear("mlp.fc1", "mlp/up"), *to.linear("mlp.fc2", "mlp/down")]
  elif names is not None and any("mlp.gate_proj" in name for name in names):  # transformers 5, in memory
    mlp = [*to.linear("mlp.gate_proj", "mlp/gate"), *to.linear("mlp.up_proj", "mlp/up"),
           *to.linear("mlp.weights_out", "mlp/down")]
  else:
    mlp = [to.Entry("mlp.weights_in.weight", ("mlp/gate/kernel", "mlp/up/kernel"), to.packed(to.DENSE, 2)),
           to.Entry("mlp.weights_in.bias", ("mlp/gate/bias", "mlp/up/bias"), to.packed(to.SAME, 2)),
           *to.linear("mlp.weights_out", "mlp/down")]
  block = [
      *to.norm("norm1", "attention_norm"),
      *to.attention(theirs | {"out": "attention.output.dense"}, "attention", node["heads"], node["attention_bias"]),
      to.one("layer_scale1.lambda1", "attention_scale", to.SAME),
      *to.norm("norm2", "mlp_norm"), *mlp, to.one("layer_scale2.lambda1", "mlp_scale", to.SAME)]
  entries = hf_vit.around(node) + to.under("encoder.layer.{i}.", "trunk/layers/", block)
  if node["registers"]:
    entries.append(to.one("embeddings.register_tokens", "registers",
                          to.reshaped((node["registers"], -1), (1, node["registers"], -1))))
  if names is None and node["classes"]:
    entries = to.under(f"{_kind(node)}.", "", entries)
  if node["classes"]:
    entries += to.linear("classifier", "classifier")
  return entries, {"": node["depth"]}


def config(pretrained):
  """What config.json says of a model; `forms.Mismatch` where this form cannot say it."""
  path = "objective.model"
  node = forms.complete(pretrained.objective["model"], path)
  activations = ("swiglu", *forms.THEIR_ACTIVATIONS)
  wrong = forms.differences(path, node, {**FORM, "activation": activations,
                                         "pool": ("cls_mean", "cls") if node["classes"] else ("cls", "mean")})
  if node["layer_scale"] is None:
    wrong.append(f"{path}.layer_scale = None, it has a number")
  width, swiglu = node["width"], node["activation"] == "swiglu"
  mlp_dim = node["mlp_dim"] or default_mlp_dim(width, node["activation"])
  ratio = _ratio(mlp_dim, width, swiglu)
  if ratio is None:
    wrong.append(f"{path}.mlp_dim = {mlp_dim}, it has what a whole mlp_ratio gives at width {width}")
  if wrong:
    raise forms.Mismatch(wrong)
  forms.one_number(node["grid"], f"{path}.grid")  # patches may be oblong, their number a side is one
  kind = _kind(node)
  name = {"dinov2": "Dinov2", "dinov2_with_registers": "Dinov2WithRegisters"}[kind]
  result = {
      "model_type": kind, "architectures": [name + ("ForImageClassification" if node["classes"] else "Model")],
      "hidden_size": width, "num_hidden_layers": node["depth"], "num_attention_heads": node["heads"],
      "mlp_ratio": ratio,
      "hidden_act": "gelu" if swiglu else forms.THEIR_ACTIVATIONS[node["activation"]], "use_swiglu_ffn": swiglu,
      "layer_norm_eps": node["norm_eps"], "image_size": forms.image_size(pretrained, node, path),
      "patch_size": forms.plain_size(node["patch"]), "qkv_bias": node["attention_bias"] == "qkvo",
      "layerscale_value": node["layer_scale"], "drop_path_rate": node["drop_path"]}
  result |= {"use_mask_token": False} if kind == "dinov2" else {"num_register_tokens": node["registers"]}
  return result | (forms.labels(pretrained, node["classes"]) if node["classes"] else {})


def prepared(pretrained):
  """The same model as this form says it: its classifier sees the mean of the patches too, here with weight zero."""
  objective = pretrained.objective
  node = forms.complete(objective["model"], "objective.model")
  if not node["classes"] or node["pool"] == "cls_mean":
    return pretrained
  kernel = pretrained.params["classifier/kernel"]
  return pretrained.replace(
      objective={**objective, "model": {**objective["model"], "pool": "cls_mean"}},
      params={**pretrained.params, "classifier/kernel": np.concatenate([kernel, np.zeros_like(kernel)])})


def extra_tensors(objective):
  """Tensors that the form wants and ours have no place for: zero, as they are before training."""
  node = forms.complete(objective["model"], "objective.model")
  kind, width = _kind(node), node["width"]
  if kind == "dinov2":
    return {}
  tensors = {"embeddings.mask_token": np.zeros((1, width), np.float32)}
  if not node["registers"]:
    tensors["embeddings.register_tokens"] = np.zeros((1, 0, width), np.float32)
  return {f"{kind}.{name}" if node["classes"] else name: x for name, x in tensors.items()}


def _kind(node):
  """Without registers, how positions are resampled tells the two apart."""
  kind = "dinov2_with_registers"
  return kind if node["registers"] or node["resample"] == RESAMPLE[kind] else "dinov2"


def _hidden(width, ratio, swiglu):
  """Their width of the MLP."""
  hidden = int(width * ratio)
  return (int(hidden * 2 / 3) + 7) // 8 * 8 if swiglu else hidden


def _ratio(mlp_dim, width, swiglu):
  """The whole mlp_ratio (transformers takes no other) that gives `mlp_dim`, or None."""
  return next((r for r in (4, *range(1, 17)) if _hidden(width, r, swiglu) == mlp_dim), None)
