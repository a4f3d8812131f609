"""kill -9 at random moments, many inside a write: the run ends as an uninterrupted one does.

By hand, with another size and more kills:  python -m tests.faults.test_kill 500 20
"""

import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import pytest

from mmjax.checkpoint.checkpointer import Checkpointer
from mmjax.checkpoint.digest import tree_digest

ROOT = pathlib.Path(__file__).parents[2]
STEPS_BETWEEN_SAVES = 3
SAVES_IN_A_LIFE = 2  # a child is killed at its first or second save


def start(directory, megabytes, steps, steps_between_saves=STEPS_BETWEEN_SAVES):
  command = [sys.executable, "-m", "tests.faults.kill_child", str(directory)]
  numbers = [str(number) for number in (megabytes, steps, steps_between_saves)]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
  return subprocess.Popen(
      command + numbers, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


def read_until(child, word):
  """The number behind the next line that begins with `word`."""
  for line in child.stdout:
    if line.startswith(word):
      return int(line.split()[1])
  raise AssertionError(f"the child ended with status {child.wait()} before it printed {word!r}")


def run_to_end(directory, megabytes, steps, steps_between_saves=STEPS_BETWEEN_SAVES):
  child = start(directory, megabytes, steps, steps_between_saves)
  resumed = read_until(child, "resumed")
  *_, last_line = child.stdout
  assert child.wait() == 0
  return resumed, json.loads(last_line)


def kill_many_times(directory, megabytes, kills, longest_delay, seed):
  """Returns the digest at the end, how many kills were inside a write, and the number of steps."""
  rng = random.Random(seed)
  steps = STEPS_BETWEEN_SAVES * (SAVES_IN_A_LIFE * kills + 2)
  checkpoints = Checkpointer(directory, read_only=True)
  inside = 0
  for _ in range(kills):
    complete = checkpoints.latest()
    child = start(directory, megabytes, steps)
    assert read_until(child, "resumed") == (complete or 0)
    for _ in range(rng.randint(1, SAVES_IN_A_LIFE)):
      read_until(child, "saving")
    time.sleep(rng.uniform(0, longest_delay))
    child.kill()
    child.wait()
    inside += any(path.name.endswith("tmp") for path in directory.iterdir())
    assert (checkpoints.latest() or 0) >= (complete or 0)
  complete = checkpoints.latest()
  resumed, digest = run_to_end(directory, megabytes, steps)
  assert resumed == (complete or 0)
  on_disk, _ = checkpoints.restore_as_saved()
  assert tree_digest(on_disk) == digest
  assert not any(path.name.endswith("tmp") for path in directory.iterdir())
  return digest, inside, steps


@pytest.mark.slow
def test_killed_ten_times_equals_uninterrupted(tmp_path):
  digest, inside, steps = kill_many_times(
      tmp_path / "killed", megabytes=128, kills=10, longest_delay=0.3, seed=0)
  _, uninterrupted = run_to_end(tmp_path / "whole", 128, steps, steps_between_saves=steps)
  assert digest == uninterrupted
  assert digest["step"] == steps
  assert inside > 0  # otherwise the moments were badly chosen and nothing was tested


def main(megabytes, kills):
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    longest_delay = 0.003 * megabytes  # about the time of a write
    digest, inside, steps = kill_many_times(
        folder / "killed", megabytes, kills, longest_delay, seed=1)
    _, uninterrupted = run_to_end(folder / "whole", megabytes, steps, steps_between_saves=steps)
    print(f"{megabytes} MB, {kills} kills, {inside} inside a write, {steps} steps:",
          "equal" if digest == uninterrupted else "DIFFERENT", digest["all"])


if __name__ == "__main__":
  main(*map(int, sys.argv[1:]))
