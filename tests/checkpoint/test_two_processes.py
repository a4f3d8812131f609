"""Two processes save one sharded state together, and agree on which checkpoint to restore."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np

from mmjax.checkpoint.checkpointer import Checkpointer
from mmjax.checkpoint.digest import tree_digest

ROOT = pathlib.Path(__file__).parents[2]


def values(step):
  return {"step": np.int32(step), "params": {"sharded": np.arange(32, dtype=np.float32) + step,
                                             "replicated": np.full(5, step, np.float32)}}


def state(step):
  """The values on all devices of both processes; `sharded` is split over them."""
  mesh = jax.make_mesh((jax.device_count(),), ("data",))

  def place(x):
    sharding = NamedSharding(mesh, P("data") if x.shape == (32,) else P())
    return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

  return jax.tree.map(place, values(step))


def child(rank, port, directory):
  jax.distributed.initialize(f"localhost:{port}", 2, rank)
  checkpointer = Checkpointer(directory, keep_last=2)
  double = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2, tree), donate_argnums=0)
  for step in (1, 2, 3):
    saving = state(step)
    checkpointer.save(step, saving)
    jax.block_until_ready(double(saving))
  checkpointer.wait()
  multihost_utils.sync_global_devices("saved")
  if rank == 0:
    (pathlib.Path(directory) / "3" / "_METADATA").unlink()
  multihost_utils.sync_global_devices("damaged")
  restored, _ = checkpointer.restore(state(0))
  same = jax.tree.map(lambda x, y: jnp.array_equal(x, y), restored, state(2))
  saved_again = checkpointer.save(3, state(3))
  checkpointer.close()
  print(json.dumps([bool(jax.tree.all(same)), saved_again, checkpointer.steps()]))


def test_two_processes_save_fall_back_and_go_on_together(tmp_path):
  with socket.socket() as probe:
    probe.bind(("localhost", 0))
    port = probe.getsockname()[1]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu",
                 "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
  command = [sys.executable, "-m", "tests.checkpoint.test_two_processes"]
  children = [
      subprocess.Popen([*command, str(rank), str(port), str(tmp_path)], cwd=ROOT, env=environment,
                       stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
  outputs = [process.communicate(timeout=120)[0] for process in children]
  for output in outputs:
    assert json.loads(output.splitlines()[-1]) == [True, True, [2, 3]]
  on_disk, _ = Checkpointer(tmp_path, read_only=True).restore_as_saved()
  assert tree_digest(on_disk) == tree_digest(values(3))


if __name__ == "__main__":
  child(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
