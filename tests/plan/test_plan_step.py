"""Plans of the real train step on absent chips, against counts by hand."""

import json
import math
import os
import pathlib
import re
import subprocess
import sys

import jax
from jax.sharding import NamedSharding, PartitionSpec
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import cli, config, plan
from mmjax.plan import compile as compile_lib
from mmjax.plan import report
from tests.conftest import needs

needs("libtpu")
ROOT = pathlib.Path(__file__).resolve().parents[2]
SMOKE = "contrastive/siglip:smoke"
KEYS = {"chips", "fits", "hbm_gib", "peak_gib", "args_gib", "temp_gib", "model_tflops_per_chip",
        "hardware_tflops_per_chip", "comm_gib", "bound", "step_s_lower_bound", "mfu_upper_bound",
        "compile_s"}
GIB = 2**30
TOO_MUCH = {"batch_size": str(2**22)}  # 2^20 pictures of 48 KiB a chip


def load(**overrides):
  return config.load(SMOKE, {path.replace("__", "."): text for path, text in overrides.items()})


@pytest.fixture(scope="module")
def planned():
  return plan.plan(load(), "v5e:2x2")


@pytest.fixture(scope="module")
def unfit():
  return plan.plan(load(**TOO_MUCH), "v5e:2x2")


def test_arguments_are_the_states_and_the_batchs_bytes(planned):
  # Every leaf lies whole on each of the four chips, the batch in four parts. The compiler pads to
  # tiles of 8 x 128 numbers, so it may say more.
  run = planned.run
  state = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(run.abstract))
  batch = sum(math.prod(x.shape) * x.dtype.itemsize for x in run.abstract_batch.values()) / 4
  assert state + batch <= planned.memory.args <= 2 * (state + batch)
  params = sum(x.size for x in jax.tree.leaves(run.abstract.params))
  assert 12 * params <= state < 12 * params + 4096  # parameters and two moments in float32


def test_the_peak_is_within_what_the_compiler_grants(planned):
  memory = planned.memory
  assert memory.peak == memory.args + memory.temp + memory.output - memory.alias
  assert memory.limit == 15.75 * GIB and planned.fits


def test_the_flat_keys_are_those_of_every_plan(planned, unfit):
  for one in (planned, unfit):
    flat = json.loads(json.dumps(one.to_json()))
    assert KEYS <= set(flat) and all(flat[key] is not None for key in KEYS)
    assert flat["chips"] == 4 and flat["hbm_gib"] == 16


def test_a_table_of_the_largest_tensors_names_them_in_order(planned):
  largest = planned.largest()
  assert len(largest) == 10
  assert [t.bytes for t in largest] == sorted((t.bytes for t in largest), reverse=True)
  image = next(t for t in largest if t.name == "batch/image")
  assert (image.shape, image.ways, image.bytes) == ((64, 64, 64, 3), 4, 16 * 64 * 64 * 3 * 4)


def test_what_does_not_fit_is_still_measured(planned, unfit):
  assert not unfit.fits and unfit.compiled.executable is None
  assert unfit.memory.peak > unfit.memory.limit == 15.75 * GIB
  assert unfit.memory.args == compile_lib.memory_lib.bytes_of(unfit.compiled.args)
  # The towers' FLOPs grow with the rows, those of the logits between all pairs (width 64) with their
  # square: forward and two gradients at least, and once more where the loss recomputes them.
  towers = (planned.flops.model - 6 * 64**2 * 64 / 4) * 2**22 / 64
  pairs = (unfit.flops.model - towers) / (2 * (2**22)**2 * 64 / 4)
  assert 2.99 < pairs < 4.01
  assert unfit.communication.bytes > 0 and "sharding" in unfit.communication.source
  assert unfit.largest()[0].bytes > GIB


def test_what_does_not_fit_gets_overrides_that_should_fit(unfit):
  lines = unfit.advice()
  assert lines[-1].startswith("fits by the estimate: --config.batch_size=")
  assert any("remat=full" in line for line in lines)


@pytest.mark.slow
def test_the_advised_overrides_do_fit(unfit):
  words = unfit.advice()[-1].replace(":", " ").split()
  flags = [word for word in words if word.startswith("--config.")]
  overrides = dict(flag.removeprefix("--config.").split("=") for flag in flags)
  assert plan.plan(config.load(SMOKE, TOO_MUCH | overrides), "v5e:2x2").fits


def test_any_jitted_function_can_be_planned():
  where = plan.find("v5e:1x1")
  mesh = jax.sharding.Mesh(np.array(where.devices), ("data",))
  x = jax.ShapeDtypeStruct((512, 512), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
  found = plan.analyse(jax.jit(lambda x: x @ x), (x,), mesh, where, model_flops=2 * 512**3)
  assert found.flops.hardware == found.flops.model == 2 * 512**3
  assert found.memory.args == found.memory.output == 512 * 512 * 4
  assert found.communication.bytes == 0


def test_a_compiler_that_fails_otherwise_is_one_line(monkeypatch):
  def fail(*_):
    raise jax.errors.JaxRuntimeError("INTERNAL: Mosaic failed\nsomewhere")

  monkeypatch.setattr(compile_lib, "_compile", fail)
  with pytest.raises(compile_lib.CompileError, match="v5e:2x2: INTERNAL: Mosaic failed somewhere"):
    plan.plan(load(), "v5e:2x2")


@pytest.mark.parametrize("argv, said", [
    (["--config.batch_size=66"], "batch_size: 66 rows .*take a multiple of 4"),
    (["--config.mesh.fsdp=3"], "3 does not divide the 4 devices"),
    (["--config.objective.imag.width=3"], "objective.imag"),
    (["--topology=v5e:5x5"], "did you mean")])
def test_a_wrong_config_or_topology_is_one_line_and_status_2(argv, said, capsys):
  status = cli.main(["plan", f"--config={SMOKE}", "--topology=v5e:2x2", *argv])
  err = capsys.readouterr().err
  assert status == 2 and re.search(said, err) and err.startswith("mmjax plan: ")
  assert err.count("\n") == 1


@pytest.mark.slow
def test_json_prints_nothing_else_and_what_does_not_fit_is_status_1(capsys):
  status = cli.main(["plan", f"--config={SMOKE}", "--topology=v5e:2x2", "--json",
                     f"--config.batch_size={2**22}"])
  found = json.loads(capsys.readouterr().out)
  assert status == 1 and found["fits"] is False and found["details"]["advice"]


def test_the_page_says_what_does_not_fit_and_why(unfit, capsys):
  report.show(unfit)
  report.show_shardings(unfit)
  out = capsys.readouterr().out
  assert "NO: peak" in out and "bound by" in out and "image/trunk/layers/mlp/up/kernel" in out


@pytest.mark.slow
def test_two_plans_at_once_do_not_collide_and_leave_standard_error_empty():
  command = [sys.executable, "-m", "mmjax", "plan", f"--config={SMOKE}", "--topology=v5e:1x1",
             "--json"]
  env = {key: value for key, value in os.environ.items() if not key.startswith("TPU_")}
  both = [subprocess.Popen(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE) for _ in range(2)]
  for out, err in [process.communicate() for process in both]:
    assert json.loads(out)["fits"] and err == ""


@pytest.mark.slow
def test_tpu7x_is_told_per_chip_of_two_devices():
  found = plan.plan(load(), "tpu7x:2x2x1")
  flat = found.to_json()
  assert flat["chips"] == 4 and found.mesh.size == 8 and flat["hbm_gib"] == 192
  assert flat["peak_gib"] == 2 * found.memory.peak / GIB
