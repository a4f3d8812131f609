"""The compiled step as a folder: made where there is no accelerator, loaded where there is one.

  mmjax plan --config=... --topology=v5e:16x16 --save=DIR

  from mmjax.plan import save
  step = save.load(DIR, run)          # on the pod; `run` from assemble(config)
  state, metrics = step(state, batch)

The folder holds `step.bin` and `manifest.json`, which says what the program was made for. `load`
refuses another config, other versions and other devices: the program would not run there, or
compute something else. `step.bin` is a pickle: load only what you trust.
"""

import hashlib
import json
import os
import pathlib
import pickle
import tempfile
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import serialize_executable

from mmjax import config as config_lib
from mmjax.plan import cache
from mmjax.training import frozen
from mmjax.training.assemble import Run

PROGRAM, MANIFEST = "step.bin", "manifest.json"
FORMAT = 1

# Parts of a config that the step does not depend on.
BESIDE_THE_STEP = ("data", "evals", "eval_data", "labels", "checkpoint", "log_every_steps",
                   "writers", "watchdog_seconds", "init_from", "init")


class SaveError(RuntimeError):
  """A step that cannot be saved, or not be loaded here: one line."""


def save(executable: jax.stages.Compiled | None, run: Run, directory: str, *, topology: str,
         slices: int = 1, platform: str = "tpu") -> dict[str, Any]:
  """Writes a compiled step and its manifest, which is returned.

  Args:
    executable: of `run.step_fn()`; None if it did not fit.
    directory: on this machine; made if it is not there.
    topology, slices: what it was compiled for, as in `--topology`, for the reader.
    platform: for what it is meant. Programs of absent GPUs are compiled for CPU devices.

  Raises:
    SaveError: there is no program, it is not for the devices that it stands for, or the backend
      does not serialise it.
  """
  if executable is None:
    raise SaveError("--save: there is no program to save, the step does not fit")
  device = run.mesh.devices.flat[0]
  if device.platform == "cpu" and platform != "cpu":
    raise SaveError(f"--save: the plan for {topology} was compiled for CPU devices that stand for "
                    f"absent {platform} devices; such a program does not run there")
  try:
    payload, in_tree, out_tree = serialize_executable.serialize(executable)
    program = pickle.dumps((payload, in_tree, out_tree))
  except (ValueError, TypeError, NotImplementedError, AttributeError, pickle.PicklingError,
          jax.errors.JaxRuntimeError) as error:
    said = " ".join(str(error).split())[:200]
    raise SaveError(f"--save: the {device.platform} backend does not serialise this program: {said}"
                    ) from error
  manifest = {**_expected(run), "topology": topology, "slices": slices, "bytes": len(program),
              "sha256": hashlib.sha256(program).hexdigest()}
  folder = pathlib.Path(directory)
  folder.mkdir(parents=True, exist_ok=True)
  _replace(folder / PROGRAM, program)
  _replace(folder / MANIFEST, (json.dumps(manifest, indent=2) + "\n").encode())
  return manifest


def load(directory: str, run: Run) -> Callable:
  """The saved step as a function `(state, batch) -> (state, metrics)`; it takes over its state.

  Every process of the pod calls it.

  Args:
    directory: of `save`.
    run: of the same config, assembled on the devices that are here.

  Raises:
    SaveError: there is none, it is damaged, or it was made for something else.
  """
  folder = pathlib.Path(directory)
  try:
    manifest = json.loads((folder / MANIFEST).read_text())
    program = (folder / PROGRAM).read_bytes()
  except (OSError, ValueError) as error:
    raise SaveError(f"{directory}: holds no saved step ({error})") from error
  _check(directory, manifest, _expected(run))
  if hashlib.sha256(program).hexdigest() != manifest.get("sha256"):
    raise SaveError(f"{folder / PROGRAM}: is damaged, its digest is not the manifest's; save anew")
  payload, in_tree, out_tree = pickle.loads(program)
  devices = list(run.mesh.devices.flat)
  try:
    return serialize_executable.deserialize_and_load(
        payload, in_tree, out_tree, backend=devices[0].client, execution_devices=devices)
  except (ValueError, TypeError, KeyError, jax.errors.JaxRuntimeError) as error:
    said = " ".join(str(error).split())[:300]
    raise SaveError(f"{directory}: the devices here do not take this program: {said}") from error


def _expected(run: Run) -> dict[str, Any]:
  """All that has to be the same where the step is made and where it is loaded."""
  step = {key: value for key, value in run.config.items() if key not in BESIDE_THE_STEP}
  step["objective"], _ = frozen.split(step["objective"])  # from where weights come is no matter either
  digest = hashlib.sha256(config_lib.to_json(step).encode()).hexdigest()
  devices = list(run.mesh.devices.flat)
  rows = {key: run.batch_sharding for key in run.abstract_batch}
  return {
      "format": FORMAT, "config": digest, "source": cache.source_digest(run.config),
      "versions": cache.versions(), "device_kind": devices[0].device_kind,
      "mesh": dict(run.mesh.shape), "devices": [device.id for device in devices],
      "arguments": _leaves((run.abstract, run.abstract_batch), (run.shardings, rows))}


def _leaves(tree: Any, shardings: Any) -> dict[str, str]:
  """{path: "float32[3,4] PartitionSpec(...)"} of every argument."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): f"{x.dtype}{list(x.shape)} {sharding.spec}"
          for (path, x), sharding in zip(leaves, jax.tree.leaves(shardings), strict=True)}


def _check(directory: str, saved: dict[str, Any], here: dict[str, Any]) -> None:
  """Raises SaveError at the first thing in which the saved step differs from what is here."""
  for key, value in here.items():
    was = saved.get(key)
    if was == value:
      continue
    if isinstance(value, dict) and isinstance(was, dict):
      odd = next(name for name in {**was, **value} if was.get(name) != value.get(name))
      key, was, value = f"{key} {odd}", was.get(odd), value.get(odd)
    elif key == "devices":
      was, value = (f"{len(ids or [])} in the order {str(ids)[:60]}" for ids in (was, value))
    raise SaveError(f"{directory}: was saved for {key} {was}, and here it is {value}; save anew "
                    "with `mmjax plan --save`")


def _replace(path: pathlib.Path, content: bytes) -> None:
  """Writes a file whole or not at all."""
  with tempfile.NamedTemporaryFile("wb", dir=path.parent, delete=False) as file:
    file.write(content)
  os.replace(file.name, path)
