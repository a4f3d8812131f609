"""Results of plans on disk, so that the same step is not compiled twice.

A result belongs to everything that it follows from: the config, the topology, the versions of the
compilers, their flags, and the source of mmjax and of the user's own modules that the config names.
Files are JSON, in MMJAX_PLAN_CACHE, or XDG_CACHE_HOME/mmjax/plan, or ~/.cache/mmjax/plan. They may
be removed at any time.
"""

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import Any

import jax

from mmjax import config as config_lib

log = logging.getLogger(__name__)

PACKAGES = ("jax", "jaxlib", "libtpu", "flax", "optax")
FLAGS = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Settings of jax that change the program which is traced.
JAX_SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_default_prng_impl",
                "jax_threefry_partitionable", "jax_use_shardy_partitioner")


def directory() -> pathlib.Path:
  """Where results are kept."""
  if os.environ.get("MMJAX_PLAN_CACHE"):
    return pathlib.Path(os.environ["MMJAX_PLAN_CACHE"])
  root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(root) / "mmjax" / "plan"


def versions() -> dict[str, str | None]:
  """{package: version} of what compiles a step; None where it is not installed."""
  found = {}
  for name in PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = None
  return found


def key(config: dict[str, Any], topology: str, slices: int = 1) -> str:
  """SHA-256 in hex of all that a plan follows from."""
  parts = {
      "config": config, "topology": topology, "slices": slices, "versions": versions(),
      "flags": {name: os.environ.get(name) for name in FLAGS},
      "jax": {name: str(getattr(jax.config, name, None)) for name in JAX_SETTINGS},
      "source": source_digest(config),
  }
  return hashlib.sha256(config_lib.to_json(parts).encode()).hexdigest()


def source_digest(config: dict[str, Any]) -> str:
  """SHA-256 in hex of mmjax's source and of the modules outside it that `config` names."""
  package = pathlib.Path(__file__).resolve().parent.parent
  files = sorted(package.rglob("*.py")) + sorted({*_users_own(config)})
  total = hashlib.sha256()
  for file in files:
    inside = file.is_relative_to(package)
    total.update(str(file.relative_to(package) if inside else file).encode())
    total.update(hashlib.sha256(file.read_bytes()).digest())
  return total.hexdigest()


def _users_own(node: Any) -> Iterator[pathlib.Path]:
  """Files of the modules that dotted names in a config stand for."""
  if isinstance(node, (list, tuple)):
    for item in node:
      yield from _users_own(item)
  if not isinstance(node, dict):
    return
  for item in node.values():
    yield from _users_own(item)
  name = node.get("name")
  name = name if isinstance(name, str) and "." in name else ""
  while name:
    try:
      spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
      spec = None
    if spec and spec.origin:
      yield pathlib.Path(spec.origin)
      return
    name = name.rpartition(".")[0]


def get(name: str) -> dict[str, Any] | None:
  """The result of this key; None if there is none, or, with a warning, none that can be read."""
  path = directory() / f"{name}.json"
  try:
    value = json.loads(path.read_text())
    if value.pop("key") != name:
      raise ValueError("it is the result of another key")
    return value["result"]
  except FileNotFoundError:
    return None
  except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
    log.warning("%s: is passed over, it cannot be read (%s)", path, error)
    return None


def put(name: str, result: dict[str, Any]) -> None:
  """Keeps a result, whole or not at all, however many processes write; a full disk is a warning."""
  path = directory() / f"{name}.json"
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"key": name, "result": result})
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
      file.write(text)
    os.replace(file.name, path)
  except OSError as error:
    log.warning("%s: the result is not kept (%s)", path, error)
