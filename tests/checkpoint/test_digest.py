"""Digests see every bit of a state, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.checkpoint.checkpointer import Checkpointer
from mmjax.checkpoint.digest import digest, tree_digest
from tests.checkpoint import toy


def test_digest_of_a_workdir_is_that_of_the_state_saved(tmp_path):
  state = toy.state(step=3)
  checkpointer = Checkpointer(tmp_path / "checkpoints")
  checkpointer.save(3, state)
  checkpointer.close()
  assert digest(tmp_path) == tree_digest(state)
  assert digest(tmp_path)["step"] == 3


@pytest.mark.parametrize("part, name", [
    ("params", "params"), ("opt_state", "optimizer"), ("state", "state")])
def test_one_bit_changes_the_digest_of_its_part_and_of_all(part, name):
  state = toy.state()
  leaves, treedef = jax.tree.flatten(getattr(state, part))
  flipped = np.array(leaves[-1])
  flipped.reshape(-1).view(np.uint8)[-1] ^= 1
  other = state.replace(**{part: treedef.unflatten([*leaves[:-1], jnp.asarray(flipped)])})
  before, after = tree_digest(state), tree_digest(other)
  assert {key for key in before if before[key] != after[key]} == {name, "all"}


def test_nan_payload_sign_of_zero_dtype_shape_and_name_are_seen():
  nan = np.array([0x7FC00001, 0x7FC00002], np.uint32).view(np.float32)
  trees = [
      {"params": {"a": nan[:1]}}, {"params": {"a": nan[1:]}}, {"params": {"a": np.float32([0.0])}},
      {"params": {"a": np.float32([-0.0])}}, {"params": {"a": np.int32([0])}},
      {"params": {"a": np.float32(0)}}, {"params": {"b": np.float32([0.0])}}]
  assert len({tree_digest(tree)["all"] for tree in trees}) == len(trees)


def test_halted_flag_is_in_all():
  state = toy.state()
  halted = state.replace(halted=jnp.bool_(True))
  assert tree_digest(state)["all"] != tree_digest(halted)["all"]


def test_sharding_is_not_seen():
  state = toy.state()
  assert tree_digest(jax.device_put(state, toy.sharded(state, 2, 4))) == tree_digest(state)


def test_workdir_without_checkpoint_is_an_error_that_names_it(tmp_path):
  with pytest.raises(FileNotFoundError, match=str(tmp_path)):
    digest(tmp_path)
  assert not (tmp_path / "checkpoints").exists()
