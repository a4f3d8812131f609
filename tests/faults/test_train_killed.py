"""`mmjax train`, killed with -9 at random moments and started again, ends as if nothing had happened."""

import os
import pathlib
import random
import subprocess
import sys
import time

import pytest

import mmjax
from mmjax.report import writers
from tests.training import tiny

ROOT = pathlib.Path(__file__).resolve().parents[2]
STEPS = 200


def start(pairs, workdir, *flags):
  env = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
  return subprocess.Popen(
      [sys.executable, "-m", "mmjax", "train", f"--config=tests/training/tiny_config.py:{pairs}",
       f"--workdir={workdir}", f"--config.total_steps={STEPS}", "--config.checkpoint.every_steps=5", *flags],
      cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def progress(workdir):
  """The newest checkpoint's step, 0 if there is none."""
  return max((int(path.name) for path in (workdir / "checkpoints").glob("*") if path.name.isdigit()), default=0)


@pytest.mark.slow
def test_killed_training_ends_bit_for_bit_as_uninterrupted(tmp_path):
  pairs = tiny.write_pairs(tmp_path / "pairs.npz")
  whole, killed = tmp_path / "whole", tmp_path / "killed"
  out, _ = start(pairs, whole).communicate(timeout=300)
  assert mmjax.digest(str(whole))["step"] == STEPS, out
  moment, kills = random.Random(5), 0
  for _ in range(5):
    child, before = start(pairs, killed), progress(killed)
    deadline = time.monotonic() + 120
    while child.poll() is None and time.monotonic() < deadline:
      if progress(killed) > before:
        time.sleep(moment.random())  # checkpoints are written all the time: many moments are inside a write
        break
      time.sleep(0.05)
    kills += child.poll() is None
    child.kill()
    child.communicate()
  assert kills >= 3, "the run ended before it could be killed"
  child = start(pairs, killed)
  out, _ = child.communicate(timeout=300)
  assert child.returncode == 0, out
  assert mmjax.digest(str(killed)) == mmjax.digest(str(whole))
  losses = lambda workdir: [line["loss"] for line in writers.read(str(workdir / "metrics.jsonl"))
                            if "loss" in line and line["step"] % 10 == 0]
  assert losses(killed) == losses(whole)
