"""The verb `mmjax prepare`: its flags, and what they do."""

import argparse
import urllib.parse

TEXT = """\
Go over data with a trained model, and keep what it makes of each record as columns.

  mmjax prepare score pairs --model=runs/siglip --out=scores          how well picture and caption agree
  mmjax prepare features pairs --model=runs/mae --out=features --features=image/pooled,image/tokens
  mmjax prepare tokens pictures --model=runs/vq --out=tokens           ids of a trained tokenizer
  mmjax prepare labels pictures --model=runs/pets --out=labels         a classifier's labels
  mmjax prepare labels pictures --model=runs/siglip --out=labels --classes="cat,dog" --template="a photo of a {}"

--model is what mmjax.load opens: a workdir, or a folder of Hugging Face, OpenCLIP or big_vision. Features
are float16, [N, ...]; the columns are .npy files that are read at random. The same command goes on after
an interruption. The data are a SPEC, see `mmjax data --help`; with their columns they are one again:

  --config.data.train="joined:pairs?columns=scores&share=0.3"         the best 30%
  --config.data.train="joined:pairs?columns=scores&least=0.25"        those that score 0.25 or more
  mmjax data build "joined:pairs?columns=scores&share=0.3" --out=best
"""


def add_arguments(prepare: argparse.ArgumentParser) -> None:
  """The flags of `mmjax prepare`."""
  prepare.add_argument("job", choices=["score", "features", "tokens", "labels"], help="what to make")
  prepare.add_argument("spec", metavar="SPEC", help="the data")
  prepare.add_argument("--model", required=True, help="whose: a workdir, or a folder of another library")
  prepare.add_argument("--out", required=True, metavar="DIR", help="folder of the columns")
  prepare.add_argument("--step", type=int, help="of a workdir: which checkpoint; default the newest")
  prepare.add_argument("--features", help="of features: their names, by commas (default image/embed)")
  prepare.add_argument("--classes", help="of labels by prompts: the classes, by commas")
  prepare.add_argument("--template", help='of labels by prompts (default "a photo of a {}")')
  prepare.add_argument("--batch_size", type=int, default=64, help="records at a time (default 64)")
  prepare.add_argument("--shard_records", type=int, default=4096,
                       help="records of a file: what an interruption may cost (default 4096)")


def check(args: argparse.Namespace, fail) -> None:
  """Calls `fail` with what is wrong with the flags taken together."""
  for name in ("batch_size", "shard_records"):
    if getattr(args, name) < 1:
      fail(f"--{name}={getattr(args, name)}: must be at least 1")
  if args.features and args.job != "features":
    fail("--features goes with `mmjax prepare features`")
  if (args.classes or args.template) and args.job != "labels":
    fail("--classes and --template go with `mmjax prepare labels`")


def run(args: argparse.Namespace, overrides: dict[str, str]) -> None:
  """Does what the flags say."""
  from mmjax import config
  from mmjax.data import spec
  from mmjax.prepare import command, jobs
  given = {name: tuple(getattr(args, name).split(",")) for name in ("features", "classes") if getattr(args, name)}
  if args.template:
    given["template"] = args.template
  try:
    manifest = command.prepare(jobs.Job(args.job, **given), spec.open_source(args.spec), args.model, args.out,
                               args.batch_size, args.shard_records, args.step)
  except ValueError as error:
    raise config.ConfigError(str(error)) from error
  quoted = lambda text: urllib.parse.quote(text, safe="/:")
  print(f"{args.out}: {', '.join(manifest['columns'])} of {manifest['records']:,} records, {manifest['broken']:,} of "
        f'them broken; read them with --config.data.train="joined:{quoted(args.spec)}?columns={quoted(args.out)}"')
