"""A program that forgets to close its batches, fails, or loses a worker ends by itself, and
soon."""

import os
import pathlib
import subprocess
import sys

import pytest

PROGRAM = """
import multiprocessing, os, signal, sys
import jax
from jax.sharding import NamedSharding, PartitionSpec as P
from mmjax.data import loader
from tests.data import toys

if __name__ == "__main__":
  sharding = NamedSharding(jax.make_mesh((8,), ("data",)), P("data"))
  batches = loader.train_batches(toys.pictures(), 16, sharding, workers={workers})
  next(batches)
  {end}
"""
KILL = ("[os.kill(p.pid, signal.SIGKILL) for p in multiprocessing.active_children()]\n"
        "  [next(batches) for _ in range(50)]")


@pytest.mark.parametrize("workers, end, code, told", [
    (0, "sys.exit(0)", 0, ""),
    (0, "raise RuntimeError('the loop failed')", 1, "the loop failed"),
    pytest.param(1, "sys.exit(0)", 0, "", marks=pytest.mark.slow),
    pytest.param(1, KILL, 1, "terminated unexpectedly", marks=pytest.mark.slow),
])
def test_the_program_ends_with_its_own_exit_status(tmp_path, workers, end, code, told):
  program = tmp_path / "program.py"
  program.write_text(PROGRAM.format(workers=workers, end=end))
  root = str(pathlib.Path(__file__).parents[2])
  ended = subprocess.run([sys.executable, str(program)], env=dict(os.environ, PYTHONPATH=root),
                         capture_output=True, text=True, timeout=120)
  assert ended.returncode == code, ended.stderr
  assert told in ended.stderr
