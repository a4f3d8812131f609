"""Several processes: they compute together, agree, stop together and die together."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import textwrap
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.parallel import processes

ROOT = pathlib.Path(__file__).parents[2]
HANG = 120  # seconds after which a test calls a process hanging; the usual is below 15


@pytest.mark.parametrize("arguments", [
    ("localhost:1", None, None), ("localhost:1", 2, None), (None, 2, 0)])
def test_half_a_description_of_the_processes_is_an_error(arguments):
  with pytest.raises(ValueError, match="give all three"):
    processes.start(*arguments)


def test_the_environment_describes_the_processes(monkeypatch):
  for name, value in zip(processes.ENVIRONMENT, ("host:1", "4", "3")):
    monkeypatch.setenv(name, value)
  assert processes._who(None, None, None) == ("host:1", 4, 3)
  assert processes._who("other:2", 2, 0) == ("other:2", 2, 0)


def test_alone_everything_is_trivial():
  processes.start()
  processes.barrier("alone")
  processes.agree("config")
  assert processes.is_lead()
  tree = processes.fetch({"a": jnp.arange(3), "b": 2.0})
  np.testing.assert_array_equal(tree["a"], [0, 1, 2])
  assert isinstance(tree["a"], np.ndarray) and not jax.distributed.is_initialized()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step(number):
  before = signal.getsignal(number)
  with processes.StopRequest() as stop:
    assert not stop.after(0)
    os.kill(os.getpid(), number)
    assert stop.after(1)
  assert signal.getsignal(number) is before


def test_a_second_interrupt_is_immediate():
  with processes.StopRequest():
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)
      time.sleep(1)


def _launch(program, *arguments):
  """A Python process in the repository root that runs `program`, with one CPU device."""
  env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  return subprocess.Popen(
      [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)],
      cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def _finish(*children):
  """Their (exit status, stdout, stderr); none may outlive HANG."""
  try:
    outputs = [child.communicate(timeout=HANG) for child in children]
  finally:
    for child in children:
      child.kill()
  return [(child.returncode, *output) for child, output in zip(children, outputs)]


def _last_line(output):
  """What the program printed last (Gloo prints its connections before that)."""
  return output.splitlines()[-1]


def _wait_for_first_step(children):
  for child in children:
    assert any(line == "step\n" for line in child.stdout), "ended before its first step"


def test_the_watchdog_ends_a_process_that_makes_no_progress():
  child = _launch("""
      import time
      from mmjax.parallel import processes
      watchdog = processes.Watchdog(1.0)
      watchdog.mark()
      def stuck():
        time.sleep(600)
      stuck()
      """)
  (status, _, errors), = _finish(child)
  assert status == 1 and "in stuck" in errors


def test_a_watchdog_that_is_marked_or_closed_or_off_does_not_fire():
  child = _launch("""
      import time
      from mmjax.parallel import processes
      processes.Watchdog(None).mark()
      watchdog = processes.Watchdog(1.0)
      for _ in range(4):
        watchdog.mark()
        time.sleep(0.4)
      watchdog.close()
      time.sleep(1.2)
      print("alive")
      """)
  assert _finish(child)[0][:2] == (0, "alive\n")


def test_a_watchdog_of_no_seconds_is_an_error():
  with pytest.raises(ValueError, match="seconds=0"):
    processes.Watchdog(0)


START = """
import os, sys, time
import jax, jax.numpy as jnp, numpy as np
from mmjax.parallel import mesh as mesh_lib, processes
index = int(sys.argv[2])
for _ in range(2):  # the second call does nothing
  processes.start("localhost:" + sys.argv[1], 2, index, connect_seconds=60, heartbeat_seconds=10,
                  shutdown_seconds=20)
mesh = mesh_lib.make_mesh()
rows = jax.make_array_from_callback(
    (4,), mesh_lib.batch_sharding(mesh), lambda place: np.arange(4.0, dtype=np.float32)[place])
total = jax.jit(jnp.sum, out_shardings=mesh_lib.replicated(mesh))
"""


def _pair(program):
  with socket.socket() as free:
    free.bind(("localhost", 0))
    port = free.getsockname()[1]
  return [_launch(START + textwrap.dedent(program), port, index) for index in range(2)]


@pytest.mark.slow
def test_two_processes_compute_together():
  pair = _pair("""
      processes.barrier("ready")
      processes.agree("same")
      whole = processes.fetch({"rows": rows, "total": total(rows)})
      print(processes.is_lead(), whole["rows"].tolist(), float(whole["total"]))
      """)
  results = _finish(*pair)
  for (status, output, errors), lead in zip(results, (True, False)):
    assert status == 0, errors
    assert _last_line(output) == f"{lead} [0.0, 1.0, 2.0, 3.0] 6.0"


@pytest.mark.slow
def test_different_configs_end_every_process():
  for status, output, errors in _finish(*_pair("processes.agree(f'config {index}')")):
    assert status == 1, output
    assert "the config of process(es) 1 differs from that of process 0" in errors


ENDLESS = """
print("step", flush=True)
while True:
  total(rows).block_until_ready()
  time.sleep(0.05)
"""


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_other(victim):
  pair = _pair(ENDLESS)
  _wait_for_first_step(pair)
  pair[victim].kill()
  results = _finish(*pair)
  assert results[victim][0] == -signal.SIGKILL
  assert results[1 - victim][0] not in (0, -signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_an_exception_in_one_process_ends_both_though_the_other_computes_nothing(victim):
  pair = _pair(f"""
      if index == {victim}:
        raise RuntimeError("broken")
      time.sleep(600)
      """)
  results = _finish(*pair)
  assert results[victim][0] == 1 and "broken" in results[victim][2]
  assert results[1 - victim][0] != 0


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_process_stops_both_after_the_same_step(number):
  pair = _pair("""
      with processes.StopRequest() as stop:
        for step in range(10_000):
          total(rows).block_until_ready()
          if step == 0:
            print("step", flush=True)
          if stop.after(step):
            break
          time.sleep(0.02)
      print(step)
      """)
  _wait_for_first_step(pair)
  pair[1].send_signal(number)
  (first, first_output, errors), (second, second_output, _) = _finish(*pair)
  assert (first, second) == (0, 0), errors
  last = _last_line(first_output)
  assert last == _last_line(second_output) and int(last) < 9_999
