"""Fine-tuning: a config that says "pretrained" made explicit, and what the parameters begin as.

A config with `init_from`, the path of a checkpoint, need not know what is in it:

  objective           {"name": "pretrained", ...}         the source's whole objective
  objective.model     {"name": "pretrained", "tower": "image", ...}   one encoder of it
  objective.image     the same, as a tower of a dual encoder; objective.encoder: to go on from there
  transforms          {"name": "pretrained_image"}, {"name": "pretrained_text"}   its preprocessing

Further keys of the first two override the source's; those of "pretrained_image" are `Augment`'s.
`resolve` writes into the config what all this stands for, so nobody who reads the config of a run
needs the source.
"""

import copy
import dataclasses
import logging
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmjax import config as config_lib
from mmjax.checkpoint import digest, partial, paths
from mmjax.checkpoint.checkpointer import CheckpointError
from mmjax.checkpoint.interop.pretrained import ENCODERS, Pretrained, path_of
from mmjax.checkpoint.interop.read import read
from mmjax.config import ConfigError
from mmjax.nn.resample import METHODS

Node = dict[str, Any]
PARTS = ("objective", "data", "eval_data", "evals")  # of a config, in which "pretrained" may stand
MODEL, IMAGE, TEXT = "pretrained", "pretrained_image", "pretrained_text"
RESIZES = ("Resize", "ResizeShort", "CentreCrop", "Letterbox")
# What stands between the pooled features and the result: {a ViT's key: (its keys, its parameters)}.
HEADS = {"rep_dim": (("rep_dim",), "rep"), "out_dim": (("out_dim", "out_bias"), "projection"),
         "classes": (("classes",), "classifier")}

log = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Init:
  """What of `init_from` is taken, and how; see `mmjax.checkpoint.partial.fit`.

  Attributes:
    take, rename, exclude, resample: as in `fit`. Without them `resolve` chooses what goes with the
      model: with `classes` a new classifier on the source's pooled features.
    size: pixels a side of the pictures; default the source's.
    found: what `resolve` has found at `init_from`, for a run that goes on when that is gone.
  """

  take: str = ""
  rename: tuple = ()
  exclude: tuple = ()
  resample: str = "bicubic"
  size: int | None = None
  found: dict | None = None

  def __post_init__(self):
    if self.resample not in METHODS:
      near = config_lib.nearest(self.resample, METHODS)
      raise ValueError(f"resample: no {self.resample!r}{near}")
    if not all(isinstance(rule, (list, tuple)) and len(rule) == 2 for rule in self.rename):
      raise ValueError(f"rename: expected pairs of regex and replacement, not {self.rename!r}")
    for pattern in (*self.exclude, *(rule[0] for rule in self.rename)):
      try:
        re.compile(pattern)
      except (re.error, TypeError) as error:
        raise ValueError(f"{pattern!r} is no regular expression: {error}") from error


def resolve(config: Node) -> Node:
  """`config` with all that says "pretrained" replaced by what the source at `init_from` has there.

  Raises:
    ConfigError: there is no `init_from`, or it has no such tower, transforms or size.
    CheckpointError: what is at `init_from` cannot be read.
  """
  parts = {key: config[key] for key in PARTS if config.get(key)}
  path, given = config.get("init_from"), config.get("init") or {}
  init = config_lib.fields(Init, given, "init")
  if not path and (given or _mentions(parts)):
    raise ConfigError("init_from: is missing; give the checkpoint to start from, a workdir or a "
                      "folder of another format, as in --config.init_from=PATH")
  if not _mentions(parts):
    return config
  source = _as_found(init.found, path) if init.found else read_source(path)
  parts = copy.deepcopy(config_lib.plain(parts))
  parts["objective"], chosen = _objective(parts["objective"], source, init.size)
  for key in PARTS[1:]:
    if key in parts:
      parts[key] = _spelled_out(parts[key], source, init.size, key)
  found = {"objective": source.objective, "image": source.image, "text": source.text}
  return {**config, **parts, "init": {**chosen, **given, "found": config_lib.plain(found)}}


def initial(path: str, init: Node, params: Any) -> tuple[dict[str, np.ndarray], Node]:
  """The tensors with which a run begins, and what provenance.json tells of them.

  Args:
    path, init: of the config.
    params: the run's parameters, or their shapes.

  Returns:
    ({parameter path: array}, {"path", "params": SHA-256 of the source's, as in `mmjax.digest`,
    "taken": number of tensors, "fresh": names of the parameters that keep their initial values}).

  Raises:
    CheckpointError: the source cannot be read, or does not fit, with a +/- table.
  """
  source = read_source(path)
  want = paths.flatten(params)
  tensors = fitted(source, init, want)
  fresh = [name for name in want if name not in tensors]
  told = {"path": path, "params": digest.tree_digest({"params": dict(source.params)})["params"],
          "taken": len(tensors), "fresh": fresh}
  log.info("%d of %d parameters begin as in %s; fresh: %s", len(tensors), len(want), path,
           ", ".join(fresh) or "none")
  return tensors, told


