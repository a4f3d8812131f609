"""The command line: mmjax train | plan | eval | data | prepare | report | sweep | convert.

An error of the user's (config, data, workdir) is one line and a non-zero exit status; anything else
keeps its traceback, since it is ours.
"""

import argparse
import logging
import os
import re
import sys
from collections.abc import Sequence

from mmjax import cli_data, cli_prepare

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
PLAN = """\
Say before you pay whether a run fits a pod, what limits it and how fast it can be at best.

  mmjax plan --config=contrastive/siglip:l16 --topology=v5e:16x16
  mmjax plan --config=contrastive/siglip:l16 --topology=v5p:4x4x4 --slices=2 --json
  mmjax plan --config=contrastive/siglip:l16 --topology=h100:4x8 --config.batch_size=16384
  mmjax plan --config=contrastive/siglip:l16 --topology=v6e:8x8 --search

The very step that `mmjax train` runs is compiled by the TPU compiler (pip install 'mmjax[plan]')
for chips that are not here; no data are read. --topology is kind:shape of v4, v5e, v5p, v6e or
tpu7x, or one of Google's names such as v5litepod-256; of GPUs kind:nodes x GPUs, estimated on CPU
devices. The exit status is 1 if it does not fit. --config.PATH=VALUE sets any value of the config, for instance
--config.mesh.fsdp=16.
"""
EVAL = """\
Run the evaluators on a checkpoint of a workdir.

  mmjax eval --workdir=runs/siglip                       the run's own config, newest checkpoint
  mmjax eval --workdir=runs/siglip --step=500
  mmjax eval --workdir=runs/siglip --config.evals.retrieval.max_records=1000

Between the weights of a fine-tuned run (alpha 1) and of what it began with (alpha 0), a workdir or
a folder of another format (WiSE-FT); --save keeps those of one alpha as a workdir:

  mmjax eval --workdir=runs/pets --interpolate=PATH --alphas=0,0.25,0.5,0.75,1
  mmjax eval --workdir=runs/pets --interpolate=PATH --alphas=0.5 --save=runs/pets_half
"""
SWEEP = """\
Train a config under many settings, as ordinary runs on this machine, and compare them.

  mmjax sweep --config=contrastive/siglip:smoke --workdir=runs/sweep \\
      --grid.optim.lr=1e-3,3e-4 --grid.optim.weight_decay=0,1e-4 --seeds=3 --processes=2 \\
      --metric=retrieval/i2t/R@1 --config.total_steps=200
  mmjax sweep --config=... --workdir=... --random.optim.lr=log:1e-4:1e-2 --trials=12
  mmjax sweep --workdir=runs/sweep --show                the comparison anew, also while it runs

--grid.PATH=A,B,C      every combination of the lists is run. A value is what --config.PATH= takes;
                       a comma inside brackets or quotes does not separate: [4,4],[8,8] has two.
--random.PATH=RANGE    drawn --trials times, reproducibly: uniform:LOW:HIGH, log:LOW:HIGH (uniform
                       in the logarithm), int:LOW:HIGH (both included), or one of a list A,B,C.
                       Beside --grid, every point of the grid is run with the same draws.
--seeds=N              every setting N times, with seed=0 ... N-1 in the config: other initial
                       values, masks and augmentations, the same order of data (data.seed).
--config.PATH=VALUE    for all trials.

Each trial is an `mmjax train` run in WORKDIR/NAME, and what it prints is in output.log there. The
same command again goes on: what is done stays, what was interrupted resumes, what failed is tried
again. --dry-run prints the trials and the commands to run one by hand, for instance elsewhere.
The comparison is in sweep.html, sweep.csv and results.json.
"""
REPORT = """\
Write the report of a run: one HTML file with its curves, evaluations, config and provenance.

  mmjax report --workdir=runs/siglip                     into runs/siglip/report.html
  mmjax report --workdir=gs://bucket/run --out=run.html

Training writes it at its end; this writes it anew, also while the run is still going on.
"""
CONVERT = """\
Write a model for others, or take one of theirs.

  mmjax convert --from=runs/siglip --to=export                        a folder that transformers opens
  mmjax convert --from=hf_folder --to=runs/siglip_b16 --format=mmjax  a workdir without a run
  mmjax convert --from=runs/pets --to=export --encoder                the image encoder, without its classifier

--from is a workdir, a Hugging Face folder (CLIP, SigLIP, SigLIP 2, ViT, DINOv2, DINOv3, ConvNeXt), an OpenCLIP
folder or a big_vision .npz. Weights, config, image processor and tokenizer go along. No conversion is needed for
mmjax.load(PATH) and --config.init_from=PATH, which read all of these.
"""


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit status."""
  args, overrides = parse(sys.argv[1:] if argv is None else argv)
  os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
  if args.verb == "plan":
    os.environ["JAX_PLATFORMS"] = "cpu"  # accelerators that are here are not meant, nor taken
  if hasattr(sys.stdout, "reconfigure"):  # a file's name or a caption may be no Unicode
    sys.stdout.reconfigure(errors="backslashreplace")
  logging.basicConfig(format="%(levelname).1s %(message)s", level=logging.WARNING)
  logging.getLogger("mmjax").setLevel(logging.INFO)
  from mmjax.checkpoint.checkpointer import CheckpointError  # jax starts here, not for --help
  from mmjax.config import ConfigError
  from mmjax.data.stream import DataError
  from mmjax.training.hooks import Halted
  try:
    verbs = {"train": _train, "plan": _plan, "eval": _eval, "data": cli_data.run, "prepare": cli_prepare.run,
             "report": _report, "sweep": _sweep, "convert": _convert}
    return verbs[args.verb](args, overrides) or 0
  except (ConfigError, CheckpointError, DataError, Halted, PermissionError, NotADirectoryError,
          FileExistsError) as error:
    print(f"mmjax {args.verb}: {error}", file=sys.stderr)
    return _end(2 if isinstance(error, ConfigError) else 1)


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
  verbs = parser.add_subparsers(dest="verb", required=True,
                                metavar="train | plan | eval | data | prepare | report | sweep | convert")
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

  plan = verb("plan", PLAN)
  plan.add_argument("--config", required=True, help="file.py[:arg] or shipped name[:arg]")
  plan.add_argument("--topology", required=True, help="kind:shape, such as v5e:16x16 or h100:4x8")
  plan.add_argument("--slices", type=int, default=1,
                    help="so many of them, joined over the data-centre network (default 1)")
  plan.add_argument("--json", action="store_true", help="print JSON, and nothing else")
  plan.add_argument("--shardings", action="store_true", help="print how every parameter lies, too")
  plan.add_argument("--save", metavar="DIR", help="write the compiled step, to be loaded on the pod")
  plan.add_argument("--search", action="store_true",
                    help="compare batches, remat policies and meshes instead")
  plan.add_argument("--max_compiles", type=int, default=12,
                    help="with --search: how many to compile at most (default 12)")

  evaluate = verb("eval", EVAL)
  evaluate.add_argument("--workdir", required=True, help="directory of the run")
  evaluate.add_argument("--config", help="use this config instead of the run's own")
  evaluate.add_argument("--step", type=int, help="which checkpoint; default the newest")
  evaluate.add_argument("--interpolate", help="evaluate weights between those there and the run's")
  evaluate.add_argument("--alphas", type=_numbers, default=(0, 0.25, 0.5, 0.75, 1),
                        help="with --interpolate: shares of the run's weights")
  evaluate.add_argument("--save", help="with --interpolate and one alpha: a new workdir for it")

  cli_data.add_arguments(verb("data", cli_data.TEXT))
  cli_prepare.add_arguments(verb("prepare", cli_prepare.TEXT))

  report = verb("report", REPORT)
  report.add_argument("--workdir", required=True, help="directory of the run")
  report.add_argument("--out", help="the file; default report.html in the workdir")

  convert = verb("convert", CONVERT)
  convert.add_argument("--from", required=True, dest="source", metavar="PATH", help="what to read")
  convert.add_argument("--to", required=True, metavar="DIR", help="a new folder")
  convert.add_argument("--format", default="hf", help="hf (default) or mmjax")
  convert.add_argument("--step", type=int, help="of a workdir: which checkpoint; default the newest")
  convert.add_argument("--encoder", action="store_true",
                       help="only the image encoder, without its classifier or the text tower")

  sweep = verb("sweep", SWEEP)
  sweep.set_defaults(grid={}, random={})
  sweep.add_argument("--config", help="file.py[:arg] or shipped name[:arg]")
  sweep.add_argument("--workdir", required=True, help="directory of the sweep, on this machine")
  sweep.add_argument("--trials", type=int, help="number of draws of the --random values")
  sweep.add_argument("--draw_seed", type=int, default=0, help="other draws (default 0)")
  sweep.add_argument("--seeds", type=int, help="runs of each setting (default: one, with the "
                     "config's own seed)")
  sweep.add_argument("--processes", type=int, default=1,
                     help="trials at a time, each on its share of the cores and GPUs (default 1)")
  sweep.add_argument("--metric", help="what trials are compared by: its last value (default loss)")
  sweep.add_argument("--mode", choices=["min", "max"], help="which value of the metric is better "
                     "(default: min for names that end in loss, error, nll or perplexity)")
  sweep.add_argument("--dry-run", action="store_true", help="check and print the trials, run none")
  sweep.add_argument("--show", action="store_true", help="only compare; takes no config")

  flags, dotted = _dotted(argv)
  args, rest = parser.parse_known_args(flags)
  rest += dotted
  fail = verbs.choices[args.verb].error
  overrides = {}
  kinds = {} if args.verb in ("report", "convert", "prepare") else {"config": overrides}
  if args.verb == "sweep":
    kinds |= {"grid": args.grid, "random": args.random}
  while rest:
    flag, equals, text = rest.pop(0).partition("=")
    kind, dot, path = flag.removeprefix("--").partition(".")
    if not (flag.startswith("--") and dot and kind in kinds) or getattr(args, "build", None):
      fail(f"unknown argument {flag!r}; see mmjax {args.verb} --help")
    if not equals:
      if not rest:
        fail(f"{flag} needs a value")
      text = rest.pop(0)
    if kind != "config" and path in kinds[kind]:
      fail(f"{flag} is given twice; list all values in one")
    kinds[kind][path] = text
  if args.verb in ("data", "prepare"):
    {"data": cli_data, "prepare": cli_prepare}[args.verb].check(args, fail)
  if args.verb == "sweep":
    _check_sweep(args, overrides, fail)
  if args.verb == "plan" and args.search and (args.save or args.shardings):
    fail("--search compares plans; give --save or --shardings with the one that you choose")
  return args, overrides


def _dotted(argv):
  """(the other flags, those such as --config.optim.lr=1 with their values).

  argparse takes an unknown flag with a space in its value for an argument without a flag.
  """
  left, others, dotted = list(argv), [], []
  while left:
    flag = left.pop(0)
    is_dotted = re.match(r"--\w+\.", flag)
    (dotted if is_dotted else others).append(flag)
    if is_dotted and "=" not in flag and left and not left[0].startswith("--"):
      dotted.append(left.pop(0))
  return others, dotted


def _check_sweep(args, overrides, fail):
  for name in ("trials", "seeds", "processes"):
    count = getattr(args, name)
    if count is not None and count < 1:
      fail(f"--{name}={count}: must be at least 1")
  if not args.show and args.config is None:
    fail("--config is required, unless --show")
  if args.show and (args.config or args.grid or args.random or overrides):
    fail("--show reads the plan in the workdir; it takes --metric and --mode beside it, no config")


def _numbers(text):
  try:
    return tuple(float(part) for part in text.split(","))
  except ValueError as error:
    raise argparse.ArgumentTypeError(f"expected numbers such as 0,0.5,1, not {text!r}") from error


def _train(args, overrides):
  from mmjax import config, train
  from mmjax.parallel import processes
  processes.start(args.coordinator, args.processes, args.process)
  train.train(config.load(args.config, overrides), args.workdir)


def _plan(args, overrides):
  from mmjax.plan import command
  return command.plan(
      args.config, overrides, args.topology, slices=args.slices, as_json=args.json,
      search=args.search, max_compiles=args.max_compiles, shardings=args.shardings, save=args.save)


def _eval(args, overrides):
  from mmjax import config, train
  from mmjax.training import workdir
  if args.config:
    node = config.load(args.config, overrides)
  else:
    node = workdir.read_config(args.workdir)
    for path, text in overrides.items():
      config.override(node, path, text)
  if args.interpolate:
    train.eval_between(args.workdir, args.interpolate, args.alphas, args.step, node, args.save)
  else:
    train.eval_workdir(args.workdir, args.step, node)


def _convert(args, overrides):
  from mmjax import interop
  print(interop.convert(args.source, args.to, args.format, args.step, args.encoder))


def _report(args, overrides):
  from mmjax import config
  from mmjax.report import html
  try:
    print(html.write(args.workdir, args.out))
  except ValueError as error:
    raise config.ConfigError(str(error)) from error


def _sweep(args, overrides):
  from mmjax.sweep import command
  if args.show:
    return command.show(args.workdir, args.metric, args.mode)
  return command.sweep(
      args.config, args.workdir, overrides, args.grid, args.random, trials=args.trials,
      seeds=args.seeds, draw_seed=args.draw_seed, processes=args.processes, metric=args.metric,
      mode=args.mode, dry_run=args.dry_run)


if __name__ == "__main__":
  sys.exit(main())
