"""A run's directory: config, provenance, log, metrics, events, checkpoints; local, `gs://` or `s3://`.

    config.json  provenance.json  model.json  log.txt  metrics.jsonl  events/  checkpoints/  evals/
    report.html
"""

import datetime
import hashlib
import importlib.metadata
import json
import logging
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax
from etils import epath

from mmjax import config as config_lib
from mmjax.config import ConfigError
from mmjax.optim import groups
from mmjax.parallel import processes
from mmjax.report import writers
from mmjax.training import frozen
from mmjax.training.assemble import Run

CONFIG, PROVENANCE, LOG, CHECKPOINTS = "config.json", "provenance.json", "log.txt", "checkpoints"
MODEL = "model.json"  # what the report tells of the model without building it
PACKAGES = ("mmjax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "ml_collections",
            "tensorflow-datasets", "clu")
# What decides which record stands in which step. A run cannot go on under another one.
ORDER = ("batch_size", "batch_ramp", "data", "seed")
log = logging.getLogger("mmjax")


def open_workdir(workdir: str, run: Run) -> epath.Path:
  """Makes or reopens the directory of a run, and writes its config and provenance.

  Raises:
    ConfigError: the directory holds a run whose data, batch size or seed differ: its order of samples could
      not be continued.
  """
  path = epath.Path(workdir)
  log.setLevel(logging.INFO)
  processes.agree(digest(run.config), "config")
  if processes.is_lead():
    path.mkdir(parents=True, exist_ok=True)
  before = _read(path / CONFIG)
  if before is not None:
    _compare(workdir, before, run.config)
  processes.barrier("workdir")
  if processes.is_lead():
    writers.replace_text(path / CONFIG, config_lib.to_json(run.config) + "\n")
    history = (_read(path / PROVENANCE) or []) + [provenance(run)]
    writers.replace_text(path / PROVENANCE, json.dumps(history, indent=2) + "\n")
    writers.replace_text(path / MODEL, json.dumps(model(run), indent=2) + "\n")
    _log_to(path / LOG)
  return path


def read_config(workdir: str) -> dict:
  """The resolved config of the run in `workdir`.

  Raises:
    ConfigError: there is none.
  """
  config = _read(epath.Path(workdir) / CONFIG)
  if config is None:
    raise ConfigError(f"--workdir={workdir}: holds no run (there is no {CONFIG} in it)")
  return config


def recall(config: dict, workdir: str) -> dict:
  """`config` with what the run in `workdir` found at the same sources, which it needs no more."""
  path = epath.Path(workdir)
  before = _read(path / CONFIG) or {}
  found = (before.get("init") or {}).get("found")
  saved = (path / CHECKPOINTS).exists() and any(p.name.isdigit() for p in (path / CHECKPOINTS).iterdir())
  if not saved:
    return config
  config = frozen.recall(config, before)
  if not found or before.get("init_from") != config.get("init_from"):
    return config
  return {**config, "init": {**(config.get("init") or {}), "found": found}}


def note(path: epath.Path, **facts: Any) -> None:
  """Adds facts to what provenance.json tells of this start of the run."""
  if processes.is_lead():
    *history, start = _read(path / PROVENANCE)
    writers.replace_text(path / PROVENANCE, json.dumps([*history, {**start, **facts}], indent=2) + "\n")


def provenance(run: Run) -> dict[str, Any]:
  """What produced this start of the run: code, versions, data, devices, command, time."""
  parts = getattr(run.stream, "streams", (run.stream,))
  return {
      "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
      "command": sys.argv,
      "git": _git(),
      "config": digest(run.config),
      "data": [{"source": part.name, "records": len(part), "digest": part.source.digest} for part in parts],
      "python": platform.python_version(),
      "packages": {name: _version(name) for name in PACKAGES},
      "devices": {"kind": jax.devices()[0].device_kind, "count": jax.device_count(),
                  "processes": jax.process_count(), "mesh": dict(run.mesh.shape)},
  }


def model(run: Run) -> dict[str, Any]:
  """What the report says of the model: its parameters, and the losses of one that knows nothing."""
  return {"parameters": groups.format_table(run.optim_info.table),
          "trivial": run.objective.trivial(run.settings.batch_size)}


def digest(config: Any) -> str:
  """SHA-256 of a config, whatever the order of its keys."""
  return hashlib.sha256(config_lib.to_json(config).encode()).hexdigest()


def differences(old: Any, new: Any, path: str = "") -> list[str]:
  """Lines "path: old -> new" for every value in which two configs differ."""
  if isinstance(old, dict) and isinstance(new, dict):
    return [line for key in sorted(old.keys() | new.keys())
            for line in differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)]
  if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
    return [line for i, pair in enumerate(zip(old, new)) for line in differences(*pair, f"{path}.{i}")]
  return [] if old == new else [f"{path}: {old!r} -> {new!r}"]


def _compare(workdir: str, before: dict, config: dict) -> None:
  changes = differences(before, config)
  # How the rows are read does not decide which they are.
  how = ("data.workers", "data.read_threads", "data.prefetch", "data.max_bad")
  order = [line for line in changes if line.split(".")[0].split(":")[0] in ORDER
           and not line.startswith(how)]
  if order:
    raise ConfigError(f"--workdir={workdir}: holds a run whose samples came in another order ({order[0]}); "
                      "use another workdir, or the config that it began with")
  for line in changes:
    log.warning("config changed since the last start: %s", line)


def _read(path: epath.Path) -> Any:
  if not path.exists():
    return None
  try:
    return json.loads(path.read_text())
  except ValueError as error:
    raise ConfigError(f"{path}: is damaged ({error}); mend or remove it, the checkpoints do not need it"
                      ) from error


def _git() -> dict[str, Any] | None:
  """Commit and cleanliness of the checkout that mmjax runs from; None when it is installed."""
  here = pathlib.Path(__file__).resolve().parent
  run = lambda *args: subprocess.run(["git", *args], cwd=here, capture_output=True, text=True, check=True).stdout
  try:
    if pathlib.Path(run("rev-parse", "--show-toplevel").strip()) != config_lib.HOME:
      return None
    return {"commit": run("rev-parse", "HEAD").strip(), "changed": bool(run("status", "--porcelain"))}
  except (OSError, subprocess.CalledProcessError):
    return None


def _version(name: str) -> str | None:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def _log_to(path: epath.Path) -> None:
  """Sends the log to a file too; a remote directory gets none, since objects there cannot grow."""
  if "://" in str(path):
    return
  handler = logging.FileHandler(path)
  handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s"))
  for old in [h for h in log.handlers if isinstance(h, logging.FileHandler)]:
    log.removeHandler(old)
    old.close()
  log.addHandler(handler)
