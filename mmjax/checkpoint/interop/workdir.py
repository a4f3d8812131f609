"""A workdir of mmjax as a checkpoint like any other, and back: a folder that holds a model and no run."""

import contextlib
import copy
import json
import re
from collections.abc import Iterable
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp

from mmjax.checkpoint import paths
from mmjax.checkpoint.checkpointer import Checkpointer, CheckpointError
from mmjax.checkpoint.interop.pretrained import ENCODERS, Node, Pretrained, under
from mmjax.data import tokenizers
from mmjax.data.view_transforms import MultiCrop

HERE = "{workdir}"  # in a converted workdir's config: where it lies, so that it can be moved
# config.json says of which class the tokenizer is.
TOKENIZER_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                   "vocab.json", "merges.txt", "spiece.model")
# In the objective's state, parts of the network that its encoder is in.
STATE = tuple(f"state/{key.partition('.')[0]}/" for key in ENCODERS)
AVERAGE = "teachers/ema/"  # of all parameters, which is what evaluators use where a run keeps it
TEACHER = re.compile("teachers/(?:teacher/)?(encoder/.*)")  # an EMA of the encoder, alone or with its heads
# What a picture goes through where nothing is drawn at random, and what stands for a random crop there.
IMAGE = ("Decode", "ToFloat", "Resize", "ResizeShort", "CentreCrop", "Letterbox", "CropToPatches", "Patchify",
         "Normalise")
VIEWS = ("global_views", "local_views")  # what `MultiCrop` makes of a picture


def read(path: epath.Path, step: int | None = None) -> Pretrained:
  """The model of a run: its averaged parameters where it keeps an average, else the parameters.

  Where the objective has an EMA teacher of its `encoder`, that stands in the encoder's place, as it does for
  evaluators; not with `eval_with` = "student". A frozen network inside an encoder is this run's, wherever the
  run has it from: its node says so.

  Raises:
    FileNotFoundError: there is no checkpoint (or not of `step`).
    CheckpointError: the checkpoint is damaged.
  """
  config = json.loads((path / "config.json").read_text())
  flat = paths.flatten(_restored(str(path / "checkpoints"), step))
  prefix = AVERAGE if any(name.startswith(AVERAGE) for name in flat) else "params/"
  params = {name.removeprefix(prefix): x for name, x in flat.items() if name.startswith(prefix)}
  state = under(flat, "state")
  if config["objective"].get("eval_with") != "student":
    params |= {match[1]: x for name, x in flat.items() if (match := TEACHER.fullmatch(name))}
  image, text = transforms(config)
  text = tuple({**node, "tokenizer": node["tokenizer"].replace(HERE, str(path))} for node in text)
  return Pretrained(
      objective=_with_sources(config["objective"], state, str(path)), params=params, state=state, image=image, text=text,
      labels=tuple(config.get("labels") or ()), eos_id=_eos(text), origin=str(path))


def _with_sources(objective: Node, state: dict[str, Any], path: str) -> Node:
  """The objective whose encoder's frozen networks, those of which `state` has tensors, come from `path`."""
  objective = copy.deepcopy(objective)
  model = Pretrained(objective, {})
  for key in set(ENCODERS) & set(model.keys()):
    for name, value in model.node(key).items():
      if isinstance(value, dict) and "name" in value and under(state, f"{key.replace('.', '/')}/{name}"):
        value |= {"from": path, "tower": f"{key}.{name}"}
  return objective


def read_state(path: epath.Path, part: str) -> dict[str, Any]:
  """{path: array} of one part of the objective's own state in a run's newest checkpoint, such as a codebook."""
  prefix = f"state/{part}/"
  with contextlib.closing(Checkpointer(str(path / "checkpoints"), read_only=True)) as checkpointer:
    tree, _ = checkpointer.restore_as_saved(only=(prefix,))
  return {name.removeprefix(prefix): x for name, x in paths.flatten(tree).items()}


def _restored(folder, step):
  """Parameters, their averages, and parts of the state. A run that goes on may remove a checkpoint that is just being
  read; it then has a newer one."""
  with contextlib.closing(Checkpointer(folder, read_only=True)) as checkpointer:
    newest = checkpointer.latest()
    try:
      return checkpointer.restore_as_saved(step, only=("params/", "teachers/", *STATE))[0]
    except (CheckpointError, ValueError):
      if step is not None or checkpointer.latest() == newest:
        raise
  return _restored(folder, None)


def write(model: Pretrained, path: epath.Path) -> None:
  """Writes `model` as a workdir without a run: `mmjax.load`, `init_from` and `mmjax convert` read it.

  Raises:
    FileExistsError: there is something else in the folder.
  """
  if path.exists() and any(path.iterdir()):
    raise FileExistsError(f"{path}: is not empty; give a new folder")
  path.mkdir(parents=True, exist_ok=True)
  text = [{**node, "tokenizer": _take_along(node["tokenizer"], path)} if "tokenizer" in node else node
          for node in model.text]
  config = {"objective": model.objective, "labels": list(model.labels), "converted_from": model.origin,
            "eval_data": {"transforms": [*model.image, *text]}}
  (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
  with contextlib.closing(Checkpointer(str(path / "checkpoints"))) as checkpointer:
    parts = {"params": model.params, **({"state": model.state} if model.state else {})}
    checkpointer.save(0, jax.tree.map(jnp.asarray, {part: paths.nest(x) for part, x in parts.items()}))


def _take_along(tokenizer: str, path: epath.Path) -> str:
  """Copies the files of a tokenizer into the workdir; returns what names it there."""
  source = epath.Path(tokenizer)
  if not source.exists():  # a name such as "scenes"
    return tokenizer
  files = [source / name for name in TOKENIZER_FILES] if source.is_dir() else [source]
  (path / "tokenizer").mkdir(exist_ok=True)
  for file in files:
    if file.exists():
      file.copy(path / "tokenizer" / file.name)
  return f"{HERE}/tokenizer" if source.is_dir() else f"{HERE}/tokenizer/{source.name}"


def transforms(config: Node) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
  """(image nodes, text nodes) of a run's config: what its evaluation stream does, or else its training data."""
  streams = [node for key in ("eval_data", "data") for node in _streams(config.get(key))]
  image, text = (), ()
  for stream in streams:
    nodes = stream.get("transforms") or ()
    image = image or tuple(_plain(nodes))
    text = text or tuple({**node, "key": "caption"} if node.get("key") else node
                         for node in nodes if node.get("name") == "Tokenise")
  return image, text


def _streams(node: Any) -> Iterable[Node]:
  if not node:
    return []
  return [node] if "mixture" not in node else [part for _, part in sorted(node["mixture"].items())]


def _plain(nodes):
  """Of `nodes` those of `IMAGE`; the whole picture stands for a random crop of it, and for its views."""
  for node in nodes:
    keys = {*([node["key"]] if isinstance(node.get("key"), str) else node.get("key") or ())}
    if node.get("name") in IMAGE and keys & {*VIEWS}:
      if VIEWS[0] in keys:
        yield {key: value for key, value in node.items() if key != "key"}
    elif node.get("name") in IMAGE:
      yield node
    elif node.get("name") == "MultiCrop":
      yield {"name": "Resize", "size": node.get("global_size", MultiCrop.global_size),
             "filter": node.get("filter", MultiCrop.filter)}
    elif node.get("name") == "RandomResizedCrop":
      yield {"name": "Resize", **{key: node[key] for key in ("size", "filter") if key in node}}


def _eos(text):
  for node in text:
    if node.get("eos", True):
      return tokenizers.load(node["tokenizer"]).eos_id
  return None
