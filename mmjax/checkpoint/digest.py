"""SHA-256 of a training state, to the bit: two runs are equal if and only if their digests are."""

import hashlib

from etils import epath
import numpy as np

from mmjax.checkpoint import paths
from mmjax.checkpoint.checkpointer import Checkpointer

# Parts with a digest of their own: {name in the report: top-level name in the state}.
PARTS = {"params": "params", "optimizer": "opt_state", "state": "state", "teachers": "teachers"}


def tree_digest(tree):
  """Digest of a state in memory: over sorted names, dtypes, shapes and bytes (NaN payloads count).

  Args:
    tree: pytree of jax or NumPy arrays. How they are sharded does not matter, but every shard must
      be on this process's devices.

  Returns:
    {"params", "optimizer", "state", "teachers": SHA-256 in hex of that part (of nothing if it is
    empty), "step": the number in the leaf `step` or None, "all": SHA-256 in hex of every leaf}.

  Raises:
    ValueError: some shards of a leaf are on other processes.
  """
  flat = paths.flatten(tree)
  lines = {name: _line(name, leaf) for name, leaf in flat.items()}
  report = {part: _sha256(line for name, line in lines.items() if name.split("/")[0] == top)
            for part, top in PARTS.items()}
  report["step"] = int(flat["step"]) if "step" in flat else None
  report["all"] = _sha256(lines.values())
  return report


def digest(workdir):
  """`tree_digest` of the newest readable checkpoint of a run, found without knowing the model.

  Args:
    workdir: the run's directory, local, `gs://` or `s3://`, with the checkpoints in `checkpoints/`.

  Raises:
    FileNotFoundError: the run has no checkpoint.
    CheckpointError: none of its checkpoints can be read.
  """
  checkpointer = Checkpointer(epath.Path(workdir) / "checkpoints", read_only=True)
  tree, _ = checkpointer.restore_as_saved()
  return tree_digest(tree)


def _line(name, leaf):
  if not getattr(leaf, "is_fully_addressable", True):
    raise ValueError(
      f"{name} has shards on other processes; save a checkpoint and digest its workdir instead.")
  array = np.asarray(leaf)
  data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)  # hashlib cannot read bfloat16
  return f"{name} {array.dtype} {array.shape} {hashlib.sha256(data).hexdigest()}\n"


def _sha256(lines):
  return hashlib.sha256("".join(lines).encode()).hexdigest()
