"""`data.train` and `data.eval`: the user's own data in any recipe, in place of those it comes with.

  --config.data.train=SPEC      what to train on; SPEC as in `mmjax/data/spec.py`
  --config.data.eval=SPEC       what to evaluate on; by default a part of SPEC that is then left out of
                                training: 5%, at most 5,000 records
  --config.data.tokenizer=PATH  of the captions, in training and evaluation

`resolve` writes into the config what these stand for: the recipe's transforms stay, its sources are
replaced. The records need what the recipe reads: `image`, and `caption` or `label`; some read `depth` and
`semantic`, or `video`.
"""

import copy
import logging
from typing import Any

from mmjax import config as config_lib
from mmjax.config import ConfigError
from mmjax.data import spec as spec_lib
from mmjax.training import labels

Node = dict[str, Any]
KEYS = ("train", "eval", "tokenizer")
BUILT_IN = ("colour", "shape", "colour_shape", "moves")  # labels of the built-in data that nobody else's have
_log = logging.getLogger("mmjax")


def resolve(config: Node) -> Node:
  """`config` with explicit sources in place of `data.train`, `data.eval` and `data.tokenizer`.

  Raises:
    ConfigError: a SPEC that leads nowhere.
  """
  data = config.get("data")
  if not isinstance(data, dict) or not set(KEYS) & set(data):
    return config
  config = copy.deepcopy(config_lib.plain(config))
  train, held_out, tokenizer = (config["data"].pop(key, None) for key in KEYS)
  sources = {name: _parse(text, f"data.{name}") for name, text in (("train", train), ("eval", held_out))
             if text is not None}
  if train is not None and held_out is None and "part" not in sources["train"]:
    sources["eval"] = {**sources["train"], "part": "[held_out]"}
    sources["train"]["part"] = "[train]"
    _log.info("data.eval: is not given; 5% of the records, at most 5,000, are left out of training for it")
  objective, evals = config.get("objective") or {}, config.get("evals") or {}
  labelled = objective.get("label") in BUILT_IN or any(_reads_built_in(node or {}) for node in evals.values())
  if train is not None:
    config["data"] = _with_source(config["data"], sources["train"], "data", labelled)
  if "eval" in sources:
    if config.get("eval_data"):
      config["eval_data"] = _with_source(config["eval_data"], sources["eval"], "eval_data", labelled)
    config["evals"] = _evaluators(evals, sources["eval"], labelled)
  if train is not None and objective.get("label") in BUILT_IN:
    objective["label"] = "label"
    if isinstance(objective.get("model"), dict) and "classes" in objective["model"]:
      objective["model"]["classes"] = labels.COUNT
  if tokenizer is not None:
    for part in ("data", "eval_data", "evals"):
      _tokenise(config.get(part), tokenizer)
  return config


def _parse(text, path):
  if not isinstance(text, str):
    raise ConfigError(f"{path}: expected a text such as pets/train or shards/*.tar, not {text!r}")
  try:
    return spec_lib.parse(text)
  except (ValueError, OSError) as error:
    raise ConfigError(f"{path}: {error}") from error


def _reads_built_in(evaluator):
  """Whether it reads labels of the built-in data from the run's evaluation data, where `label` takes their place."""
  return evaluator.get("label") in BUILT_IN and not {"train", "data"} & set(evaluator)


def _with_source(node, source, path, labelled):
  """A stream's node with another source; of a mixture the first part says how records are read."""
  parts = node.pop("mixture", None)
  node.pop("temperature", None)
  if parts:
    if len({repr(part.get("transforms")) for part in parts.values()}) > 1:
      _log.warning("%s.mixture: is replaced by one stream, read as %r is", path, next(iter(parts)))
    first = {key: value for key, value in next(iter(parts.values())).items() if key != "weight"}
    node = {**first, **node}
  transforms = [_without_built_in(step, labelled) for step in node.get("transforms", ())]
  return {**node, "source": source, "transforms": transforms}


def _without_built_in(step, labelled):
  """What is kept of a record, without labels that only the built-in data have; with `label` if one is read."""
  keys = step.get("keys")
  if step.get("name") != "Keep" or not set(BUILT_IN) & set(keys):
    return step
  kept = [key for key in keys if key not in BUILT_IN]
  return {**step, "keys": [*kept, "label"] if labelled else kept}


def _evaluators(nodes, source, labelled):
  """Those that can read the user's records; the others are left out, and it is told."""
  kept, left_out = {}, []
  for name, node in nodes.items():
    node = node or {}
    if "train" in node or (node.get("label") in BUILT_IN and "data" in node):
      left_out.append(name)  # of labels that the user's records do not have
      continue
    kept[name] = {**node, "label": "label"} if node.get("label") in BUILT_IN else node
    for key in ("data", "reference"):
      if isinstance(node.get(key), dict):
        kept[name] = {**kept[name], key: _with_source(node[key], source, f"evals.{name}.{key}", labelled)}
  if left_out:
    _log.info("evals: left out, for they read labels of the built-in data: %s", ", ".join(left_out))
  return kept


def _tokenise(node, tokenizer):
  """Replaces the tokenizer of every `Tokenise` in a part of the config, in place."""
  if isinstance(node, dict):
    if node.get("name") == "Tokenise":
      node["tokenizer"] = tokenizer
    for value in node.values():
      _tokenise(value, tokenizer)
  elif isinstance(node, list):
    for value in node:
      _tokenise(value, tokenizer)
