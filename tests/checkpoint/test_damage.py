"""What a kill leaves behind, and what a bad disk does, never passes for a good checkpoint."""

import logging
import shutil

from etils import epath
import orbax.checkpoint as ocp
import pytest

from mmjax.checkpoint import checkpointer as module
from mmjax.checkpoint.checkpointer import Checkpointer, CheckpointError
from mmjax.checkpoint.digest import tree_digest
from tests.checkpoint import toy


def save(directory, *steps):
  checkpointer = Checkpointer(directory, keep_last=9)
  for step in steps:
    checkpointer.save(step, toy.state(step))
  checkpointer.close()


def files(directory):
  return sorted(path for path in directory.rglob("*") if path.is_file())


def flip(path):
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)


def truncate(path):
  path.write_bytes(path.read_bytes()[:-1])


def remove(path):
  path.unlink()


@pytest.mark.parametrize("damage", [flip, truncate, remove])
def test_damage_to_any_file_is_noticed_named_and_passed_over(tmp_path, caplog, damage):
  save(tmp_path / "intact", 10, 20)
  orbax_only = {"_CHECKPOINT_METADATA", "commit_success.txt"}  # nothing of the state is in them
  for i, file in enumerate(files(tmp_path / "intact" / "20")):
    directory = tmp_path / str(i)
    shutil.copytree(tmp_path / "intact", directory)
    target = directory / file.relative_to(tmp_path / "intact")
    damage(target)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
      state, _ = Checkpointer(directory).restore(toy.abstract(toy.state()))
    if target.name in orbax_only:
      assert int(state.step) == 20
    else:
      assert tree_digest(state) == tree_digest(toy.state(10)), target
      assert "DAMAGED" in caplog.text and str(target) in caplog.text
      assert (directory / "20.damaged").is_dir() and not (directory / "20").exists()


def test_run_goes_on_over_a_damaged_step(tmp_path):
  save(tmp_path, 10, 20)
  flip(tmp_path / "20" / "_METADATA")
  checkpointer = Checkpointer(tmp_path)
  checkpointer.restore(toy.abstract(toy.state()))
  assert checkpointer.save(20, toy.state(20))
  checkpointer.close()
  state, _ = Checkpointer(tmp_path).restore(toy.abstract(toy.state()))
  assert tree_digest(state) == tree_digest(toy.state(20))


def test_nothing_left_is_an_error_that_says_what_to_do(tmp_path):
  save(tmp_path, 10, 20)
  flip(tmp_path / "10" / "_METADATA")
  (tmp_path / "20" / "mmjax.json").write_text("{")
  checkpointer = Checkpointer(tmp_path)
  with pytest.raises(CheckpointError) as error:
    checkpointer.restore(toy.abstract(toy.state()))
  files_named = [str(tmp_path / "10" / "_METADATA"), str(tmp_path / "20" / "mmjax.json")]
  for words in [*files_named, "start anew"]:
    assert words in str(error.value)
  assert checkpointer.latest() == 20  # so that no caller takes the run for a new one


def test_chosen_step_that_is_damaged_is_an_error_not_another_step(tmp_path):
  save(tmp_path, 10, 20)
  flip(tmp_path / "20" / "_METADATA")
  with pytest.raises(CheckpointError, match="_METADATA"):
    Checkpointer(tmp_path).restore(toy.abstract(toy.state()), step=20)
  assert (tmp_path / "20").is_dir()


def test_half_written_checkpoint_is_ignored_and_removed(tmp_path):
  save(tmp_path, 10, 20)
  (tmp_path / "20").rename(tmp_path / "20.orbax-checkpoint-tmp")  # all written, not yet committed
  assert Checkpointer(tmp_path, read_only=True).latest() == 10
  assert Checkpointer(tmp_path).latest() == 10
  assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_half_deleted_checkpoint_is_ignored_and_removed(tmp_path):
  save(tmp_path, 10, 20)
  (tmp_path / "20" / "mmjax.deleted").touch()  # the first thing a deletion does
  assert Checkpointer(tmp_path).latest() == 10
  assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_deletion_that_dies_midway_leaves_nothing_that_looks_complete(tmp_path, monkeypatch):
  def die(path):
    raise KeyboardInterrupt

  checkpointer = Checkpointer(tmp_path, keep_last=1, async_=False)
  checkpointer.save(10, toy.state(10))
  with monkeypatch.context() as patch:
    patch.setattr(type(epath.Path(tmp_path)), "rmtree", die)
    with pytest.raises(KeyboardInterrupt):
      checkpointer.save(20, toy.state(20))
  assert (tmp_path / "10").exists() and Checkpointer(tmp_path, read_only=True).steps() == [20]


def test_on_an_object_store_the_last_file_commits(tmp_path, monkeypatch):
  # There is no rename there; the protocol is Orbax's, and runs on a local disk as well.
  commit_file = ocp.options.AtomicityOptions(ocp.options.AtomicityMode.COMMIT_FILE)
  assert module._atomicity(epath.Path("s3://bucket/run")) == commit_file
  monkeypatch.setattr(module, "_atomicity", lambda path: commit_file)
  save(tmp_path, 10, 20)
  state, _ = Checkpointer(tmp_path).restore(toy.abstract(toy.state()))
  assert tree_digest(state) == tree_digest(toy.state(20))
  (tmp_path / "20" / "commit_success.txt").unlink()
  assert Checkpointer(tmp_path).latest() == 10
  assert [path.name for path in tmp_path.iterdir()] == ["10"]


def test_files_of_others_are_left_alone(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  (tmp_path / "old").mkdir()
  save(tmp_path, 10)
  assert Checkpointer(tmp_path).steps() == [10]
  assert sorted(path.name for path in tmp_path.iterdir()) == ["10", "notes.txt", "old"]
