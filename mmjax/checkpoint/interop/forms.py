"""What the Hugging Face forms share: names of activations, checks of what a form can express.

A form is a module here, `hf_<family>.py`, with
  MODEL_TYPES         what stands as "model_type" in a config.json
  RENAMES             [(regex, replacement)] that bring names of other library versions to those used here
  UNUSED              regex of tensors without a place in ours (mask tokens, tables of constants)
  objective(config, names)     config.json and the tensors' names -> our objective node
  layout(objective, names)     -> (entries, {their prefix: depth}); `names` of the file, None when writing
  config(pretrained)           -> config.json's content; raises Mismatch where the form cannot express it
and where it needs them: unused(objective) in place of UNUSED; prepared(pretrained), the same model as the
form says it, after `config`; extra_tensors(objective), tensors that the
form wants beside ours; default_transforms(model_type, node), of a folder that names none
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax.checkpoint.interop.pretrained import Node
from mmjax.models.convnext import ConvNeXt
from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT
from mmjax.nn.positions import sincos_2d

ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh",
               "gelu_fast": "gelu_tanh", "quick_gelu": "quick_gelu", "relu": "relu", "silu": "silu",
               "swish": "silu", "gelu_python": "gelu", "gelu_python_tanh": "gelu_tanh", "gelu_accurate": "gelu_tanh"}
THEIR_ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_pytorch_tanh", "quick_gelu": "quick_gelu",
                     "relu": "relu", "silu": "silu"}
FIELDS = {"vit": ViT, "convnext": ConvNeXt, "text": TextTransformer}


class Mismatch(ValueError):
  """A model that a form cannot express; the lines say what would have to be different."""

  def __init__(self, lines):
    self.lines = tuple(lines)
    super().__init__("; ".join(self.lines))


def complete(node: Node, path: str, name: str = "vit") -> Node:
  """The node of a model, one of `FIELDS`, with its defaults filled in.

  Raises:
    Mismatch: it is of another model, or does what no form can say.
  """
  if node.get("name") != name:
    raise Mismatch([f"{path}.name = {node.get('name')!r}, it has {name!r}"])
  if node.get("tokenizer"):
    raise Mismatch([f"{path}.tokenizer: makes ids of pictures first, which no model there does"])
  if isinstance(node.get("patch"), (list, tuple)) and len(node["patch"]) > 2:
    raise Mismatch([f"{path}.patch = {list(node['patch'])}, of clips, but only models of pictures are written"])
  defaults = {f.name: f.default for f in dataclasses.fields(FIELDS[name])
              if f.name not in ("parent", "name")}
  return {**defaults, **node}


def differences(path: str, node: Node, wanted: Mapping[str, Any]) -> list[str]:
  """A line for each field of a complete `node` that is not as `wanted`, a value or a tuple of them."""
  lines = []
  for key, value in wanted.items():
    allowed = value if isinstance(value, tuple) else (value,)
    if node[key] not in allowed:
      lines.append(f"{path}.{key} = {node[key]!r}, it has {' or '.join(map(repr, allowed))}")
  return lines


def activation(name: str, where: str) -> str:
  """Our name of their activation.

  Raises:
    ValueError: there is none.
  """
  if name not in ACTIVATIONS:
    raise ValueError(f"{where}.hidden_act = {name!r} is unknown (known: {', '.join(ACTIVATIONS)})")
  return ACTIVATIONS[name]


def square(value: Any) -> tuple[int, int]:
  """(height, width) of a number or a pair."""
  return (value, value) if isinstance(value, int) else tuple(value)


def grid(image_size: Any, patch: Any) -> list[int]:
  """[rows, columns] of whole patches in an image."""
  return [size // step for size, step in zip(square(image_size), square(patch))]


def one_number(value: Any, path: str) -> int:
  """The side of a square.

  Raises:
    Mismatch: it is not one.
  """
  height, width = square(value)
  if height != width:
    raise Mismatch([f"{path} = {value!r}, it must be square"])
  return height


def plain_size(size: Any) -> int | list[int]:
  """A size as configs write it: the side of a square, or [height, width]."""
  height, width = square(size)
  return height if height == width else [height, width]


def seen_size(pretrained) -> tuple[int, int] | None:
  """(height, width) that the transforms give an image; None if they give none."""
  return next((square(step["size"]) for step in reversed(pretrained.image) if "size" in step), None)


def image_size(pretrained, node: Node, path: str) -> int | list[int]:
  """Pixels of an image, which their configs want: of the grid of positions, else of the transforms.

  Images that end in partial patches are of that grid, and larger than it; some of their models accept only
  images of the very size that the config says.
  """
  seen = seen_size(pretrained)
  if node.get("grid"):
    if seen is None or grid(seen, node["patch"]) != list(node["grid"]):
      seen = [count * side for count, side in zip(node["grid"], square(node["patch"]))]
  if seen is None:
    raise Mismatch([f"{path}.grid is not there, and no transform says how large images are"])
  return plain_size(seen)


def with_table(pretrained):
  """The same model with its sine-cosine positions as a table, as learned ones are, and with a position of zero for
  a class token that has none; other models as they are.

  Raises:
    Mismatch: no transform says for how large images.
  """
  path, node, params = "objective.model", pretrained.objective.get("model"), dict(pretrained.params)
  if not isinstance(node, dict) or node.get("name") != "vit":
    return pretrained
  node = complete(node, path)
  if node["position"] in ("sincos", "sincos_endpoint"):
    counts = tuple(grid(image_size(pretrained, node, path), node["patch"]))
    table = sincos_2d(counts, node["width"], endpoint=node["position"] == "sincos_endpoint")
    params["position"] = np.asarray(table).reshape(*counts, -1)
    node |= {"position": "learned", "grid": list(counts)}
  if node["position"] == "learned" and node["class_token"] and not node["class_position"]:
    params["class_position"] = np.zeros((1, node["width"]), np.float32)
    node["class_position"] = True
  return pretrained.replace(objective={**pretrained.objective, "model": node}, params=params)


def image_side(pretrained, node: Node, path: str) -> int:
  """As `image_size`, where only squares are possible."""
  return one_number(image_size(pretrained, node, path), f"the image size that {path}.grid gives")


def labels(pretrained, classes: int) -> Node:
  """id2label and label2id of `classes` classes, with their names where they are known."""
  names = pretrained.labels or tuple(f"LABEL_{i}" for i in range(classes))
  return {"id2label": {str(i): name for i, name in enumerate(names)},
          "label2id": {name: i for i, name in enumerate(names)}}
