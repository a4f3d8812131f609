"""A compiled step as a folder: what it refuses, and that a fresh process computes the same."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from mmjax.checkpoint.digest import tree_digest
from mmjax.plan import save as save_lib
from mmjax.training.assemble import assemble
from tests.training import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow  # every test needs a compiled step


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  pairs = tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz")
  return tiny.config(pairs, mesh={"data": 4, "fsdp": 2})


@pytest.fixture(scope="module")
def run(config):
  return assemble(config)


@pytest.fixture(scope="module")
def compiled(run):
  with run.use():
    return run.step_fn().lower(run.abstract, run.abstract_batch).compile()


@pytest.fixture
def saved(compiled, run, tmp_path):
  save_lib.save(compiled, run, str(tmp_path / "step"), topology="cpu:8", platform="cpu")
  return tmp_path / "step"


def inputs(run):
  """The state before the first step, and a batch, from the seed alone."""
  rng = np.random.default_rng(0)
  batch = {key: rng.normal(size=x.shape).astype(x.dtype) if x.dtype == np.float32 else
           np.ones(x.shape, x.dtype) for key, x in run.abstract_batch.items()}
  place = lambda x: jax.device_put(x, run.batch_sharding)
  return run.create_state(), jax.tree.map(place, batch)


def result(step, run):
  """Digest of the state after a step, and its loss."""
  state, metrics = step(*inputs(run))
  return [tree_digest(state)["all"], float(metrics["loss"].compute())]


FRESH = """
import json, sys
from mmjax.plan import save
from mmjax.training.assemble import assemble
from tests.plan import test_save
run = assemble(json.loads(sys.argv[2]))
print(json.dumps(test_save.result(save.load(sys.argv[1], run), run)))
"""


def test_a_fresh_process_loads_the_step_and_computes_the_same(config, run, compiled, saved):
  done = subprocess.run([sys.executable, "-c", FRESH, str(saved), json.dumps(config)], cwd=ROOT,
                        env=os.environ, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  assert json.loads(done.stdout.splitlines()[-1]) == result(compiled, run)


def test_manifest_says_what_it_was_made_for(run, saved):
  manifest = json.loads((saved / "manifest.json").read_text())
  assert manifest["topology"] == "cpu:8" and manifest["mesh"]["fsdp"] == 2
  assert manifest["devices"] == [device.id for device in run.mesh.devices.flat]
  assert manifest["versions"]["jax"] == jax.__version__
  assert any("image" in path and "float32[16, 16, 16, 3]" in said
             for path, said in manifest["arguments"].items())
  assert {file.name for file in saved.iterdir()} == {"manifest.json", "step.bin"}


@pytest.mark.parametrize("changes, said", [
    ({"batch_size": 32}, "config"),
    ({"optim": {"lr": 1.0}}, "config"),
    ({"mesh": {"data": 2, "fsdp": 4}}, "config"),
])
def test_another_config_is_refused(changes, said, config, saved):
  with pytest.raises(save_lib.SaveError, match=f"was saved for {said} .*save anew") as error:
    save_lib.load(str(saved), assemble({**config, **changes}))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("key, value, said", [
    ("versions", {"jax": "0.0.1"}, f"for versions jax 0.0.1, and here it is {jax.__version__}"),
    ("device_kind", "TPU v5 lite", "for device_kind TPU v5 lite, and here it is cpu"),
    ("devices", [1, 0], "for devices 2 in the order"),
    ("source", "0", "for source 0"),
])
def test_other_versions_and_devices_are_refused(key, value, said, run, saved):
  file = saved / "manifest.json"
  manifest = json.loads(file.read_text())
  other = {**manifest[key], **value} if key == "versions" else value
  file.write_text(json.dumps({**manifest, key: other}))
  with pytest.raises(save_lib.SaveError, match=said):
    save_lib.load(str(saved), run)


def test_evaluators_data_and_checkpoints_do_not_matter(config, saved, tmp_path):
  pairs = tiny.write_pairs(tmp_path / "elsewhere.npz")
  changes = {"data": {"source": {"name": "arrays", "path": pairs}}, "eval_data": None,
             "checkpoint": {"every_steps": 7}, "log_every_steps": 1}
  save_lib.load(str(saved), assemble({**config, **changes}))


def test_what_is_missing_or_damaged_is_told(run, saved, tmp_path):
  with pytest.raises(save_lib.SaveError, match="holds no saved step"):
    save_lib.load(str(tmp_path / "nowhere"), run)
  (saved / "step.bin").write_bytes(b"half of it")
  with pytest.raises(save_lib.SaveError, match="step.bin: is damaged"):
    save_lib.load(str(saved), run)


def test_no_program_and_stand_ins_for_gpus_are_not_saved(run, compiled, tmp_path):
  with pytest.raises(save_lib.SaveError, match="does not fit"):
    save_lib.save(None, run, str(tmp_path / "a"), topology="v5e:2x2")
  with pytest.raises(save_lib.SaveError, match="h100:8 was compiled for CPU devices"):
    save_lib.save(compiled, run, str(tmp_path / "a"), topology="h100:8", platform="gpu")
  assert not (tmp_path / "a").exists()


def test_a_backend_that_does_not_serialise_is_one_line(run, compiled, tmp_path, monkeypatch):
  def refuse(executable):
    raise ValueError("Compilation does not support\nserialization")
  monkeypatch.setattr(save_lib.serialize_executable, "serialize", refuse)
  said = "cpu backend does not serialise.*support serialization"
  with pytest.raises(save_lib.SaveError, match=said):
    save_lib.save(compiled, run, str(tmp_path / "a"), topology="cpu:8", platform="cpu")


def test_the_step_of_an_absent_pod_is_saved(config, tmp_path):
  from mmjax.plan import compile as compile_lib, topology
  where = topology.find("v5e:2x2")
  run = assemble({**config, "mesh": {}}, devices=where.devices)
  executable = compile_lib.compile_step(run, where).executable
  manifest = save_lib.save(executable, run, str(tmp_path), topology=where.name)
  assert manifest["device_kind"] == "TPU v5 lite" and manifest["bytes"] > 10_000
  with pytest.raises(save_lib.SaveError, match="the devices here do not take this program"):
    save_lib.load(str(tmp_path), run)
