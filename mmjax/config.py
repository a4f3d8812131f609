"""Configs: load, override, validate, and turn into objects.

A config is a tree of plain values. A node with a `name` becomes an object: the name is a file in a folder
(`objective.name = "contrastive"` is `mmjax/objectives/contrastive.py`, whose `build` is called), a class in a file
(`Resize` in `mmjax/data/transforms.py`), or a dotted path to the user's own. The keys beside `name` are
that callable's arguments: its signature is the schema, so an unknown key is an error with a suggestion.
"""

import ast
import dataclasses
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
from collections.abc import Iterable, Mapping
from typing import Any

import ml_collections

Node = dict[str, Any]
HOME = pathlib.Path(__file__).resolve().parent.parent  # holds mmjax/ and configs/, installed or not

UNITS = ("steps", "examples", "epochs", "percent")  # of any duration

# Where a nested node with a `name` is looked up, by the place of the node around it.
NESTED = {"mmjax.objectives": "mmjax.models", "mmjax.evals": "mmjax.data.transforms"}


class ConfigError(ValueError):
  """A config that cannot be used: one line that names the path in the config and what to do."""


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

  The text is a Python literal, or a string where it is none or where a string stood before. Keys that the
  config does not have yet are allowed here: whether they mean anything is seen when it is built.

  Raises:
    ConfigError: the path leads through something that is not there.
  """
  *parents, last = path.split(".")
  node: Any = config
  for depth, key in enumerate(parents):
    where = ".".join(parents[:depth + 1])
    node = _child(node, key, where, list(node) if isinstance(node, dict) else range(len(node)))
    if not isinstance(node, (dict, list)):
      raise ConfigError(f"{where}: is the value {node!r}, so it has no key {path[len(where) + 1:]!r}")
  if isinstance(node, list):
    old = _child(node, last, path, range(len(node)))
    node[int(last)] = parse(text, old)
  else:
    for other in _other_units(last):  # total_steps=100 takes the place of total_epochs
      node.pop(other, None)
    node[last] = parse(text, node.get(last))


def _other_units(key: str) -> list[str]:
  stem, _, unit = key.rpartition("_")
  return [f"{stem}_{other}" for other in UNITS if other != unit] if stem and unit in UNITS else []


def _child(node: Any, key: str, where: str, known: Iterable) -> Any:
  try:
    return node[int(key)] if isinstance(node, list) else node[key]
  except (KeyError, IndexError, ValueError):
    raise ConfigError(f"{where}: unknown{nearest(key, map(str, known))}") from None


def parse(text: str, old: Any = None) -> Any:
  """The value that `text` stands for, in place of `old`."""
  if isinstance(old, str):
    return text
  if text.lower() in ("true", "false", "none", "null"):
    return {"true": True, "false": False}.get(text.lower())
  try:
    value = plain(ast.literal_eval(text))
  except (ValueError, SyntaxError):
    return text
  return float(value) if isinstance(old, float) and isinstance(value, int) else value


def nearest(name: str, known: Iterable[str]) -> str:
  """The tail of an error message: the valid name closest to `name`, and the others."""
  known = sorted(set(known))
  if not known:
    return "; nothing is known here"
  best = difflib.get_close_matches(name, known, 1, cutoff=0.5)
  hint = f"; did you mean {best[0]!r}?" if best else ""
  return f"{hint} (valid: {', '.join(known[:24])}{', ...' if len(known) > 24 else ''})"


def find(place: str, name: str, path: str) -> Any:
  """The callable that `name` stands for in `place`, a package of files or a module of classes.

  Raises:
    ConfigError: nothing there has that name, or the user's module cannot be imported.
  """
  if "." in name:
    return _users_own(name, path)
  module = importlib.import_module(place)
  if not hasattr(module, "__path__"):
    known = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")
             and getattr(v, "__module__", "").startswith("mmjax.")]
    if name not in known:
      raise ConfigError(f"{path}.name: no {name!r} in {place}{nearest(name, known)}")
    return getattr(module, name)
  files = [info.name for info in pkgutil.iter_modules(module.__path__)]
  if name in files:
    found = importlib.import_module(f"{place}.{name}")
    if hasattr(found, "build"):
      return found.build
  known = [f for f in files if _binds_build(module.__path__[0], f)]
  raise ConfigError(f"{path}.name: no {name!r} in {place}{nearest(name, known)}")


def _binds_build(folder: str, file: str) -> bool:
  source = (pathlib.Path(folder) / f"{file}.py")
  return source.is_file() and ("\nbuild = " in source.read_text() or "\ndef build(" in source.read_text())


def _users_own(name: str, path: str) -> Any:
  if "" not in sys.path and "." not in sys.path:  # a module beside the user, also under the console script
    sys.path.append("")
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


def build(place: str, node: Node, path: str, **given: Any) -> Any:
  """The object that a node describes.

  Args:
    place: package or module in which `node["name"]` is looked up.
    path: where the node stands in the config, for errors.
    given: further arguments that the program knows and the config may not set.

  Raises:
    ConfigError: unknown name or key, a value of the wrong kind, or what the callable says of its arguments.
  """
  node = dict(node)
  name = node.pop("name", None)
  if not isinstance(name, str):
    raise ConfigError(f"{path}.name: is missing; it says which file of {place} to use")
  target = find(place, name, path)
  nested = NESTED.get(place, place)
  arguments = {}
  for key, value in node.items():
    at = f"{path}.{key}"
    if isinstance(value, dict) and "name" in value:
      value = build(nested, value, at)
    elif isinstance(value, list) and value and all(isinstance(v, dict) and "name" in v for v in value):
      value = [build(nested, v, f"{at}.{i}") for i, v in enumerate(value)]
    arguments[key] = value
  return call(target, arguments, path, **given)


def call(target: Any, arguments: Node, path: str, **given: Any) -> Any:
  """`target(**arguments, **given)` with the arguments checked against its signature."""
  parameters = {name: p for name, p in inspect.signature(target).parameters.items()
                if name not in given and name not in ("parent",)}
  try:
    hints = typing.get_type_hints(target if not inspect.isclass(target) else target.__init__)
  except (NameError, TypeError):
    hints = {}
  checked = {}
  for key, value in arguments.items():
    if key not in parameters:
      raise ConfigError(f"{path}.{key}: unknown key{nearest(key, set(parameters) - {'name'})}")
    checked[key] = check(value, hints.get(key, Any), f"{path}.{key}")
  missing = [name for name, p in parameters.items()
             if p.default is p.empty and name not in checked and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
  if missing:
    raise ConfigError(f"{path}.{missing[0]}: is missing and has no default")
  try:
    return target(**checked, **given)
  except ConfigError:
    raise
  except (ValueError, TypeError, FileNotFoundError) as error:
    raise ConfigError(f"{path}: {error}") from error


def check(value: Any, hint: Any, path: str) -> Any:
  """`value` as the annotation `hint` asks: int to float, list to tuple; ConfigError if it is another kind."""
  options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
  kinds = [typing.get_origin(option) or option for option in options]
  if Any in kinds or not all(isinstance(kind, type) for kind in kinds):
    return tuple(value) if isinstance(value, list) else value
  if isinstance(value, list) and list not in kinds:
    value = tuple(value)
  if value is None and types.NoneType in kinds:
    return None
  plain_kinds = {bool, int, float, str, tuple, list, dict, types.NoneType}
  if not isinstance(value, (bool, int, float, str, tuple, list, dict, types.NoneType)):
    return value  # an object that was built; its own users will say if it does not fit
  if isinstance(value, bool) and bool not in kinds or not isinstance(value, tuple(kinds)):
    if isinstance(value, int) and not isinstance(value, bool) and float in kinds:
      return float(value)
    if set(kinds) <= plain_kinds or not isinstance(value, dict):
      wanted = " or ".join(sorted(kind.__name__ for kind in kinds)).replace("NoneType", "none")
      raise ConfigError(f"{path}: expected {wanted}, not {value!r}")
  return value


def fields(cls: type, node: Node | None, path: str) -> Any:
  """The dataclass `cls` from a node without a `name` (mesh, checkpoint, log ...)."""
  return call(cls, dict(node or {}), path)


def resolve_durations(node: Node, *, batch_size: int, epoch: int | None, total: int | None,
                      path: str = "") -> Node:
  """A copy in which every `X_examples`, `X_epochs`, `X_percent` has become `X_steps`.

  Args:
    batch_size: rows a step.
    epoch: records in the training set; None if unknown.
    total: steps of the whole run, for percentages.

  Raises:
    ConfigError: two units for one duration, or one that cannot be known here.
  """
  rows = {"examples": 1, "epochs": epoch}
  result: Node = {}
  for key, value in node.items():
    where = f"{path}.{key}" if path else key
    stem, _, unit = key.rpartition("_")
    if isinstance(value, dict):
      value = resolve_durations(value, batch_size=batch_size, epoch=epoch, total=total, path=where)
    elif stem and unit in UNITS[1:] and value is None:
      key = f"{stem}_steps"
    elif stem and unit in UNITS[1:]:
      known = total if unit == "percent" else rows[unit]
      if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ConfigError(f"{where}: expected a number, not {value!r}")
      if known is None:
        raise ConfigError(f"{where}: cannot be counted here; give {stem}_steps instead")
      steps = value / 100 * total if unit == "percent" else value * known / batch_size
      key, value = f"{stem}_steps", max(1, round(steps)) if value else 0
    if key in result:
      raise ConfigError(f"{where}: {key} is given twice, in two units")
    result[key] = value
  return result


def to_json(config: Any) -> str:
  """The config as indented JSON, keys in order."""
  return json.dumps(plain(config), indent=2, sort_keys=True)


def describe(value: Any) -> Any:
  """A dataclass, or a tree with such in it, as plain values: for logs and digests."""
  if dataclasses.is_dataclass(value) and not isinstance(value, type):
    return {f.name: describe(getattr(value, f.name)) for f in dataclasses.fields(value)}
  return plain(value)
