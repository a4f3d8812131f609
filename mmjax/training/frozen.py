"""Frozen networks inside an objective: teachers, tokenizers of images, guides of masks.

A model node inside `objective` may say which checkpoint its network is:

  {"name": "pretrained", "from": PATH, "tower": "image", ...}   the source says what the network is;
                                                                further keys override it
  {"name": "vit", ..., "from": PATH, "tower": "image"}          the node does; the weights fit it
  {"name": "vit", ..., "from": ""}                              the same; the path is still to come
  {"name": "text", ..., "beside": "target.teacher", "tower": "text"}
                                                                another network of the checkpoint that
                                                                `objective.target.teacher` comes from
  {"name": "vit", ...}                                          random weights, as in dBOT's first
                                                                stage (arXiv:2209.03917)

PATH is a workdir, or a folder of another format, as for `init_from`. `tower` is a key of the
source's objective, such as "tokenizer.encoder"; "image", the default, also finds the only encoder.
`resolve` makes the second form of the first, so that a run's own config says what the network is.
Where a text tower comes from, data must tokenise its captions as the source does.

The network under `objective.a.b` of the config has its parameters in the objective's `state` under
a/b. They are read once, when a run begins; later they come with the run's own checkpoints.
"""

import copy
import dataclasses
import functools
import logging
import operator
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath
import numpy as np

from mmjax import config as config_lib
from mmjax.checkpoint import digest, partial, paths
from mmjax.checkpoint.checkpointer import CheckpointError
from mmjax.checkpoint.interop import workdir
from mmjax.checkpoint.interop.pretrained import Pretrained, path_of, under
from mmjax.checkpoint.interop.read import read
from mmjax.config import ConfigError
from mmjax.data import tokenizers
from mmjax.data.text_transforms import Tokenise
from mmjax.training import pretrained

Node = dict[str, Any]
KEYS = ("from", "tower")  # of a node, beside those of its network
BESIDE = "beside"  # stands for `from`
# What stands between a ViT's tokens and its result: a source may have it where the node does not.
HEADS = ("pool", "rep", "projection", "classifier")

log = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Source:
  """Where a frozen network comes from.

  Attributes:
    path: of a checkpoint; "" as long as it is not given.
    tower: key of the checkpoint's objective, dotted where it is inside another.
  """

  path: str
  tower: str = "image"


def resolve(config: Node) -> Node:
  """`config` with the source's network in place of every "pretrained" that has `from`.

  Raises:
    ConfigError: nothing is at the path, it cannot be read, or it has no such tower.
  """
  if not config.get("objective"):
    return config  # said by whoever checks the top level
  config = {**config, "objective": _each_with_its_own(config["objective"])}
  for place, parent, key in _places(config["objective"]):
    node = parent[key]
    if node.get("name") == pretrained.MODEL:
      source = _source(node, place)
      ours = {name: value for name, value in node.items() if name not in ("name", *KEYS)}
      theirs = copy.deepcopy(config_lib.plain(_tower(_read(source, place), source, place)[0]))
      parent[key] = pretrained.merged(theirs, {**ours, **dataclasses.asdict(source)})
      parent[key]["from"] = parent[key].pop("path")
  return config


def split(objective: Node) -> tuple[Node, dict[str, Source]]:
  """(the objective's node as its constructors know it, {"target.teacher": its Source})."""
  objective, sources = _each_with_its_own(objective), {}
  for place, parent, key in _places(objective):
    sources[place] = _source(parent[key], place)
    parent[key] = {name: value for name, value in parent[key].items() if name not in KEYS}
  return objective, sources


def recall(config: Node, before: Node) -> Node:
  """`config` with what a run's config `before` has spelled out of the same sources."""
  if not config.get("objective"):
    return config  # said by whoever checks the top level
  config = {**config, "objective": _each_with_its_own(config["objective"])}
  known = {place: parent[key] for place, parent, key in _places(before.get("objective") or {})}
  for place, parent, key in _places(config["objective"]):
    node = parent[key]
    same = _source(known.get(place, {"from": None}), place) == _source(node, place)
    if node.get("name") == pretrained.MODEL and same:
      ours = {name: value for name, value in node.items() if name != "name"}
      parent[key] = pretrained.merged(known[place], ours)
  return config


def check(sources: dict[str, Source], state: Any) -> None:
  """Raises ConfigError where an objective's `state` (or its shapes) has no place for a network."""
  for place in sources:
    if not _inside(state, place):
      raise ConfigError(f"objective.{place}.from: this objective keeps no frozen network there; "
                        "what is trained begins as another checkpoint with init_from")


def initial(sources: dict[str, Source], state: Any, tokenise: Sequence[Tokenise] = ()
            ) -> tuple[dict[str, np.ndarray], Node]:
  """What the frozen networks begin as, and what provenance.json tells of them.

  Args:
    sources: of `split`.
    state: the objective's state, or its shapes.
    tokenise: how data read texts.

  Returns:
    ({path in the state: array}, {"target.teacher": {"path", "params": SHA-256 of the source's}}).

  Raises:
    ConfigError: a path is not given, cannot be read, or what is there does not fit; a text tower
      that learned from texts which were tokenised otherwise.
  """
  tensors, told = {}, {}
  for place, source in sources.items():
    if not source.path:
      raise ConfigError(f"objective.{place}.from: is empty; give the checkpoint of this network, "
                        f"as in --config.objective.{place}.from=PATH")
    model = _read(source, place)
    tensors |= _fitted(model, source, _inside(state, place), place)
    if "vocab" in _tower(model, source, place)[0]:
      _check_texts(model, tokenise, place)
    sha = digest.tree_digest({"params": model.params})["params"]
    told[place] = {"path": source.path, "params": sha}
    log.info("objective.%s is frozen, as in %s", place, source.path)
  return tensors, told


