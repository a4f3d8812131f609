"""Options of the compiler: ours for several slices of TPUs, the config's on top, wrong ones named."""

import dataclasses
import types

import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax.config import ConfigError
from mmjax.training import compiler
from mmjax.training.assemble import assemble

PIPELINING = "xla_tpu_enable_collective_pipeliner"


@dataclasses.dataclass(frozen=True)
class Device:
  platform: str
  slice_index: int


def mesh_of(slices, platform="tpu"):
  devices = [Device(platform, index) for index in range(slices) for _ in range(2)]
  return types.SimpleNamespace(devices=np.array(devices))


@pytest.mark.parametrize("mesh, want", [
    (mesh_of(1), {}), (mesh_of(2, "gpu"), {}), (mesh_of(2), {PIPELINING: False})],
    ids=["one slice", "gpu", "slices"])
def test_several_slices_of_tpus_have_an_option_of_their_own(mesh, want):
  assert compiler.options(mesh, {}) == want
  assert compiler.options(mesh, {"xla_x": 3}) == {**want, "xla_x": 3}


@pytest.mark.parametrize("slices", [1, 2])
def test_what_the_config_says_wins(slices):
  assert compiler.options(mesh_of(slices), {PIPELINING: True}) == {PIPELINING: True}


@pytest.mark.parametrize("platform, left", [("tpu", "tpu"), ("cuda", "gpu"), ("rocm", "gpu"), ("cpu", "cpu")])
def test_options_of_other_platforms_are_left_out(platform, left):
  chosen = {f"xla_{name}_x": 1 for name in ("cpu", "gpu", "tpu")}
  want = {f"xla_{left}_x": 1, "xla_x": 2}
  assert compiler.for_these([Device(platform, 0)], {**chosen, "xla_x": 2}) == want


def test_a_config_for_tpus_is_assembled_on_a_cpu_which_is_not_told_of_them(caplog):
  with caplog.at_level("INFO", logger="mmjax"):
    run = smoke(xla_tpu_scheduler_percent_shared_memory_limit=3)
  assert "compiler_options.xla_tpu_scheduler_percent_shared_memory_limit: left out, " in caplog.text
  assert run.settings.compiler_options and compiler.options(run.mesh, run.settings.compiler_options) == {}


def smoke(**options):
  config = config_lib.load("masked/mae:smoke", {"batch_size": "8"})
  return assemble({**config, "compiler_options": options}, example_data=True)


@pytest.mark.slow
def test_the_step_is_compiled_with_those_of_the_config():
  run = smoke(xla_cpu_enable_fast_math=True)
  with run.use():
    traced = run.step_fn().trace(run.abstract, run.abstract_batch)
  assert traced.lower().compile().input_shardings  # the compiler takes them
  # One that it knows no value for is refused by the very same step, so they do reach it.
  wrong = smoke()
  wrong.settings.compiler_options["xla_cpu_enable_fast_math"] = "maybe"
  with wrong.use(), pytest.raises(Exception, match="xla_cpu_enable_fast_math"):
    wrong.step_fn().lower(wrong.abstract, wrong.abstract_batch).compile()


@pytest.mark.parametrize("options, line", [
    ({"xla_no_such_option": 3}, r"compiler_options\.xla_no_such_option: the compiler for cpu does not "
                                "take 3: .*No such"),
    ({"xla_cpu_enable_fast_math": "maybe"}, r"compiler_options\.xla_cpu_enable_fast_math: .*'maybe'")])
def test_what_the_compiler_does_not_take_is_named_at_the_start(options, line):
  with pytest.raises(ConfigError, match=line) as caught:
    smoke(**options)
  assert "\n" not in str(caught.value)
