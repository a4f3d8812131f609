"""Configs: load, override, validate, and turn into objects.

A config is a tree of plain values. A node with a `name` becomes an object: the name is a file in a
folder (`objective.name = "contrastive"` is `mmjax/objectives/contrastive.py`, whose `build` is
called), a class or function in a file (`Resize` in `mmjax/data/transforms.py`), or a dotted path to
the user's own. The keys beside `name` are that callable's arguments: its signature is the schema,
so an unknown key is an error with a suggestion.
"""

import ast
import difflib
import importlib
import importlib.util
import inspect
import json
import pathlib
import pkgutil
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import ml_collections

Node = dict[str, Any]
HOME = pathlib.Path(__file__).resolve().parent.parent  # holds mmjax/ and configs/, installed or not

UNITS = ("steps", "examples", "epochs", "percent")  # of any duration
FROM_START = ("total", "warmup")  # durations that begin with the run, so that their rows are known

# Where a nested node with a `name` is looked up: by its key, else by the place of the node around it.
NESTED_KEYS = {"mask": "mmjax.masking", "target": "mmjax.targets",
               "stages": "mmjax.generate.any_to_any"}
NESTED = {"mmjax.objectives": "mmjax.models", "mmjax.targets": "mmjax.models",
          "mmjax.evals": "mmjax.data.transforms"}

PLAIN = {bool, int, float, str, tuple, list, dict, types.NoneType}  # kinds of values in a config
KIND_NAMES = {types.NoneType: "None", tuple: "list", Mapping: "dict", Sequence: "list"}


class ConfigError(ValueError):
  """A config that cannot be used: one line that names the path in the config and what to do."""

  def __init__(self, message: str):
    super().__init__(" ".join(message.split()))  # what libraries say may have several lines


def load(spec: str, overrides: Mapping[str, str] | None = None) -> Node:
  """The config of `path/to/file.py[:arg]` or of a shipped name such as `contrastive/siglip[:arg]`.

  Args:
    spec: what `--config` holds; `arg` goes to the file's `get_config(arg)`.
    overrides: {"optim.lr": "3e-4"}, see `override`.

  Raises:
    ConfigError: no such file or variant, or the file does not give a config.
  """
  name, _, arg = spec.partition(":")
  module = _config_module(name)
  if not hasattr(module, "get_config"):
    raise ConfigError(f"--config={name}: the file defines no get_config(arg)")
  try:
    config = module.get_config(arg or None)
  except (KeyError, ValueError, AttributeError, TypeError) as error:
    raise ConfigError(f"--config={spec}: {error}") from error
  config = plain(config)
  if not isinstance(config, dict):
    raise ConfigError(f"--config={spec}: get_config gave {config!r}, which is no ConfigDict")
  for path, text in (overrides or {}).items():
    override(config, path, text)
  return config


def shipped() -> list[str]:
  """Names of the configs that come with mmjax, such as `contrastive/siglip`."""
  root = HOME / "configs"
  return sorted(str(p.relative_to(root).with_suffix("")) for p in root.glob("*/*.py"))


def _config_module(name: str) -> types.ModuleType:
  candidates = [pathlib.Path(name), HOME / "configs" / f"{name}.py", HOME / name]
  file = next((p for p in candidates if p.suffix == ".py" and p.is_file()), None)
  if file is None:
    short = name.removeprefix("configs/").removesuffix(".py")
    raise ConfigError(f"--config={name}: no such file or shipped config{nearest(short, shipped())}")
  if str(HOME) not in sys.path:  # `from configs import common`
    sys.path.append(str(HOME))
  spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
  except (SyntaxError, ImportError, NameError) as error:
    raise ConfigError(f"--config={name}: {type(error).__name__}: {error}") from error
  return module


