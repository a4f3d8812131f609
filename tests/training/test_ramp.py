"""A run whose batch grows: its rows, durations, resumption, figures and errors."""

import logging
import pathlib
import re
import types

import numpy as np
import pytest

import mmjax
from mmjax import train
from mmjax.config import ConfigError
from mmjax.data import loader
from mmjax.report import writers
from mmjax.training import hooks
from mmjax.training import ramp
from mmjax.training.assemble import assemble
from mmjax.training.hooks import Halted
from tests.training import tiny

RAMP = [{"until_steps": 3, "batch_size": 8}, {"until_steps": 5, "batch_size": 24}]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  return tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz")


def config(pairs, **changes):
  return tiny.config(pairs, **{"batch_ramp": RAMP, "log_every_steps": 1, **changes})


def stopped_after(monkeypatch, last):
  """Makes a run end after the step `last` without a checkpoint, as a kill would."""
  class Stopped(train.Hooks):
    def after(self, step, state, metrics):
      super().after(step, state, metrics)
      self.done = self.done or step == last

  monkeypatch.setattr(train, "Hooks", Stopped)


def losses(workdir):
  lines = writers.read(str(pathlib.Path(workdir) / "metrics.jsonl"))
  return {line["step"]: line["loss"] for line in lines if "loss" in line}


@pytest.mark.slow
def test_a_run_resumed_within_a_ramp_equals_the_unbroken_one(pairs, tmp_path, monkeypatch, caplog):
  whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
  node = config(pairs, checkpoint={"every_steps": 2})
  with caplog.at_level(logging.INFO, logger="mmjax"):
    train.train(node, whole)
  compiled = re.findall(r"first step of (\d+) rows launched", caplog.text)
  assert compiled == ["8", "24", "16"]
  with monkeypatch.context() as patch:
    stopped_after(patch, 5)          # saved at step 4, in the middle of the second stage
    train.train(node, parts)
  assert mmjax.digest(parts)["step"] == 4
  train.train(node, parts)
  assert mmjax.digest(parts) == mmjax.digest(whole)
  assert losses(parts) == losses(whole) and len(losses(whole)) == 8
  with pytest.raises(ConfigError, match=r"another order \(batch_ramp.0.batch_size: 8 -> 16\)"):
    changed = [{**RAMP[0], "batch_size": 16}, RAMP[1]]
    train.train(config(pairs, batch_ramp=changed, total_steps=9), whole)
  with pytest.raises(ConfigError, match=r"another order \(batch_ramp: "):
    train.train(config(pairs, batch_ramp=None), whole)


@pytest.mark.slow
def test_the_step_compiles_once_for_each_size(pairs):
  run = assemble(config(pairs))
  state, step_fn = run.create_state(), run.step_fn()
  rows = []
  sizes = run.settings.batch_sizes
  with run.use(), loader.train_batches(run.stream, sizes, run.batch_sharding) as batches:
    for _, (_, batch) in zip(range(8), batches):
      rows += np.asarray(batch["row"][:, 1]).tolist()
      state, _ = step_fn(state, batch)
  assert step_fn._cache_size() == 3
  assert rows == list(range(3 * 8 + 2 * 24 + 3 * 16))


@pytest.mark.parametrize("length, steps", [
    ({"total_examples": 3 * 8 + 2 * 24 + 16 * 10}, 15),
    ({"total_epochs": 3.5}, 5 + 152 / 16),        # 64 records an epoch; 72 rows in the ramp
    ({"total_examples": 3 * 8 + 2 * 24 + 9}, 6),  # the nearest whole number of steps
])
def test_the_runs_length_counts_the_rows_of_the_ramp(pairs, length, steps):
  node = config(pairs, **length)
  del node["total_steps"]
  assert assemble(node).settings.total_steps == round(steps)


def test_durations_under_a_ramp(pairs):
  warm = {"schedule": {"name": "cosine", "warmup_examples": 3 * 8 + 24}}
  run = assemble(config(pairs, total_steps=20, optim=warm, checkpoint={"every_percent": 50}))
  assert run.config["optim"]["schedule"]["warmup_steps"] == 4
  assert run.checkpoint.every_steps == 10
  with pytest.raises(ConfigError, match=r"^log_every_epochs: .* give log_every_steps or log_every_p"):
    node = config(pairs, log_every_epochs=1)
    del node["log_every_steps"]
    assemble(node)


