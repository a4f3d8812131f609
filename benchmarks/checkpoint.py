"""How long a checkpoint holds up training, and how long it takes in all.

  python -m benchmarks.checkpoint --megabytes=500 --leaves=300

`blocking` is the time inside save(); the update during the write is donated, as in training.
"""

import argparse
import functools
import pathlib
import tempfile
import time

import jax
import jax.numpy as jnp

from mmjax.checkpoint.checkpointer import Checkpointer


@functools.partial(jax.jit, donate_argnums=0)
def update(state):
  return jax.tree.map(lambda x: 0.9 * x + 1, state)


def seconds(function, *args):
  start = time.perf_counter()
  result = jax.block_until_ready(function(*args))
  return time.perf_counter() - start, result


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--megabytes", type=int, default=500, help="size of the state, float32")
  parser.add_argument("--leaves", type=int, default=300, help="number of tensors")
  parser.add_argument("--saves", type=int, default=3)
  parser.add_argument("--directory", help="where to write (default: a temporary folder)")
  args = parser.parse_args()
  size = args.megabytes * (1 << 20) // 4 // args.leaves
  keys = jax.random.split(jax.random.key(0), args.leaves)
  state = {f"w{i}": jax.random.normal(key, (size,)) for i, key in enumerate(keys)}
  state = jax.block_until_ready(update(state))
  alone, state = seconds(update, state)
  print(f"{args.megabytes} MB in {args.leaves} tensors; an update takes {alone:.3f} s alone")
  with tempfile.TemporaryDirectory(dir=args.directory) as folder:
    checkpointer = Checkpointer(pathlib.Path(folder))
    for step in range(1, args.saves + 1):
      start = time.perf_counter()
      blocking, _ = seconds(checkpointer.save, step, state)
      during, state = seconds(update, state)
      checkpointer.wait()
      total = time.perf_counter() - start
      print(f"save {step}: blocking {blocking:.3f} s, an update during the write {during:.3f} s, "
            f"complete after {total:.2f} s")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), state)
    restore, _ = seconds(checkpointer.restore, abstract)
    print(f"restore with verification: {restore:.2f} s")
    checkpointer.close()


if __name__ == "__main__":
  main()
