"""Hugging Face's ViT (`ViTModel`, `ViTForImageClassification`).

A `ViTModel` always has a pooler. What has neither that nor a classifier is written as a
`ViTForImageClassification` of no classes, whose "logits" are the class token; also a model that pools by
the mean, which is then its reader's to take.
"""

from mmjax.checkpoint.interop import forms
from mmjax.checkpoint.interop import layout as to

MODEL_TYPES = ("vit",)
PREFIX = "vit."
RENAMES = (
    (r"^vit\.", ""),
    (r"^layers\.", "encoder.layer."),  # as a model of transformers 5 names them in memory
    (r"attention\.([qkv])_proj", lambda m: "attention.attention." + {"q": "query", "k": "key", "v": "value"}[m[1]]),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"\.mlp\.fc1", ".intermediate.dense"),
    (r"\.mlp\.fc2", ".output.dense"),
)
UNUSED = r"embeddings\.mask_token"
DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "hidden_act": "gelu", "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16, "qkv_bias": True,
            "pooler_act": "tanh"}
FORM = {"pool": "cls", "class_token": True, "class_position": True, "registers": 0, "position": "learned",
        "patch_bias": True, "pre_norm": False, "final_norm": True, "out_dim": None, "qk_norm": False,
        "layer_scale": None, "mlp_bias": True, "attention_bias": ("qkvo", "o")}


def objective(config, names):
  """The objective node of a config.json and the names of its tensors."""
  c = {**DEFAULTS, **config}
  model = {
      "name": "vit", "patch": forms.plain_size(c["patch_size"]), "width": c["hidden_size"],
      "depth": c["num_hidden_layers"], "heads": c["num_attention_heads"], "mlp_dim": c["intermediate_size"],
      "activation": forms.activation(c["hidden_act"], "config.json"), "norm_eps": c["layer_norm_eps"],
      "pool": "cls", "class_token": True, "class_position": True, "position": "learned",
      "grid": forms.grid(c["image_size"], c["patch_size"]), "resample": "bicubic_plain",
      "attention_bias": "qkvo" if c["qkv_bias"] else "o", "kernel_init": "truncated_normal"}
  if "pooler.dense.weight" in names:
    if c["pooler_act"] != "tanh":
      raise ValueError(f"config.json.pooler_act = {c['pooler_act']!r}: only tanh has a place here")
    model["rep_dim"] = c.get("pooler_output_size") or c["hidden_size"]
  return with_classifier(model, config, names)


def with_classifier(model, config, names):
  """The objective of an encoder, or of a classifier if the file has one."""
  if "classifier.weight" not in names:
    return {"name": "encoder", "model": model}
  if config.get("problem_type") not in (None, "single_label_classification"):
    raise ValueError(f"config.json.problem_type = {config['problem_type']!r}: only one label an image has a place here")
  count = len(config["id2label"]) if "id2label" in config else config.get("num_labels", 2)
  return {"name": "classification", "model": {**model, "classes": count}}


def layout(objective, names=None):
  """(entries, {their prefix: number of blocks}) of an objective node; see `forms`."""
  node = forms.complete(objective["model"], "objective.model")
  layer, ours = "encoder.layer.{i}.", "trunk/layers/"
  theirs = {part: f"attention.attention.{part}" for part in ("query", "key", "value")}
  block = [
      *to.norm("layernorm_before", "attention_norm"),
      *to.attention(theirs | {"out": "attention.output.dense"}, "attention", node["heads"], node["attention_bias"]),
      *to.norm("layernorm_after", "mlp_norm"),
      *to.linear("intermediate.dense", "mlp/up"), *to.linear("output.dense", "mlp/down")]
  entries = around(node) + to.under(layer, ours, block)
  if node["rep_dim"]:
    entries += to.linear("pooler.dense", "rep")
  if names is None and not node["rep_dim"]:
    entries = to.under(PREFIX, "", entries)
  if node["classes"]:
    entries += to.linear("classifier", "classifier")
  return entries, {"": node["depth"]}


def around(node):
  """Entries of what stands before and after the trunk, also in DINOv2: tokens, positions, patches, last norm."""
  return [
      to.one("embeddings.cls_token", "class_token", to.reshaped((1, -1), (1, 1, -1))),
      to.Entry("embeddings.position_embeddings", ("class_position", "position"),
               to.class_and_grid(forms.square(node["grid"]), (1, -1))),
      *to.linear("embeddings.patch_embeddings.projection", "patch_embed", to.CONV),
      *to.norm("layernorm", "final_norm")]


def config(pretrained):
  """What config.json says of a model; `forms.Mismatch` where this form cannot say it."""
  path = "objective.model"
  node = forms.complete(pretrained.objective["model"], path)
  pools = "cls" if node["classes"] or node["rep_dim"] else ("cls", "mean")
  wrong = forms.differences(path, node, {**FORM, "pool": pools, "activation": tuple(forms.THEIR_ACTIVATIONS)})
  if node["classes"] and node["rep_dim"]:
    wrong.append(f"{path}.rep_dim = {node['rep_dim']}, it has None before a classifier")
  if wrong:
    raise forms.Mismatch(wrong)
  result = {
      "model_type": "vit", "architectures": ["ViTModel" if node["rep_dim"] else "ViTForImageClassification"],
      "hidden_size": node["width"], "num_hidden_layers": node["depth"], "num_attention_heads": node["heads"],
      "intermediate_size": node["mlp_dim"] or 4 * node["width"],
      "hidden_act": forms.THEIR_ACTIVATIONS[node["activation"]], "layer_norm_eps": node["norm_eps"],
      "image_size": forms.image_size(pretrained, node, path), "patch_size": forms.plain_size(node["patch"]),
      "qkv_bias": node["attention_bias"] == "qkvo"}
  if node["classes"]:
    return result | forms.labels(pretrained, node["classes"])
  return result | ({"pooler_output_size": node["rep_dim"]} if node["rep_dim"] else {"id2label": {}, "label2id": {}})
