"""Folders of Hugging Face transformers: config.json, safetensors, tokenizer and image processor."""

import json
import math
import pathlib
import re

import numpy as np

from mmjax.checkpoint.interop import (
    forms, hf_clip, hf_convnext, hf_dinov2, hf_dinov3, hf_siglip, hf_vit, layout, processing, processing_write, shapes,
    tensors)
from mmjax.checkpoint.interop.pretrained import Pretrained

# Of each image model; tried in this order when it is written: the first that can express it.
ONE_TOWER = {"vit": (hf_clip, hf_siglip, hf_vit, hf_dinov2, hf_dinov3), "convnext": (hf_convnext,)}
FORMS = {"contrastive": {"vit": (hf_clip, hf_siglip)}, "classification": ONE_TOWER, "encoder": ONE_TOWER}


def read(folder: pathlib.Path) -> Pretrained:
  """The model in a folder, and what its inputs go through.

  Raises:
    ValueError: a kind of model that mmjax has not, or files that do not agree with each other.
  """
  file = folder / "config.json"
  config = _json(file)
  form = _form(config, file)
  found, weights = tensors.read_folder(folder, ("model", "pytorch_model"))
  found = {_renamed(name, form.RENAMES): x for name, x in found.items() if x.size}
  try:
    objective = form.objective(config, found.keys())
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from error
  except (KeyError, TypeError) as error:
    raise ValueError(f"{file}: is not a config of {config['model_type']} ({type(error).__name__}: {error})"
                     ) from error
  skip = re.compile(form.unused(objective) if hasattr(form, "unused") else form.UNUSED)
  entries, depths = form.layout(objective, found.keys())
  params = layout.read(entries, found, depths, unused=lambda name: bool(skip.fullmatch(name)), where=str(weights))
  shapes.check(objective, params, str(weights))
  image = objective.get("model") or objective["image"]
  text = processing.read_text(folder, config.get("text_config")) if "text" in objective else ()
  transforms = processing.read_image(folder, image.get("patch"))
  if not transforms and hasattr(form, "default_transforms"):
    transforms = form.default_transforms(config["model_type"], image)
  return Pretrained(
      objective=objective, params=params, image=transforms, text=text,
      labels=_labels(config) if image.get("classes") else (), eos_id=objective.get("text", {}).get("eos_id"),
      origin=str(folder))


def write(model: Pretrained, folder: pathlib.Path) -> str:
  """Writes `model` as a folder that transformers opens; returns the name of its class there.

  Raises:
    ValueError: no form can express the model; says for each what is in the way.
    FileExistsError: there is something else in the folder.
  """
  form, model, config = _expressed(model)
  kernel = next(x for name, x in model.params.items() if name.endswith("patch_embed/kernel"))  # [h, w, C, D]
  config.get("vision_config", config)["num_channels"] = kernel.shape[2]
  entries, _ = form.layout(model.objective)
  found = layout.write(entries, _bounded(model))
  if hasattr(form, "extra_tensors"):
    found |= form.extra_tensors(model.objective)
  if folder.exists() and any(folder.iterdir()):
    raise FileExistsError(f"{folder}: is not empty; give a new folder")
  folder.mkdir(parents=True, exist_ok=True)
  kind = config["model_type"].removesuffix("_vision_model")
  try:  # first, since it writes nothing where a transform has no counterpart
    processing_write.write(folder, model.image, model.text, kind, config)
  except ValueError:
    folder.rmdir()
    raise
  tensors.write_safetensors(folder / "model.safetensors", found)
  (folder / "config.json").write_text(json.dumps({**config, "dtype": "float32"}, indent=2, sort_keys=True) + "\n")
  return config["architectures"][0]


def _bounded(model):
  """The parameters, the logit scale no larger than the model lets it be: theirs has no bound."""
  bound = model.objective.get("scale_max")
  if bound is None:
    return model.params
  return {**model.params, "logit_scale": np.minimum(model.params["logit_scale"], np.float32(math.log(bound)))}


def _expressed(model):
  """(form, the model as the form wants it, config.json's content)."""
  reasons, way_out = [], _way_out(model.objective["name"])
  for form in _candidates(model):
    try:
      model = forms.with_table(model)
      config = form.config(model)
    except forms.Mismatch as error:
      reasons.append((len(error.lines), f"  {form.MODEL_TYPES[0]}: " + "; ".join(error.lines)))
      continue
    return form, (form.prepared(model) if hasattr(form, "prepared") else model), config
  lines = "\n".join(line for _, line in sorted(reasons)[:3])
  raise ValueError(f"{model.origin}: no model of transformers has this form{way_out}; nearest:\n{lines}")


def _candidates(model):
  """Forms of the model's kind.

  Raises:
    ValueError: there are none; one line.
  """
  objective, name = model.objective, model.objective["name"]
  here, no_counterpart = f"{model.origin}: objective", "has no counterpart in transformers; what has one:"
  if name not in FORMS:
    raise ValueError(f"{here}.name = {name!r} {no_counterpart} {', '.join(FORMS)}{_way_out(name)}")
  key = "image" if name == "contrastive" else "model"
  image = objective[key].get("name")
  if image not in FORMS[name]:
    raise ValueError(f"{here}.{key}.name = {image!r} {no_counterpart} {', '.join(FORMS[name])}{_way_out(name)}")
  try:
    forms.complete(objective[key], f"objective.{key}", image)
  except forms.Mismatch as error:  # whatever the form
    raise ValueError(f"{model.origin}: {error}{_way_out(name)}") from error
  return FORMS[name][image]


def _way_out(name):
  if name == "encoder":
    return " (for mmjax.load and init_from: mmjax convert --format=mmjax)"
  return " (its encoder alone may have one: mmjax convert --encoder)"


def _form(config, file):
  kind, known = config.get("model_type"), [form for some in ONE_TOWER.values() for form in some]
  for form in known:
    if kind in form.MODEL_TYPES:
      return form
  if str(kind).endswith("_text_model"):
    raise ValueError(f"{file}: model_type = {kind!r} is a text tower alone, which is no model here; take the folder "
                     "of both towers")
  names = ", ".join(name for form in known for name in form.MODEL_TYPES)
  raise ValueError(f"{file}: model_type = {kind!r} is not known here (known: {names})")


def _renamed(name, renames):
  for pattern, replacement in renames:
    name = re.sub(pattern, replacement, name)
  return name


def _labels(config):
  names = config.get("id2label") or {}
  return tuple(names[key] for key in sorted(names, key=int))


def _json(file):
  try:
    content = json.loads(file.read_text())
  except ValueError as error:
    raise ValueError(f"{file}: is not JSON ({error})") from error
  if not isinstance(content, dict):
    raise ValueError(f"{file}: holds a {type(content).__name__}, not the config of a model")
  return content
