"""The runner, with a quick program in place of training: cores, failures, signals, kill -9."""

import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from mmjax.config import ConfigError
from mmjax.sweep import results as results_lib
from mmjax.sweep import runner
from mmjax.sweep.plan import Trial

ROOT = pathlib.Path(__file__).parents[2]
FAKE = str(ROOT / "tests/sweep/fake_trial.py")

# Runs two trials in a process that the test can kill.
DRIVER = """
import sys
from tests.sweep import test_runner
sys.exit(test_runner.run(sys.argv[1], {"a": "slow", "b": "slow"}, processes=2)[0] or 0)
"""


def trials(kinds):
  return [Trial(name, {"kind": kind}, {"kind": kind}, None) for name, kind in kinds.items()]


def run(workdir, kinds, processes=1, steps=2):
  """(signal, results in the order in which they ended) of fake trials {name: kind}."""
  ended = []
  command = lambda trial: [sys.executable, FAKE, f"{workdir}/{trial.name}", str(steps),
                           trial.overrides["kind"]]
  stopped = runner.run(trials(kinds), str(workdir), processes, command,
                       lambda result, seconds: ended.append(result))
  return stopped, ended


def starts(workdir, name):
  return (workdir / name / "starts").read_text().splitlines()


def wait_for(condition):
  end = time.monotonic() + 60
  while not condition():
    assert time.monotonic() < end, "timed out"
    time.sleep(0.02)


def test_all_trials_run_and_are_not_run_again(tmp_path):
  kinds = {"a": "good", "b": "good", "c": "good"}
  stopped, ended = run(tmp_path, kinds)
  assert stopped is None
  assert [(r.trial.name, r.status, r.step, r.total) for r in ended] == [
      (name, "done", 2, 2) for name in "abc"]
  assert ended[0].last == {"loss": 0.5 + 0.01} and ended[0].curve("loss")[0] == [1, 2]
  assert run(tmp_path, kinds) == (None, [])
  assert [len(starts(tmp_path, name)) for name in kinds] == [1, 1, 1]


def test_a_trial_that_fails_says_its_last_line_and_does_not_stop_the_others(tmp_path):
  _, ended = run(tmp_path, {"a": "bad", "b": "killed", "c": "good"})
  assert [r.status for r in ended] == ["failed", "failed", "done"]
  assert ended[0].error == "status 1: mmjax train: the loss was not finite" and ended[0].step == 1
  assert ended[1].error == "status -9: step 1"
  assert results_lib.read(trials({"d": "good"})[0], str(tmp_path)).status == "waiting"


def test_what_failed_is_tried_again(tmp_path):
  run(tmp_path, {"a": "bad"})
  _, (again,) = run(tmp_path, {"a": "good"})
  assert again.status == "done" and len(starts(tmp_path, "a")) == 2
  assert [record["step"] for record in again.records] == [1, 2]


def test_processes_run_at_the_same_time_on_cores_of_their_own(tmp_path):
  if len(os.sched_getaffinity(0)) < 2:
    pytest.skip("one core cannot be divided")

  def go():
    wait_for(lambda: all((tmp_path / name / "starts").exists() for name in "ab"))
    [(tmp_path / name / "go").touch() for name in "ab"]

  threading.Thread(target=go).start()
  before = os.sched_getaffinity(0)
  run(tmp_path, {"a": "slow", "b": "slow"}, processes=2)  # each waits until the other has begun
  a, b = (set(starts(tmp_path, name)[0].split()) for name in "ab")
  assert a and b and not a & b and a | b == set(map(str, before))
  assert os.sched_getaffinity(0) == before


def test_gpus_are_dealt_out_or_their_memory_is(monkeypatch):
  monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
  shares = [runner._share(slot, 2)[1] for slot in range(2)]
  assert shares == [{"CUDA_VISIBLE_DEVICES": "4,6"}, {"CUDA_VISIBLE_DEVICES": "5,7"}]
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
  assert runner._share(2, 3)[1] == {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.300"}
  assert runner._share(0, 1)[1] == {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_trials_save_and_the_same_command_resumes_them(tmp_path, number):
  kinds = {"a": "slow", "b": "slow", "c": "slow"}

  def stop():
    wait_for(lambda: all((tmp_path / name / "metrics.jsonl").exists() for name in "ab"))
    os.kill(os.getpid(), number)

  # A shell's background job ignores SIGINT, and a sweep leaves alone what it began with ignoring.
  before = signal.signal(number, signal.default_int_handler)
  try:
    threading.Thread(target=stop).start()
    stopped, ended = run(tmp_path, kinds, processes=2)
    assert stopped == number and signal.getsignal(number) == signal.default_int_handler
  finally:
    signal.signal(number, before)
  assert sorted((r.trial.name, r.status, r.step) for r in ended) == [
      ("a", "stopped", 1), ("b", "stopped", 1)]
  # So Ctrl-C in a terminal reaches the sweep alone.
  assert (tmp_path / "a/leads_session").read_text() == "True"
  assert "saved" in (tmp_path / "a" / results_lib.OUTPUT).read_text()
  assert not (tmp_path / "c").exists()
  [(tmp_path / name).mkdir(exist_ok=True) for name in kinds]
  [(tmp_path / name / "go").touch() for name in kinds]
  stopped, ended = run(tmp_path, kinds)
  assert stopped is None and [r.status for r in ended] == ["done"] * 3
  assert [record["step"] for record in ended[0].records] == [1, 2]  # from where it was, not anew


def kill_a_sweep_of_a_and_b(tmp_path):
  """Starts a sweep in a process of its own and kills it with -9 while both trials run."""
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], cwd=ROOT, env=env)
  wait_for(lambda: all((tmp_path / name / "metrics.jsonl").exists() for name in "ab"))
  driver.kill()
  driver.wait()


def test_a_sweep_killed_with_9_leaves_trials_that_the_next_one_waits_for(tmp_path):
  kill_a_sweep_of_a_and_b(tmp_path)
  a, b = trials({"a": "slow", "b": "slow"})
  assert results_lib.read(a, str(tmp_path)).status == "running"

  def end_b_without_success_and_let_a_go_on():
    time.sleep(1)  # by now the second sweep waits for both
    os.kill(results_lib.process_of(tmp_path / "b" / results_lib.OUTPUT), signal.SIGKILL)
    wait_for(lambda: len(starts(tmp_path, "b")) == 2)
    [(tmp_path / name / "go").touch() for name in "ab"]

  threading.Thread(target=end_b_without_success_and_let_a_go_on, daemon=True).start()
  stopped, ended = run(tmp_path, {"a": "slow", "b": "slow"}, processes=2)
  assert stopped is None
  assert sorted((r.trial.name, r.status) for r in ended) == [("a", "done"), ("b", "done")]
  assert len(starts(tmp_path, "a")) == 1 and len(starts(tmp_path, "b")) == 2


def test_trials_of_a_killed_sweep_are_stopped_with_the_next_one(tmp_path):
  kill_a_sweep_of_a_and_b(tmp_path)
  threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
  stopped, ended = run(tmp_path, {"a": "slow", "b": "slow"}, processes=2)
  assert stopped == signal.SIGTERM and [r.status for r in ended] == ["stopped"] * 2
  assert len(starts(tmp_path, "a")) == 1 and len(starts(tmp_path, "b")) == 1


def test_two_sweeps_do_not_work_in_one_directory(tmp_path):
  with runner.only_one(str(tmp_path)):
    with pytest.raises(ConfigError, match="another mmjax sweep works in it"):
      with runner.only_one(str(tmp_path)):
        pass
  with runner.only_one(str(tmp_path)):
    pass
