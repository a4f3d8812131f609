"""The command line: mmjax train | eval | data.

An error of the user's (config, data, workdir) is one line and a non-zero exit status; anything else
keeps its traceback, since it is ours.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence

TRAIN = """\
Train what a config describes. The same command again resumes from the newest checkpoint.

  mmjax train --config=contrastive/siglip:smoke --workdir=runs/siglip
  mmjax train --config=my/config.py:large --workdir=gs://bucket/run --config.optim.lr=3e-4

--config is a file (its `get_config(arg)` is called with what stands behind the colon) or the name
of a config that comes with mmjax. Any value in it can be set by its path:
--config.objective.image.width=512, --config.data.transforms.1.size=96.
Durations may be given as _steps, _examples, _epochs or _percent.
The workdir holds config.json, provenance.json, log.txt, metrics.jsonl, TensorBoard events and
checkpoints.
"""
EVAL = """\
Run the evaluators on a checkpoint of a workdir.

  mmjax eval --workdir=runs/siglip                       the run's own config, newest checkpoint
  mmjax eval --workdir=runs/siglip --step=500
  mmjax eval --workdir=runs/siglip --config.evals.retrieval.max_records=1000
"""
DATA = """\
Look at what a config reads, or build the built-in dataset.

  mmjax data --config=contrastive/siglip:smoke           records, shapes, digest, speed, first texts
  mmjax data --config=contrastive/siglip:smoke --save=pictures.png
  mmjax data --build=scenes --count=20000 --size=64      into --data_dir, or else MMJAX_DATA_DIR,
                                                         or else ~/.cache/mmjax
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit status."""
  args, overrides = parse(sys.argv[1:] if argv is None else argv)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  logging.basicConfig(format="%(levelname).1s %(message)s", level=logging.WARNING)
  logging.getLogger("mmjax").setLevel(logging.INFO)
  from mmjax.checkpoint.checkpointer import CheckpointError  # jax starts here, not for --help
  from mmjax.config import ConfigError
  from mmjax.data.stream import DataError
  from mmjax.training.hooks import Halted
  try:
    {"train": _train, "eval": _eval, "data": _data}[args.verb](args, overrides)
  except (ConfigError, CheckpointError, DataError, Halted, PermissionError, NotADirectoryError,
          FileExistsError) as error:
    print(f"mmjax {args.verb}: {error}", file=sys.stderr)
    return _end(2 if isinstance(error, ConfigError) else 1)
  return 0


def _end(status: int) -> int:
  """The exit status; in a job of several processes the end itself, since the others wait."""
  import jax
  from mmjax.parallel import processes
  if jax.distributed.is_initialized():  # jax.process_count() would start the devices only to say 1
    processes.abort(status)
  return status


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
  """(arguments, {config path: text}). A wrong command line ends the program with status 2."""
  parser = argparse.ArgumentParser(
      prog="mmjax", description="Multimodal pretraining in JAX. `mmjax VERB --help` tells more.")
  verbs = parser.add_subparsers(dest="verb", required=True, metavar="train | eval | data")
  raw = argparse.RawDescriptionHelpFormatter

  def verb(name, text):
    return verbs.add_parser(name, help=text.splitlines()[0], description=text,
                            formatter_class=raw, allow_abbrev=False)

  train = verb("train", TRAIN)
  train.add_argument("--config", required=True, help="file.py[:arg] or shipped name[:arg]")
  train.add_argument("--workdir", required=True, help="directory of the run: local, gs:// or s3://")
  train.add_argument("--coordinator", help="for jobs of several processes: 'auto' asks the cluster "
                     "(TPU pod, Slurm, Kubernetes), else host:port of process 0")
  train.add_argument("--processes", type=int,
                     help="number of processes, with --coordinator=host:port")
  train.add_argument("--process", type=int,
                     help="number of this process, with --coordinator=host:port")

  evaluate = verb("eval", EVAL)
  evaluate.add_argument("--workdir", required=True, help="directory of the run")
  evaluate.add_argument("--config", help="use this config instead of the run's own")
  evaluate.add_argument("--step", type=int, help="which checkpoint; default the newest")

  data = verb("data", DATA)
  what = data.add_mutually_exclusive_group(required=True)
  what.add_argument("--config", help="show what this config reads")
  what.add_argument("--build", choices=["scenes"], help="build the built-in dataset")
  data.add_argument("--save", help="with --config: write the first pictures to this PNG")
  data.add_argument("--rows", type=int, default=256,
                    help="with --config: rows to read (default 256)")
  data.add_argument("--count", type=int, default=20_000,
                    help="with --build: records in train (default 20000)")
  data.add_argument("--size", type=int, default=64,
                    help="with --build: pixels a side (default 64)")
  data.add_argument("--data_dir", help="with --build: where to")

  args, rest = parser.parse_known_args(argv)
  fail = verbs.choices[args.verb].error
  overrides = {}
  while rest:
    flag, equals, text = rest.pop(0).partition("=")
    if not flag.startswith("--config.") or getattr(args, "build", None):
      fail(f"unknown argument {flag!r}; see mmjax {args.verb} --help")
    if not equals:
      if not rest:
        fail(f"{flag} needs a value")
      text = rest.pop(0)
    overrides[flag.removeprefix("--config.")] = text
  if getattr(args, "rows", 1) < 1:
    fail(f"--rows={args.rows}: must be at least 1")
  return args, overrides


def _train(args, overrides):
  from mmjax import config, train
  from mmjax.parallel import processes
  processes.start(args.coordinator, args.processes, args.process)
  train.train(config.load(args.config, overrides), args.workdir)


def _eval(args, overrides):
  from mmjax import config, train
  from mmjax.training import workdir
  if args.config:
    node = config.load(args.config, overrides)
  else:
    node = workdir.read_config(args.workdir)
    for path, text in overrides.items():
      config.override(node, path, text)
  train.eval_workdir(args.workdir, args.step, node)


def _data(args, overrides):
  from mmjax import config
  from mmjax.data import inspect
  from mmjax.training.assemble import make_stream
  try:
    if args.build:
      inspect.build_scenes(args.count, args.size, args.data_dir)
      return
    stream, _ = make_stream(config.load(args.config, overrides).get("data"), "data")
    inspect.show(stream, args.rows, args.save)
  except ValueError as error:
    raise config.ConfigError(str(error)) from error


if __name__ == "__main__":
  sys.exit(main())