def test_stages_may_end_by_rows_and_batches_may_shrink():
  nodes = [{"until_examples": 80.0, "batch_size": 8}, {"until_examples": 145, "batch_size": 32},
           {"until_steps": 20, "batch_size": 4}]
  sizes = ramp.resolve(nodes, 16)
  assert sizes.stages == ((10, 8), (12, 32), (20, 4)) and sizes.last == 16
  assert ramp.resolve(ramp.nodes(sizes), 16) == sizes
  assert ramp.resolve(None, 16).stages == ramp.resolve([], 16).stages == ()


@pytest.mark.slow
def test_rows_per_second_count_the_rows_of_each_step_and_no_compilation(pairs, tmp_path, monkeypatch):
  now = 0.0
  monkeypatch.setattr(hooks, "time", types.SimpleNamespace(monotonic=lambda: now))

  class Timed(train.Hooks):
    def after(self, step, state, metrics):
      nonlocal now
      super().after(step, state, metrics)
      now += 1.0  # the next step takes a second

  monkeypatch.setattr(train, "Hooks", Timed)
  train.train(config(pairs, log_every_steps=4, checkpoint={"every_steps": 100}), str(tmp_path))
  lines = writers.read(str(tmp_path / "metrics.jsonl"))
  rates = {line["step"]: line["examples_per_s"] for line in lines if "examples_per_s" in line}
  # Steps 1 to 4 are written by step 5 after 4 seconds, of which the first step of 24 rows compiled
  # for one; steps 5 to 8 three seconds later, of which the first step of 16 rows compiled for one.
  assert rates == {4: (3 * 8 + 24) / 3, 8: (24 + 3 * 16) / 2}


@pytest.mark.slow
def test_halting_names_the_rows_of_its_step(pairs, tmp_path):
  with np.load(pairs) as file:
    arrays = dict(file)
  arrays["image"][:] = np.inf
  poisoned = str(tmp_path / "poisoned.npz")
  np.savez(poisoned, **arrays)
  node = config(poisoned, batch_ramp=[{"until_steps": 1, "batch_size": 8}])
  with pytest.raises(Halted, match=r"step 1; .* the rows 0 to 7 of the data"):
    train.train(node, str(tmp_path / "run"))


@pytest.mark.parametrize("stages, message", [
    ([{"until_steps": 4, "batch_size": 8}, {"until_steps": 4, "batch_size": 16}],
     r"^batch_ramp.1: ends at step 4, but begins at step 4"),
    ([{"until_steps": 0, "batch_size": 8}], r"^batch_ramp.0: ends at step 0, but begins at step 0"),
    ([{"until_examples": 3, "batch_size": 8}], r"^batch_ramp.0: ends at step 0"),
    ([{"until_steps": 4, "batch_size": 12}],
     r"^batch_ramp.0.batch_size: 12 rows cannot be cut .* take a multiple of 8"),
    ([{"until_steps": 4, "batch_size": 0}], r"^batch_ramp.0: batch_size: must be at least 1, not 0"),
    ([{"until_steps": 8, "batch_size": 8}],
     r"^batch_ramp.0: ends at step 8, but the run has only 8 steps"),
    ([{"batch_size": 8}], r"^batch_ramp.0: give the stage's end as one of until_steps, until_ex"),
    ([{"until_steps": 4, "until_examples": 9, "batch_size": 8}], r"^batch_ramp.0: give .* one of"),
    ([{"until_steps": 4}], r"^batch_ramp.0.batch_size: is missing"),
    ([{"until_epochs": 4, "batch_size": 8}],
     r"^batch_ramp.0.until_epochs: unknown key; did you mean 'until_steps'"),
    ([{"until_steps": 4.5, "batch_size": 8}], r"^batch_ramp.0.until_steps: expected int or None"),
    ([8], r"^batch_ramp.0: expected dict, not 8"),
    (8, r"^batch_ramp: expected list or None, not 8"),
])
def test_a_ramp_that_cannot_be_is_refused_in_one_line(pairs, stages, message):
  with pytest.raises(ConfigError, match=message) as error:
    assemble(config(pairs, batch_ramp=stages))
  assert "\n" not in str(error.value)