def plain(value: Any) -> Any:
  """ConfigDicts as dicts and tuples as lists, all the way down: what JSON can hold."""
  if isinstance(value, ml_collections.FieldReference):
    return plain(value.get())
  if isinstance(value, ml_collections.ConfigDict):
    return {key: plain(value[key]) for key in value}
  if isinstance(value, Mapping):
    return {str(key): plain(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(item) for item in value]
  return value


def override(config: Node, path: str, text: str) -> None:
  """Sets `config` at a dotted path from text, in place; a number addresses an item of a list.

  See `parse` for the text. Keys and nodes that the config does not have yet are made: whether they
  mean anything is seen when it is built.

  Raises:
    ConfigError: the path leads through a plain value, or to an item that a list does not have.
  """
  *parents, last = path.split(".")
  node: Any = config
  for depth, key in enumerate(parents):
    where = ".".join(parents[:depth + 1])
    if isinstance(node, dict) and node.get(key) is None:
      node[key] = {}
    node = _item(node, key, where) if isinstance(node, list) else node[key]
    if not isinstance(node, (dict, list)):
      rest = path[len(where) + 1:]
      raise ConfigError(f"{where}: is the value {node!r}, so it has no key {rest!r}")
  if isinstance(node, list):
    node[int(last)] = parse(text, _item(node, last, path))
  else:
    for other in _other_units(last):  # total_steps=100 takes the place of total_epochs
      node.pop(other, None)
    node[last] = parse(text, node.get(last))


def _other_units(key: str) -> list[str]:
  stem, _, unit = key.rpartition("_")
  return [f"{stem}_{other}" for other in UNITS if other != unit] if stem and unit in UNITS else []


def _item(items: list, index: str, where: str) -> Any:
  if not (index.isdecimal() and int(index) < len(items)):
    raise ConfigError(f"{where}: no such item; the list has {len(items)}, counted from 0")
  return items[int(index)]


def parse(text: str, old: Any = None) -> Any:
  """The value that `text` stands for, in place of `old`.

  A Python literal, `true`, `false` or `null`; anything else is a string. In place of a string all
  is a string except `None`.
  """
  if text in ("None", "null"):
    return None
  if isinstance(old, str):
    return text
  if text.lower() in ("true", "false"):
    return text.lower() == "true"
  try:
    value = plain(ast.literal_eval(text))
  except (ValueError, SyntaxError):
    return text
  return float(value) if isinstance(old, float) and type(value) is int else value


def nearest(name: str, known: Iterable[str]) -> str:
  """The tail of an error message: the valid name closest to `name`, and the others."""
  known = sorted(set(known))
  if not known:
    return "; nothing is known here"
  best = difflib.get_close_matches(name, known, 1, cutoff=0.5)
  hint = f"; did you mean {best[0]!r}?" if best else ""
  return f"{hint} (valid: {', '.join(known[:24])}{', ...' if len(known) > 24 else ''})"


def find(place: str, name: str, path: str) -> Any:
  """The callable that `name` stands for in `place`, a package of files or a module of callables.

  Raises:
    ConfigError: nothing there has that name, or the user's module cannot be imported.
  """
  if not isinstance(name, str):
    raise ConfigError(f"{path}.name: expected a name in {place}, not {name!r}")
  if "." in name:
    return _users_own(name, path)
  module = importlib.import_module(place)
  if not hasattr(module, "__path__"):
    known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")
             and getattr(v, "__module__", "").startswith("mmjax.")]
    if name not in known:
      raise ConfigError(f"{path}.name: no {name!r} in {place}{nearest(name, known)}")
    return getattr(module, name)
  known = [info.name for info in pkgutil.iter_modules(module.__path__)
           if _binds_build(pathlib.Path(module.__path__[0]) / f"{info.name}.py")]
  if name not in known:
    raise ConfigError(f"{path}.name: no {name!r} in {place}{nearest(name, known)}")
  return importlib.import_module(f"{place}.{name}").build


def _binds_build(file: pathlib.Path) -> bool:
  source = file.read_text() if file.is_file() else ""
  return "\nbuild = " in source or "\ndef build(" in source


def _users_own(name: str, path: str) -> Any:
  if "" not in sys.path and "." not in sys.path:
    sys.path.append("")  # a module beside the user, also under the console script
  try:
    return importlib.import_module(name).build
  except ModuleNotFoundError as error:
    module, _, attribute = name.rpartition(".")
    try:
      return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError):
      raise ConfigError(f"{path}.name: cannot import {name!r}: {error}") from error
  except AttributeError as error:
    raise ConfigError(f"{path}.name: {name} binds no `build`") from error


def build(place: str, node: Node, path: str, beside: Iterable[str] = (), **given: Any) -> Any:
  """The object that a node describes.

  Args:
    place: package or module in which `node["name"]` is looked up.
    path: where the node stands in the config, for errors.
    beside: further keys that such a node may have and the caller has read, for errors.
    given: further arguments that the program knows and the config may not set.

  Raises:
    ConfigError: unknown name or key, a value of the wrong kind, or what the callable says of its
      arguments.
  """
  node = dict(check(node, dict, path))
  if "name" not in node:
    raise ConfigError(f"{path}.name: is missing; it says which of {place} to use")
  target = find(place, node.pop("name"), path)
  values = {}
  for key, value in node.items():
    at = f"{path}.{key}"
    nested = NESTED_KEYS.get(key, NESTED.get(place, place))
    if _is_named(value):
      value = build(nested, value, at)
    elif isinstance(value, list) and value and all(map(_is_named, value)):
      value = [build(nested, item, f"{at}.{i}") for i, item in enumerate(value)]
    elif isinstance(value, dict) and value and all(map(_is_named, value.values())):
      value = {name: build(nested, item, f"{at}.{name}") for name, item in value.items()}
    values[key] = value
  return call(target, values, path, ("name", *beside), **given)


def _is_named(value: Any) -> bool:
  return isinstance(value, dict) and "name" in value


