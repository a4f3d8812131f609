"""The loop as a user runs it: learning, resuming bit for bit, one device and eight, halting, scheduling."""

import json
import pathlib
import signal

import jax
import numpy as np
import pytest

import mmjax
from mmjax import train
from mmjax.config import ConfigError
from mmjax.data.stream import DataError
from mmjax.report import writers
from mmjax.training.assemble import assemble
from mmjax.training.hooks import Halted
from tests.training import tiny


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  return tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz")


def metrics(workdir):
  return writers.read(str(pathlib.Path(workdir) / "metrics.jsonl"))


def test_a_run_learns_and_its_workdir_tells_all(pairs, tmp_path):
  evals = {"retrieval": {"every_steps": 20}, "loss": {}}
  results = train.train(tiny.config(pairs, total_steps=40, evals=evals), str(tmp_path))
  lines = metrics(tmp_path)
  losses = [line["loss"] for line in lines if "loss" in line]
  trivial = assemble(tiny.config(pairs)).objective.trivial(16)["sigmoid"]
  assert losses[-1] < 0.8 * trivial < losses[0]
  assert [line["step"] for line in lines if "retrieval/i2t/R@1" in line] == [20, 40]
  assert results["retrieval/i2t/R@1"] > 3 * results["retrieval/i2t/R@1/chance"]
  assert json.loads((tmp_path / "config.json").read_text())["total_steps"] == 40
  start, = json.loads((tmp_path / "provenance.json").read_text())
  assert start["packages"]["jax"] == jax.__version__ and start["data"][0]["records"] == 64
  assert "first step" in (tmp_path / "log.txt").read_text()
  assert list((tmp_path / "events").iterdir())
  assert lines[-1]["step"] == 40 and all(np.isfinite(line.get("grad_norm", 0)) for line in lines)


def test_resumed_run_equals_uninterrupted_bit_for_bit(pairs, tmp_path):
  whole, parts = tmp_path / "whole", tmp_path / "parts"
  train.train(tiny.config(pairs), str(whole))

  class Stopped(train.Hooks):
    def after(self, step, state, metrics):
      super().after(step, state, metrics)
      self.done = self.done or step == 5  # one step after a checkpoint, as a kill would

  original, train.Hooks = train.Hooks, Stopped
  try:
    train.train(tiny.config(pairs), str(parts))
  finally:
    train.Hooks = original
  assert mmjax.digest(str(parts))["step"] == 4
  train.train(tiny.config(pairs), str(parts))
  assert mmjax.digest(str(parts)) == mmjax.digest(str(whole))
  by_step = lambda workdir: {line["step"]: line["loss"] for line in metrics(workdir) if "loss" in line}
  assert by_step(parts) == by_step(whole)


@pytest.mark.slow
def test_scanned_and_looped_layers_share_a_checkpoint(pairs, tmp_path):
  looped = tiny.config(pairs)
  for tower in "image", "text":
    looped["objective"][tower] = {**looped["objective"][tower], "scan": False, "remat": "full"}
  run, other = assemble(tiny.config(pairs)), assemble(looped)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), run.abstract) == jax.tree.map(
      lambda x: (x.shape, x.dtype), other.abstract)
  train.train({**tiny.config(pairs), "total_steps": 4}, str(tmp_path))
  train.train({**looped, "total_steps": 8}, str(tmp_path))
  assert mmjax.digest(str(tmp_path))["step"] == 8


@pytest.mark.slow  # tests/parallel/test_recipes_sharded.py has quick ones
@pytest.mark.parametrize("mesh", [{"data": 8}, {"data": 2, "fsdp": 4}], ids=str)
@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_eight_devices_equal_one(pairs, mesh, loss):
  """Three steps, in parameters and loss; micro-batches besides, on the larger mesh."""
  # Adam divides by the gradient's own size: where that is zero but for rounding (key biases), eps decides.
  config = tiny.config(pairs, optim={"lr": 3e-3, "eps": 1e-3, "clip_norm": 1.0})
  config["objective"] = {**config["objective"], "losses": {loss: 1.0}}
  one = _steps(assemble(config, jax.devices()[:1]))
  many = _steps(assemble({**config, "mesh": mesh, "micro_batches": 2 if "fsdp" in mesh else 1}))
  np.testing.assert_allclose(many[1], one[1], rtol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), many[0], one[0])