def fitted(source: Pretrained, init: Node, want: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The source's tensors for the parameters `want`, as the config's `init` says."""
  init = config_lib.fields(Init, init, "init")
  try:
    return partial.fit(source.params, want, take=init.take, rename=init.rename,
                       exclude=init.exclude, resample=init.resample)
  except CheckpointError as error:
    raise CheckpointError(f"init_from={source.origin}: {error}") from error


def read_source(path: str) -> Pretrained:
  """The checkpoint at `path`, its errors named for whoever gave `init_from`."""
  try:
    return dataclasses.replace(read(path), origin=path)
  except FileNotFoundError as error:
    raise ConfigError(f"init_from: {error}") from error
  except (ValueError, CheckpointError) as error:
    raise CheckpointError(f"init_from: {error}") from error


def _as_found(found: Node, path: str) -> Pretrained:
  return Pretrained(objective=found["objective"], params={}, image=tuple(found["image"]),
                    text=tuple(found["text"]), origin=path)


def _mentions(node: Any) -> bool:
  if isinstance(node, Mapping):
    return node.get("name") in (MODEL, IMAGE, TEXT) or any(map(_mentions, node.values()))
  return isinstance(node, (list, tuple)) and any(map(_mentions, node))


def _objective(node: Node, source: Pretrained, size: int | None) -> tuple[Node, Node]:
  """The objective spelled out, and the keys of `init` that go with it."""
  theirs = copy.deepcopy(config_lib.plain(source.objective))
  source = source.replace(objective=theirs)
  for key in set(ENCODERS) & set(source.keys()) if size else ():
    source.node(key).update(_with_size(source.node(key), size))
  if node.get("name") == MODEL:
    return merged(theirs, {key: value for key, value in node.items() if key != "name"}), {}
  if not _mentions(node):
    return node, {}
  ours = Pretrained(copy.deepcopy(node), {})
  places = [key for key in set(ENCODERS) & set(ours.keys()) if ours.node(key)["name"] == MODEL]
  if len(places) != 1:
    allowed = ", ".join(f"objective.{key}" for key in ENCODERS)
    raise ConfigError('objective: "pretrained" can only be the name of objective itself or of one '
                      f"of {allowed}; a frozen network says with `from` which checkpoint it is")
  place, asked = places[0], ours.node(places[0])
  overrides = {key: value for key, value in asked.items() if key not in ("name", "tower")}
  try:
    key = source.key(asked.get("tower", "image"))
  except ValueError as error:
    raise ConfigError(f"objective.{place}.tower: {error}") from error
  encoder, exclude = _fresh(source.node(key), overrides)
  chosen = {"take": path_of(key), "exclude": exclude}
  inside = path_of(place)
  if inside:
    chosen["rename"] = [["(.*)", f"{inside}/\\1"]]
    chosen["exclude"] = [f"(?!{inside}/).*", *(f"{inside}/{pattern}" for pattern in exclude)]
  asked.clear()
  asked.update(merged(encoder, overrides))
  return ours.objective, chosen


def _fresh(encoder: Node, overrides: Node) -> tuple[Node, list[str]]:
  """An encoder without what only its old task needs, and regexes of what is not taken from it."""
  encoder, exclude = dict(encoder), []
  if encoder.pop("mask_token", False) != overrides.get("mask_token", False):
    exclude.append("mask_token")
  if "classes" in overrides:
    encoder, heads = _without_head(encoder)
    return encoder, exclude + heads
  changed = lambda key: key in overrides and overrides[key] != encoder.get(key)
  exclude += [f"{module}/.*" for key, (_, module) in HEADS.items() if changed(key)]
  if "map" in (encoder.get("pool", "map"), overrides.get("pool")) and changed("pool"):
    exclude.append("pool/.*")
  return encoder, exclude


def _without_head(encoder: Node) -> tuple[Node, list[str]]:
  """An encoder that ends in pooled features, and regexes of what a new head takes the place of."""
  dropped = {name for keys, _ in HEADS.values() for name in keys}
  exclude = [f"{module}/.*" for key, (_, module) in HEADS.items()
             if key == "classes" or encoder.get(key)]
  return {key: value for key, value in encoder.items() if key not in dropped}, exclude


def _with_size(encoder: Node, size: int) -> Node:
  """An image encoder whose learned positions are those of pictures of `size` pixels a side."""
  if encoder.get("grid") is None:
    return encoder
  patch = encoder.get("patch", 16)
  sides = patch if isinstance(patch, (list, tuple)) else (patch, patch)
  return {**encoder, "grid": [size // side for side in sides]}


def merged(theirs: Node, ours: Node) -> Node:
  """`theirs` with the values of `ours`, node by node; a node with another name takes its place."""
  result = dict(theirs)
  for key, value in ours.items():
    old = theirs.get(key)
    if isinstance(old, dict) and isinstance(value, dict) and (
        value.get("name") in (None, old.get("name"))):
      value = merged(old, value)
    result[key] = value
  return result


def _spelled_out(node: Any, source: Pretrained, size: int | None, path: str) -> Any:
  """`node` with the source's transforms in place of "pretrained_image" and "pretrained_text"."""
  if isinstance(node, dict):
    return {key: _spelled_out(value, source, size, f"{path}.{key}") for key, value in node.items()}
  if not isinstance(node, list):
    return node
  items = []
  for i, item in enumerate(node):
    where, name = f"{path}.{i}", item.get("name") if isinstance(item, dict) else None
    if name == IMAGE:
      items += _image_transforms(item, source, size, where)
    elif name == TEXT:
      config_lib.check_keys(item, ("name",), where)
      items += _required(source.text, "texts", source, where)
    else:
      items.append(_spelled_out(item, source, size, where))
  return [_keep_patches(item) for item in items] if _named(items, "Patchify") else items


def _image_transforms(item: Node, source: Pretrained, size: int | None, path: str) -> list[Node]:
  """The source's; with `augment`, a random crop to the same size and a flip for its resizing."""
  rest = {key: value for key, value in item.items() if key != "name"}
  options = config_lib.fields(Augment, rest, path)
  nodes = _required(source.image, "pictures", source, path)
  nodes = [_resized(node, size, source) for node in nodes]
  resizes = [node for node in nodes if node.get("name") in RESIZES]
  if size and not resizes:
    raise ConfigError(f"init.size: {source.origin} takes pictures of any size; leave it out")
  if not options.augment:
    return nodes
  flip = [{"name": "Flip", "p": options.flip}] if options.flip else []
  if not resizes:  # NaFlex: pictures keep their aspect, and nothing is cut off
    return nodes[:1] + flip + nodes[1:]
  first = nodes.index(resizes[0])
  filters = {"filter": node["filter"] for node in resizes if "filter" in node}
  crop = {"name": "RandomResizedCrop", "size": resizes[-1]["size"], "scale": list(options.scale),
          **filters}
  return nodes[:first] + [crop, *flip] + [node for node in nodes[first:] if node not in resizes]


@dataclasses.dataclass(frozen=True)
class Augment:
  """The keys of "pretrained_image".

  Attributes:
    augment: vary the pictures, for training.
    scale: (low, high) share of the picture that a random crop shows, see `RandomResizedCrop`.
    flip: probability that it is mirrored.
  """

  augment: bool = False
  scale: tuple = (0.5, 1.0)
  flip: float = 0.5


def _resized(node: Node, size: int | None, source: Pretrained) -> Node:
  """A transform for pictures of another size; what is cut off at the borders keeps its share."""
  if not size or node.get("name") not in RESIZES:
    return node
  if node["name"] != "ResizeShort":
    return {**node, "size": size}
  crop = next((n["size"] for n in source.image if n.get("name") == "CentreCrop"), node["size"])
  crop = min(crop) if isinstance(crop, (list, tuple)) else crop
  return {**node, "size": round(node["size"] * size / crop)}


def _required(nodes: tuple, what: str, source: Pretrained, path: str) -> list[Node]:
  if not nodes:
    raise ConfigError(f"{path}: {source.origin} does not say how it prepares {what}; write the "
                      "transforms into the config")
  return copy.deepcopy(config_lib.plain(list(nodes)))


def _keep_patches(item: Node) -> Node:
  """A `Keep` of images that are given as patches keeps what belongs to them."""
  if item.get("name") != "Keep" or "image" not in item["keys"]:
    return item
  return {**item, "keys": [*item["keys"], "image_mask", "image_grid"]}


def _named(items: list, name: str) -> bool:
  return any(isinstance(item, dict) and item.get("name") == name for item in items)
