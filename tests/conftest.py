"""Every test runs on the CPU with eight host devices, set before jax is imported."""

import importlib
import os

os.environ["JAX_PLATFORMS"] = "cpu"
# The devices of a collective wait for one another in threads. With few cores XLA:CPU has too few of these, and it
# aborts the process when one is 40 s late, which on a busy machine is no sign of a deadlock.
os.environ["NPROC"] = "32"
os.environ["XLA_FLAGS"] = ("--xla_force_host_platform_device_count=8 "
                           "--xla_cpu_collective_call_terminate_timeout_seconds=600")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest


@pytest.fixture(autouse=True)
def programs_of_runs_stay_with_them():
  """`train` turns on JAX's cache of programs on disk; the tests after it in the process go without.

  What XLA:CPU reads back from there for eight devices is not what these tests are about.
  """
  yield
  if jax.config.jax_compilation_cache_dir is not None:
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def quick_compilation():
  """For modules whose programs are small and run a few times: unoptimised, they compile twice as quickly."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item):
  """In CI a reference test that is skipped has failed: nobody would notice its absence."""
  report = (yield).get_result()
  if report.skipped and os.environ.get("CI") and "conformance" in item.nodeid:
    report.outcome, report.longrepr = "failed", f"skipped in CI: {report.longrepr}"


def needs(module: str):
  """The optional module, which in CI must be there; elsewhere its absence skips, with the reason."""
  if os.environ.get("CI"):
    return importlib.import_module(module)
  return pytest.importorskip(module, reason=f"{module} is not installed (pip install mmjax[test])")