def _steps(run, count=3):
  state, step_fn, losses = run.create_state(), run.step_fn(), []
  from mmjax.data import loader
  with run.use(), loader.train_batches(run.stream, 16, run.batch_sharding) as batches:
    for _, (_, batch) in zip(range(count), batches):
      state, metrics = step_fn(state, batch)
      losses.append(float(metrics["loss"].compute()))
  return jax.device_get(state.params), losses


def test_parameters_lie_on_the_fsdp_axis(pairs):
  run = assemble(tiny.config(pairs, mesh={"data": 2, "fsdp": 4}))
  kernels = {jax.tree_util.keystr(path, simple=True, separator="/"): sharding.spec
             for path, sharding in jax.tree_util.tree_leaves_with_path(run.shardings)
             if "mlp" in jax.tree_util.keystr(path)}
  sharded = [name for name, spec in kernels.items() if "fsdp" in spec]
  assert any(name.startswith("params/") for name in sharded)
  assert any("opt_state" in name for name in sharded) and any("teachers" in name for name in sharded)


def test_every_leaf_of_the_state_has_a_dtype_and_no_parameter_is_bf16(pairs):
  config = tiny.config(pairs)
  for tower in "image", "text":
    config["objective"][tower] = {**config["objective"][tower], "dtype": "bfloat16"}
  abstract = assemble(config).abstract
  assert not [leaf for leaf in jax.tree.leaves(abstract) if getattr(leaf, "weak_type", False)]
  assert {leaf.dtype.name for leaf in jax.tree.leaves((abstract.params, abstract.opt_state))} <= {
      "float32", "int32"}


@pytest.mark.slow
def test_a_step_compiles_once(pairs):
  run = assemble(tiny.config(pairs))
  state, step_fn = run.create_state(), run.step_fn()
  from mmjax.data import loader
  with run.use(), loader.train_batches(run.stream, 16, run.batch_sharding) as batches:
    for _, (_, batch) in zip(range(3), batches):
      state, _ = step_fn(state, batch)
  assert step_fn._cache_size() == 1


def test_a_loss_that_is_not_finite_halts_before_the_update(pairs, tmp_path):
  with np.load(pairs) as file:
    arrays = dict(file)
  arrays["image"][5] = np.inf
  poisoned = str(tmp_path / "poisoned.npz")
  np.savez(poisoned, **arrays)
  config = tiny.config(poisoned, total_steps=40, checkpoint={"every_steps": 1}, log_every_steps=1)
  with pytest.raises(Halted, match=r"not finite in step \d+; nothing was updated after step (\d+)") as error:
    train.train(config, str(tmp_path / "run"))
  kept = mmjax.digest(str(tmp_path / "run"))["step"] if "is kept" in str(error.value) else 0
  assert f"after step {kept}," in str(error.value)


@pytest.mark.slow
def test_sigterm_saves_and_the_next_run_goes_on(pairs, tmp_path):
  class Preempted(train.Hooks):
    def after(self, step, state, metrics):
      if step == 3:
        signal.raise_signal(signal.SIGTERM)
      super().after(step, state, metrics)

  original, train.Hooks = train.Hooks, Preempted
  try:
    train.train(tiny.config(pairs), str(tmp_path / "a"))
  finally:
    train.Hooks = original
  assert mmjax.digest(str(tmp_path / "a"))["step"] == 3
  train.train(tiny.config(pairs), str(tmp_path / "a"))
  train.train(tiny.config(pairs), str(tmp_path / "b"))
  assert mmjax.digest(str(tmp_path / "a")) == mmjax.digest(str(tmp_path / "b"))