def call(target: Any, values: Node, path: str, beside: Iterable[str] = (), **given: Any) -> Any:
  """`target(**values, **given)`, with the values checked by `arguments`."""
  checked = arguments([target], values, path, given, beside)
  for name, parameter in inspect.signature(target).parameters.items():
    optional = parameter.default is not parameter.empty or parameter.kind in (
        parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    if not optional and name not in checked and name not in given:
      raise ConfigError(f"{_join(path, name)}: is missing and has no default")
  try:
    return target(**checked, **given)
  except ConfigError:
    raise
  except (ValueError, TypeError, FileNotFoundError) as error:
    raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def arguments(targets: list, values: Node, path: str, given: Iterable[str] = (),
              beside: Iterable[str] = ()) -> Node:
  """`values` as the signatures of `targets`, taken together, want them.

  Args:
    given: parameters that the config may not set.
    beside: as in `build`.

  Raises:
    ConfigError: an unknown key, or a value of the wrong kind.
  """
  hints = {}
  for target in targets:
    try:
      types_of = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
    except (NameError, TypeError):  # a user's own, with annotations that cannot be read
      types_of = {}
    hints |= {name: types_of.get(name, Any) for name in inspect.signature(target).parameters}
  for name in ("parent", "name", *given):  # the first two are Linen's
    hints.pop(name, None)
  check_keys(values, hints, path, beside)
  return {key: check(value, hints[key], _join(path, key)) for key, value in values.items()}


def check_keys(node: Node, known: Iterable[str], path: str, beside: Iterable[str] = ()) -> None:
  """Raises ConfigError at the first key of `node` that is not `known`; `beside` as in `build`."""
  for key in node:
    if key not in known:
      raise ConfigError(f"{_join(path, key)}: unknown key{nearest(key, [*known, *beside])}")


def check(value: Any, hint: Any, path: str) -> Any:
  """`value` as the annotation `hint` asks: int to float, list to tuple.

  Raises:
    ConfigError: it is of another kind.
  """
  options = [hint]
  if typing.get_origin(hint) in (typing.Union, types.UnionType):
    options = typing.get_args(hint)
  kinds = tuple(typing.get_origin(option) or option for option in options)
  if isinstance(value, list) and list not in kinds:
    value = tuple(value)
  if Any in kinds or not all(isinstance(kind, type) for kind in kinds):
    return value
  if type(value) is int and float in kinds and int not in kinds:
    return float(value)
  of_kind = isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)
  if of_kind or type(value) not in PLAIN:  # an object that was built says itself if it does not fit
    return value
  if isinstance(value, dict) and not set(kinds) & PLAIN - {types.NoneType}:
    raise ConfigError(f"{path}.name: is missing; it says what the keys beside it are for")
  wanted = [KIND_NAMES.get(kind, kind.__name__) for kind in kinds]
  raise ConfigError(f"{path}: expected {' or '.join(wanted)}, not {value!r}")


def at_least(least: int, settings: Any, *names: str) -> None:
  """Raises ValueError if one of the fields `names` of `settings` is below `least`."""
  for name in names:
    if getattr(settings, name) < least:
      raise ValueError(f"{name}: must be at least {least}, not {getattr(settings, name)}")


def fields(cls: type, node: Node | None, path: str) -> Any:
  """The dataclass `cls` from a node without a `name` (checkpoint, loading ...)."""
  return call(cls, dict(node or {}), path)


def _join(path: str, key: str) -> str:
  return f"{path}.{key}" if path else key


def resolve_durations(node: Node, *, sizes: Any, epoch: int | None, total: int | None,
                      path: str = "") -> Node:
  """A copy in which every `X_examples`, `X_epochs`, `X_percent` has become `X_steps`.

  Args:
    sizes: the run's `mmjax.data.batch_sizes.BatchSizes`.
    epoch: records in the training set; None if unknown.
    total: steps of the whole run, for percentages.

  Raises:
    ConfigError: two units for one duration, or one that cannot be known here.
  """
  rows = {"examples": 1, "epochs": epoch}
  result: Node = {}
  for key, value in node.items():
    where = _join(path, key)
    stem, _, unit = key.rpartition("_")
    if isinstance(value, dict):
      value = resolve_durations(value, sizes=sizes, epoch=epoch, total=total, path=where)
    elif stem and unit in UNITS[1:] and value is None:
      continue  # not given
    elif stem and unit in UNITS[1:]:
      known = total if unit == "percent" else rows[unit]
      if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"{where}: expected a number, not {value!r}")
      if known is None:
        raise ConfigError(f"{where}: cannot be counted here; give {stem}_steps instead")
      if unit != "percent" and sizes.stages and stem not in FROM_START:
        raise ConfigError(f"{where}: is not a fixed number of steps when there is a batch_ramp; "
                          f"give {stem}_steps or {stem}_percent instead")
      steps = value / 100 * total if unit == "percent" else sizes.steps_for(value * known)
      key, value = f"{stem}_steps", max(1, round(steps)) if value else 0
    if key in result:
      raise ConfigError(f"{where}: {key} is given twice, in two units")
    result[key] = value
  return result


def to_json(config: Any) -> str:
  """The config as indented JSON, keys in order."""
  return json.dumps(plain(config), indent=2, sort_keys=True)
