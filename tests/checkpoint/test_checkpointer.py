"""Saving and restoring: bit for bit, on any mesh, under donation, with errors that help."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.checkpoint import manifest
from mmjax.checkpoint.checkpointer import Checkpointer, CheckpointError
from mmjax.checkpoint.digest import tree_digest
from tests.checkpoint import toy


@pytest.fixture
def saved(tmp_path):
  """A directory with steps 10 and 20, and the two states."""
  states = {step: toy.state(step) for step in (10, 20)}
  checkpointer = Checkpointer(tmp_path)
  for step, state in states.items():
    checkpointer.save(step, state, extra={"skipped": [[step, 7]]})
  checkpointer.close()
  return tmp_path, states


def test_newest_step_comes_back_bit_for_bit_with_its_class_and_extra(saved):
  directory, states = saved
  state, extra = Checkpointer(directory).restore(toy.abstract(states[20]))
  assert isinstance(state, toy.State) and extra == {"skipped": [[20, 7]]}
  assert tree_digest(state) == tree_digest(states[20])
  assert jax.tree.structure(state) == jax.tree.structure(states[20])


def test_any_step_can_be_chosen(saved):
  directory, states = saved
  state, extra = Checkpointer(directory).restore(toy.abstract(states[10]), step=10)
  assert tree_digest(state) == tree_digest(states[10]) and extra == {"skipped": [[10, 7]]}


@pytest.mark.parametrize("mesh", [(2, 4), (1, 1)])
def test_saved_on_one_mesh_restored_on_another(tmp_path, mesh):
  state = toy.state()
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, jax.device_put(state, toy.sharded(state, 8, 1)))
  shardings = toy.sharded(state, *mesh)
  abstract = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings)
  restored, _ = checkpointer.restore(abstract)
  assert tree_digest(restored) == tree_digest(state)
  assert jax.tree.all(jax.tree.map(lambda x, s: x.sharding == s, restored, shardings))


@pytest.mark.parametrize("mesh", [None, (8, 1)])
def test_donated_update_during_the_write_does_not_reach_the_checkpoint(tmp_path, mesh):
  update = jax.jit(lambda tree: jax.tree.map(lambda x: x * 3 + 1, tree), donate_argnums=0)
  state = {"params": {f"w{i}": jnp.full((1 << 18,), i, jnp.float32) for i in range(8)}}
  if mesh:
    state = jax.device_put(state, toy.sharded(state, *mesh))
  want = tree_digest(state)
  jax.block_until_ready(update(jax.tree.map(jnp.copy, state)))  # compiled before the race
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, state)
  for _ in range(5):
    state = update(state)
  jax.block_until_ready(state)
  restored, _ = checkpointer.restore(toy.abstract(state))
  assert tree_digest(restored) == want != tree_digest(state)


def test_what_is_written_shares_no_memory_with_the_state(tmp_path, monkeypatch):
  # XLA today notices that Orbax still looks at a donated buffer, and copies. We do not rely on it.
  state = toy.state()
  checkpointer = Checkpointer(tmp_path)
  seen = []
  monkeypatch.setattr(checkpointer._orbax, "save", lambda path, args: seen.append(args.item))
  checkpointer.save(1, state)

  def memory(tree):
    shards = [shard for leaf in jax.tree.leaves(tree) for shard in leaf.addressable_shards]
    return {shard.data.unsafe_buffer_pointer() for shard in shards}

  assert not memory(seen[0]) & memory(state)


def test_save_returns_before_the_checkpoint_is_complete(tmp_path, monkeypatch):
  write = manifest.write
  monkeypatch.setattr(manifest, "write", lambda *args: (time.sleep(0.5), write(*args)))
  checkpointer = Checkpointer(tmp_path)
  checkpointer.save(1, toy.state())
  assert checkpointer.steps() == []
  checkpointer.wait()
  assert checkpointer.steps() == [1]


def test_synchronous_save_returns_after_it(tmp_path):
  checkpointer = Checkpointer(tmp_path, async_=False)
  checkpointer.save(1, toy.state())
  assert checkpointer.steps() == [1]


@pytest.mark.parametrize("surfaces", ["wait", "save", "close"])
def test_failure_in_the_background_is_raised_by_the_next_call(tmp_path, monkeypatch, surfaces):
  def full(*args):
    raise OSError("No space left on device")

  checkpointer = Checkpointer(tmp_path)
  with monkeypatch.context() as patch:
    patch.setattr(manifest, "write", full)
    checkpointer.save(1, toy.state())
    calls = {"wait": checkpointer.wait, "close": checkpointer.close,
             "save": lambda: checkpointer.save(2, toy.state())}
    with pytest.raises(OSError, match="No space left"):
      calls[surfaces]()
  assert checkpointer.latest() is None
  if surfaces != "close":
    checkpointer.save(1, toy.state())  # the same step again, now that there is space
    checkpointer.close()
    assert checkpointer.steps() == [1]


def test_saving_the_step_one_stands_on_does_nothing(saved):
  directory, states = saved
  checkpointer = Checkpointer(directory)
  checkpointer.restore(toy.abstract(states[20]))
  assert not checkpointer.save(20, states[20])
  assert checkpointer.save(30, states[20]) and not checkpointer.save(30, states[20])
  checkpointer.close()


def test_step_of_another_run_is_never_overwritten(saved):
  directory, states = saved
  with pytest.raises(CheckpointError, match="already holds step 20"):
    Checkpointer(directory).save(20, states[20])


def test_retention_deletes_and_leaves_nothing_half_deleted(tmp_path):
  checkpointer = Checkpointer(
      tmp_path, keep_last=2, keep_every_steps=40, keep_best=("accuracy", "max", 1))
  for step, accuracy in zip(range(10, 80, 10), (1, 5, 9, 2, 3, 4, 9)):
    checkpointer.save(step, toy.state(step), metrics={"accuracy": accuracy})
  checkpointer.close()
  assert checkpointer.steps() == [40, 60, 70]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["40", "60", "70"]


def test_previous_checkpoint_stays_until_the_next_is_complete(tmp_path, monkeypatch):
  checkpointer = Checkpointer(tmp_path, keep_last=1)
  checkpointer.save(1, toy.state(1))
  checkpointer.wait()
  write, during = manifest.write, []
  monkeypatch.setattr(
      manifest, "write", lambda *args: (during.append(checkpointer.steps()), write(*args)))
  checkpointer.save(2, toy.state(2))
  checkpointer.close()
  assert during == [[1]] and checkpointer.steps() == [2]


def test_misspelt_best_metric_is_refused(tmp_path):
  checkpointer = Checkpointer(tmp_path, keep_best=("accuracy", "max", 1))
  with pytest.raises(KeyError, match="accuracy.*given.*loss"):
    checkpointer.save(1, toy.state(), metrics={"loss": 1.0})


@pytest.mark.parametrize("leaf, words", [
    (np.ones(3, np.float32), "params/x is a ndarray"), (jax.random.key(0), "PRNG key"),
    (jnp.zeros((0, 3)), "without elements")])
def test_leaf_that_cannot_be_saved_is_named(tmp_path, leaf, words):
  with pytest.raises(TypeError, match=words):
    Checkpointer(tmp_path).save(1, {"params": {"x": leaf}})


def test_extra_that_is_not_json_is_refused_at_once(tmp_path):
  with pytest.raises(TypeError, match="JSON"):
    Checkpointer(tmp_path).save(1, toy.state(), extra={"array": np.zeros(3)})


def test_changed_model_is_an_error_with_a_table(saved):
  directory, states = saved
  other = toy.state(20, width=32)
  params = {**other.params, "extra": {"bias": jnp.zeros(4)}}
  params.pop("head")
  params["encoder"] = {**params["encoder"], "half": jnp.zeros(16)}
  with pytest.raises(CheckpointError) as error:
    Checkpointer(directory).restore(toy.abstract(other.replace(params=params)))
  for line in ("! params/encoder/kernel   have float32[16, 16], want float32[16, 32]",
               "! params/encoder/half   have bfloat16[16], want float32[16]",
               "- params/head/kernel   have float32[8, 4], want nothing",
               "+ params/extra/bias   have nothing, want float32[4]"):
    assert line in str(error.value)
  assert str(directory / "20") in str(error.value)


def test_directory_without_checkpoints_is_an_error_at_restore(tmp_path):
  checkpointer = Checkpointer(tmp_path)
  assert checkpointer.latest() is None and checkpointer.steps() == []
  with pytest.raises(FileNotFoundError, match=str(tmp_path)):
    checkpointer.restore(toy.abstract(toy.state()))


def test_absent_step_is_an_error_that_lists_the_present_ones(saved):
  directory, states = saved
  with pytest.raises(FileNotFoundError, match=r"step 15 .*\[10, 20\]"):
    Checkpointer(directory).restore(toy.abstract(states[20]), step=15)


def test_other_format_version_is_refused_not_passed_over(saved, monkeypatch):
  directory, states = saved
  monkeypatch.setattr(manifest, "FORMAT_VERSION", manifest.FORMAT_VERSION + 1)
  with pytest.raises(CheckpointError, match="format_version 1; this mmjax reads 2"):
    Checkpointer(directory).restore(toy.abstract(states[20]))
  assert json.loads((directory / "20" / "mmjax.json").read_text())["manifest"]["step"] == 20


def test_read_only_changes_nothing(saved):
  directory, states = saved
  (directory / "30.orbax-checkpoint-tmp").mkdir()
  (directory / "20" / "_METADATA").unlink()
  before = sorted(directory.rglob("*"))
  checkpointer = Checkpointer(directory, read_only=True)
  state, _ = checkpointer.restore(toy.abstract(states[10]))
  assert tree_digest(state) == tree_digest(states[10])
  with pytest.raises(CheckpointError, match="read_only"):
    checkpointer.save(40, state)
  assert sorted(directory.rglob("*")) == before