@pytest.mark.slow
def test_keep_best_keeps_the_checkpoint_of_the_best_evaluation(pairs, tmp_path):
  config = tiny.config(pairs, evals={"retrieval": {}}, total_steps=12, checkpoint={
      "every_steps": 2, "keep_last": 1, "keep_best": ["retrieval/i2t/mean_rank", "min", 1]})
  train.train(config, str(tmp_path))
  ranks = {line["step"]: line["retrieval/i2t/mean_rank"] for line in metrics(tmp_path)
           if "retrieval/i2t/mean_rank" in line}
  best = min(ranks.values())
  kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir() if path.name.isdigit()}
  assert kept == {12, max(step for step, rank in ranks.items() if rank == best)}
  with pytest.raises(ConfigError, match="keep_best: 'retrival/x' is no evaluator's metric.*'retrieval'"):
    assemble({**config, "checkpoint": {"keep_best": ["retrival/x", "min", 1]}})


@pytest.mark.parametrize("best", (None, ["loss/sigmoid", "min", 1]))
def test_steps_are_saved_when_an_evaluator_fails_and_the_next_start_makes_up_for_it(best, pairs, tmp_path, monkeypatch):
  config = tiny.config(pairs, evals={"loss": {}}, total_steps=4, checkpoint={"every_steps": 2, "keep_best": best})

  def fail(session, name, evaluator):
    raise DataError("evaluation data are broken")
  with monkeypatch.context() as patched:
    patched.setattr(train.Session, "evaluate", fail)
    with pytest.raises(DataError, match="are broken"):
      train.train(config, str(tmp_path))
  before = mmjax.digest(str(tmp_path))
  assert before["step"] == (2 if best else 4)  # judged after every save, or at the end
  for _ in range(2):
    results = train.train(config, str(tmp_path))
    assert [line["step"] for line in metrics(tmp_path) if "loss/sigmoid" in line] == [4]
  assert np.isfinite(results["loss/sigmoid"])


def test_limits_on_bad_training_records_hold_in_evaluation_unless_it_has_its_own(pairs):
  source = {"source": {"name": "arrays", "path": pairs}, "shuffle": False}
  config = tiny.config(pairs, evals={"loss": {"data": {**source, "max_bad_fraction": 0.5}}, "retrieval": {"data": source}})
  config["data"] |= {"max_bad_fraction": 0.25, "max_bad": 9}
  run = assemble(config)
  limits = lambda stream: (stream.max_bad_fraction, stream.max_bad)
  assert limits(run.stream) == limits(run.eval_stream) == (0.25, 9)
  assert {e.name: limits(e.evaluator.data) for e in run.evaluations} == {"loss": (0.5, 9), "retrieval": (0.25, 9)}
  assert "max_bad" not in run.config["eval_data"]


def test_another_order_of_samples_is_refused(pairs, tmp_path):
  train.train(tiny.config(pairs, total_steps=2), str(tmp_path))
  with pytest.raises(ConfigError, match="another order .seed: 1 -> 2"):
    train.train(tiny.config(pairs, total_steps=4, seed=2), str(tmp_path))


@pytest.mark.slow
def test_a_loss_at_its_trivial_value_is_reported(pairs, tmp_path, caplog):
  config = tiny.config(pairs, total_steps=12, optim={"lr": 0.0}, log_every_steps=4)
  config["objective"] = {**config["objective"], "losses": {"softmax": 1.0}, "scale_init": 1e-3}
  with caplog.at_level("WARNING", logger="mmjax"):
    train.train(config, str(tmp_path))
  assert "trivial value 2.7726" in caplog.text  # ln 16


def test_eval_of_a_workdir_repeats_the_runs_figures(pairs, tmp_path):
  config = tiny.config(pairs, evals={"retrieval": {}})
  results = train.train(config, str(tmp_path))
  assert train.eval_workdir(str(tmp_path)) == results
  with pytest.raises(ConfigError, match=r"--step=3: .* has checkpoints of the steps \[4, 8\]"):
    train.eval_workdir(str(tmp_path), step=3)