def _fitted(model: Pretrained, source: Source, want: dict[str, Any], place: str
            ) -> dict[str, np.ndarray]:
  """The source's tensors under the names of the state."""
  _, key = _tower(model, source, place)
  prefix = f"{place.replace('.', '/')}/"
  have = under(model.params, key.replace(".", "/")) or under(model.params, path_of(key))
  here = epath.Path(source.path)
  if (here / "checkpoints").exists() and want.keys() - {prefix + name for name in have}:
    have |= workdir.read_state(here, key.replace(".", "/"))  # a codebook that is no parameter
  named = {prefix + name: leaf for name, leaf in have.items()}
  heads = tuple(f"{prefix}{head}/" for head in HEADS)
  named = {name: leaf for name, leaf in named.items() if name in want or not name.startswith(heads)}
  try:
    return partial.fit(named, want)
  except CheckpointError as error:
    table = [" ".join(line.split()) for line in str(error).splitlines()[1:]]
    more = f" (and {len(table) - 1} more)" if len(table) > 1 else ""
    raise ConfigError(
        f"objective.{place}.from: the network at {source.path} is not the one that "
        f"objective.{place} describes (-: only there, +: only here, !: not alike): {table[0]}{more}"
    ) from error


def _check_texts(model: Pretrained, tokenise: Sequence[Tokenise], place: str) -> None:
  """Raises ConfigError where data read texts otherwise than a source that says how it does."""
  steps = [node for node in model.text if node["name"] == "Tokenise"]
  known = [Tokenise(**{key: x for key, x in node.items() if key != "name"}) for node in steps]
  for ours in tokenise if known else ():
    theirs = known[0]
    sizes = [tokenizers.load(step.tokenizer).vocab_size for step in (theirs, ours)]
    if sizes[0] != sizes[1]:
      raise ConfigError(
          f"objective.{place}.from: its texts are tokenised by {theirs.tokenizer!r} ({sizes[0]} ids), "
          f"those of data by {ours.tokenizer!r} ({sizes[1]} ids); take the same, as in "
          f"--config.data.tokenizer={theirs.tokenizer}")
    for key in ("bos", "eos"):
      if getattr(ours, key) != getattr(theirs, key):
        raise ConfigError(f"objective.{place}.from: its texts are tokenised with {key}="
                          f"{getattr(theirs, key)}, those of data with {key}={getattr(ours, key)}; "
                          "give the Tokenise of data the same")


def _each_with_its_own(objective: Node) -> Node:
  """A copy of the objective's node in which no network names another's source by `beside`."""
  objective = copy.deepcopy(config_lib.plain(objective))
  for place, parent, key in _places(objective, BESIDE):
    parent[key] = node = dict(parent[key])
    where = config_lib.check(node.pop(BESIDE), str | None, f"objective.{place}.{BESIDE}")
    if where is None:
      continue
    if "from" in node:
      raise ConfigError(f"objective.{place}.from: comes from where objective.{where} does; leave "
                        f"it out, or say {BESIDE}=None")
    try:
      other = functools.reduce(operator.getitem, where.split("."), objective)
    except (KeyError, TypeError):
      raise ConfigError(f"objective.{place}.{BESIDE}: there is no objective.{where}") from None
    if "from" in other:
      node["from"] = other["from"]
    else:
      node.pop("tower", None)  # random weights, like the other's
  return objective


def _inside(state: Any, place: str) -> dict[str, Any]:
  prefix = f"{place.replace('.', '/')}/"
  return {name: leaf for name, leaf in paths.flatten(state).items() if name.startswith(prefix)}


def _source(node: Node, place: str) -> Source:
  path = config_lib.check(node["from"], str | None, f"objective.{place}.from")
  tower = config_lib.check(node.get("tower", "image"), str, f"objective.{place}.tower")
  return Source(path or "", tower)


def _tower(model: Pretrained, source: Source, place: str) -> tuple[Node, str]:
  """The source's network and its key."""
  try:
    key = model.key(source.tower)
  except ValueError as error:
    raise ConfigError(f"objective.{place}.tower: {error}") from error
  return model.node(key), key


def _read(source: Source, place: str) -> Pretrained:
  """The checkpoint of a network, its errors named for whoever gave `from`."""
  if not source.path:
    raise ConfigError(f"objective.{place}.from: is empty, so nothing says what network this is; "
                      "give a checkpoint")
  try:
    return dataclasses.replace(read(source.path), origin=source.path)
  except (FileNotFoundError, ValueError, CheckpointError) as error:
    raise ConfigError(f"objective.{place}.from: {error}") from error


def _places(node: Any, mark: str = "from", path: str = "") -> Iterator[tuple[str, Any, Any]]:
  """(dotted path, what holds it, its key there) of every node below `node` that has `mark`."""
  items = dict(enumerate(node)) if isinstance(node, list) else node
  for key, value in list(items.items() if isinstance(items, dict) else ()):
    place = f"{path}.{key}" if path else str(key)
    if isinstance(value, dict) and mark in value:
      yield place, node, key
    else:
      yield from _places(value, mark, place)
