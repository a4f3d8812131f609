"""What masking saves: tokens, FLOPs and time of a masked autoencoder's step, by ratio.

  python -m benchmarks.masking                             # S/16, 224 pixels, float32, CPU
  python -m benchmarks.masking --device=gpu --size=l16     # the paper's ViT-L, bfloat16

The first row is a ViT on all tokens, a share of them replaced by mask tokens, with a linear head
(SimMIM). The others are MAE: the same ViT on the visible tokens alone, and a decoder of half its
width and a third of its depth on all, the proportions of the paper's ViT-L and decoder. Each is the
step of `mmjax train` (forward, backward, AdamW) on random images in memory; FLOPs are those of
`mmjax/training/flops.py`. The steps take turns in one process, so that other work on the machine
slows all, and shares are of the quickest repeat: in CPU-seconds of all threads on a CPU, else in
seconds.

The last line is JSON: `share_of_flops` and `share_of_time` of each row in the first.
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile

import jax
import numpy as np

from benchmarks.train_step import timed
from mmjax.masking import dropped
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.assemble import assemble

RATIOS = (0.5, 0.75, 0.9)
ALL = "all tokens"  # name of the first row


@dataclasses.dataclass(frozen=True)
class Case:
  """An encoder and its batch."""

  width: int
  depth: int
  heads: int
  pixels: int
  patch: int
  batch: int
  dtype: str

  @property
  def tokens(self):
    """Patches of an image."""
    return (self.pixels // self.patch) ** 2


CASES = {
    "s16": Case(384, 12, 6, pixels=224, patch=16, batch=8, dtype="float32"),
    "b16": Case(768, 12, 12, pixels=224, patch=16, batch=256, dtype="bfloat16"),
    "l16": Case(1024, 24, 16, pixels=224, patch=16, batch=256, dtype="bfloat16"),
    "tiny": Case(64, 3, 2, pixels=32, patch=4, batch=4, dtype="float32"),
}


def make_config(case, ratio, records):
  """MAE at a `ratio`, or with None the same ViT on all tokens, on the records of an .npz file."""
  encoder = {"name": "vit", "patch": case.patch, "width": case.width, "depth": case.depth,
             "heads": case.heads, "pool": "mean", "position": "sincos", "dtype": case.dtype,
             "scan": False, "mask_token": ratio is None}
  objective = {"name": "masked", "encoder": encoder, "target": {"name": "pixels"},
               "mask": {"name": "random", "ratio": ratio or 0.75}}
  if ratio is None:
    objective["hide"] = "token"
  else:
    objective["decoder"] = {
        "name": "masked_decoder", "width": case.width // 2, "depth": case.depth // 3,
        "heads": case.heads, "dtype": case.dtype, "scan": False}
  return {"seed": 0, "batch_size": case.batch, "total_steps": 1000, "objective": objective,
          "data": {"source": {"name": "arrays", "path": str(records)}},
          "optim": {"name": "adamw", "lr": 1e-3}}


def make_step(case, ratio):
  """(step, state, FLOPs of a step): the real step as `state -> (state, loss)`, and its start."""
  shape = (case.batch, case.pixels, case.pixels, 3)
  images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  with tempfile.TemporaryDirectory() as folder:
    records = pathlib.Path(folder) / "records.npz"
    np.savez(records, image=images)
    run = assemble(make_config(case, ratio, records), jax.devices()[:1])
  row = np.stack([np.zeros(case.batch, np.uint32), np.arange(case.batch, dtype=np.uint32)], axis=1)
  batch = {"image": images, "row": row, "valid": np.ones(case.batch, bool)}
  batch = jax.device_put(batch, run.batch_sharding)
  step_fn = run.step_fn()

  def step(state):
    with mesh_lib.use(run.mesh, run.settings.rules):
      state, metrics = step_fn(state, batch)
    return state, metrics["loss"].sum

  return step, run.create_state(), run.model_flops()


def measure(case, steps, repeats):
  """{ALL or ratio: (FLOPs, [(seconds, CPU-seconds) of a step, for each repeat])}."""
  made = {ratio or ALL: make_step(case, ratio) for ratio in (None, *RATIOS)}
  states = {name: state for name, (_, state, _) in made.items()}
  made = {name: (step, flops) for name, (step, _, flops) in made.items()}  # states are donated
  times = {name: [] for name in made}
  for repeat in range(repeats + 1):
    for name, (step, _) in made.items():
      one, states[name] = timed(step, states[name], steps)
      if repeat:  # the first time compiles
        times[name].append(one)
  return {name: (flops, times[name]) for name, (_, flops) in made.items()}


def report(case, measured, device):
  """Prints the table; returns what the last line holds."""
  clock = 1 if device == "cpu" else 0  # CPU-seconds or seconds
  quickest = {name: min(one[clock] for one in times) for name, (_, times) in measured.items()}
  flops_of_all = measured[ALL][0]
  print(f"{jax.devices()[0].device_kind}, jax {jax.__version__}; ViT {case.width} x {case.depth}, "
        f"{case.batch} images of {case.tokens} tokens; minimum (median) of the repeats")
  print(f"{'ratio':12}{'encoder':>9}{'decoder':>9}{'GFLOP':>10}{'share':>7}{'ms':>20}"
        f"{'CPU-s':>9}{'share':>7}")
  shares = {"share_of_flops": {}, "share_of_time": {}}
  for name, (flops, times) in measured.items():
    seen = case.tokens if name == ALL else case.tokens - dropped(case.tokens, name)
    wall, cpu = zip(*times)
    shares["share_of_flops"][str(name)] = round(flops / flops_of_all, 4)
    shares["share_of_time"][str(name)] = round(quickest[name] / quickest[ALL], 4)
    print(f"{name!s:12}{seen:9}{'-' if name == ALL else case.tokens:>9}{flops / 1e9:10.2f}"
          f"{flops / flops_of_all:7.1%}{1e3 * min(wall):10.1f} ({1e3 * np.median(wall):7.1f})"
          f"{min(cpu):9.3f}{quickest[name] / quickest[ALL]:7.1%}")
  return shares


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--size", choices=CASES, default="s16", help="b16 and l16 are meant for GPUs")
  parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
  parser.add_argument("--steps", type=int, default=1, help="steps in a row")
  parser.add_argument("--repeats", type=int, default=5, help="turns of all the rows")
  args = parser.parse_args(argv)
  if args.steps < 1 or args.repeats < 1:
    parser.error("--steps and --repeats must be at least 1")
  jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[args.device])
  try:
    jax.devices()
  except (RuntimeError, AssertionError) as error:  # without its plugin JAX only asserts
    parser.error(f"--device={args.device}: JAX finds none (pip install mmjax[cuda]?) {error}")
  case = CASES[args.size]
  print(json.dumps(report(case, measure(case, args.steps, args.repeats), args.device)))


if __name__ == "__main__":
  main()
