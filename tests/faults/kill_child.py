"""A run to be killed: a deterministic, donated update of a large state, saved every few steps.

  python -m tests.faults.kill_child DIRECTORY MEGABYTES STEPS STEPS_BETWEEN_SAVES

Prints `resumed N` at the start, `saving N` right before each save, the state's digest at the end.
"""

import functools
import json
import sys

import jax
import jax.numpy as jnp

from mmjax.checkpoint.checkpointer import Checkpointer
from mmjax.checkpoint.digest import tree_digest

LEAVES = 16


def create(megabytes):
  size = megabytes * (1 << 20) // 4 // LEAVES  # float32
  keys = jax.random.split(jax.random.key(0), LEAVES)
  tensors = {f"w{i}": jax.random.normal(key, (size,)) for i, key in enumerate(keys)}
  names = sorted(tensors)
  half = len(names) // 2
  return {"step": jnp.int32(0), "params": {name: tensors[name] for name in names[:half]},
          "opt_state": {name: tensors[name] for name in names[half:]}}


@functools.partial(jax.jit, donate_argnums=0)
def update(state):
  """The next state depends on every step before: a step lost or repeated changes the digest."""
  step = state["step"] + 1
  tensors = {key: state[key] for key in ("params", "opt_state")}
  moved = jax.tree.map(lambda x: 0.99 * x[::-1] + jnp.cos(step.astype(jnp.float32)), tensors)
  return {**moved, "step": step}


def main(directory, megabytes, steps, steps_between_saves):
  checkpointer = Checkpointer(directory)
  abstract = jax.eval_shape(lambda: create(megabytes))
  if checkpointer.latest() is None:
    state = jax.jit(create, static_argnums=0)(megabytes)
  else:
    state, _ = checkpointer.restore(abstract)
  print("resumed", int(state["step"]), flush=True)
  for step in range(int(state["step"]) + 1, steps + 1):
    state = update(state)
    if step % steps_between_saves == 0:
      print("saving", step, flush=True)
      checkpointer.save(step, state)
  checkpointer.close()
  print(json.dumps(tree_digest(state)), flush=True)


if __name__ == "__main__":
  main(sys.argv[1], *map(int, sys.argv[2:]))
