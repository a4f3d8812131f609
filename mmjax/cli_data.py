"""The verb `mmjax data`: its flags, and what they do."""

import argparse
import dataclasses
import os
import re
import shlex
from collections.abc import Callable

from mmjax.data.build.settings import DEDUP, Settings

TEXT = """\
Look at data, or bring them into the form that is read fastest.

  mmjax data inspect pets                                what a folder (or table, shards, ...) holds: counts,
                                                         broken records, duplicates, a contact sheet
  mmjax data inspect pets --config=contrastive/siglip:b16   the same, with what the model would see
  mmjax data build pets --out=pets_ar --min_side=64 --dedup=perceptual
                                                         to sharded ArrayRecord; the same command goes on
                                                         after an interruption
  mmjax data seen --config=contrastive/siglip:smoke      how often a run reads each source and record
  mmjax data --config=contrastive/siglip:smoke           what a config reads: shapes, digest, speed, texts
  mmjax data --config=contrastive/siglip:smoke --save=pictures.png
  mmjax data --build=scenes --count=20000 --size=64      the built-in dataset, into --data_dir, or else
                                                         MMJAX_DATA_DIR, or else ~/.cache/mmjax

SPEC, here and in --config.data.train=SPEC of every verb, is one of

  pets/train                   a folder: pictures with a .txt beside each, or a table (.csv, .jsonl, .parquet)
                               that describes them; class folders; shards; what tfds or `datasets` has saved
  pairs.csv                    a table; .jsonl, .tsv, .parquet, .arrow
  shards/{000..099}.tar        several files; also "shards/*.tar" and gs://, s3://, https://
  tfds:mnist                   a name of tensorflow_datasets; its split is "train" unless "?split=test"
  tar:shards?caption=alt       a source by its name, and its arguments as in an address
  pets/train[:95%]             a part: 95% of the records, drawn once; [95%:] are the others
"""


def add_arguments(data: argparse.ArgumentParser) -> None:
  """The flags of `mmjax data`."""
  data.add_argument("action", nargs="?", choices=["inspect", "build", "seen"], help="what to do")
  data.add_argument("spec", nargs="?", metavar="SPEC", help="the data, see above")
  data.add_argument("--config", help="show what this config reads, or makes of SPEC")
  data.add_argument("--build", choices=["scenes"], help="build the built-in dataset")
  data.add_argument("--save", help="with --config: write the first pictures to this PNG")
  data.add_argument("--rows", type=int, help="records to look at: with inspect 20000, evenly spread, 0 for all; "
                    "with --config alone 256")
  data.add_argument("--count", type=int, default=20_000,
                    help="with --build: records in train (default 20000)")
  data.add_argument("--size", type=int, default=64,
                    help="with --build: pixels a side (default 64)")
  data.add_argument("--data_dir", help="with --build: where to")
  data.add_argument("--out", help="folder of what is written: of build, or of inspect (default data_inspect)")
  data.add_argument("--beam", metavar="FLAGS", help="build as an Apache Beam pipeline with these flags of Beam's, as in "
                    "--beam='--runner=DataflowRunner --project=...'; --out may be gs:// then")
  data.add_argument("--processes", type=int, help="of inspect and build; default one a core")
  steps = data.add_argument_group("steps of build, in their order")
  for field in dataclasses.fields(Settings):
    several = isinstance(field.default, tuple)
    steps.add_argument(f"--{field.name}", type=str if several else type(field.default),
                       action="append" if several else "store", default=argparse.SUPPRESS,
                       choices=DEDUP if field.name == "dedup" else None,
                       help=_of_settings(field.name) + ("; may be given several times" if several else ""))


def _of_settings(name):
  """What the docstring of Settings says of an attribute."""
  lines = Settings.__doc__.partition("Attributes:\n")[2]
  told = re.search(rf"^    {name}: (.*?)(?=^    \w+: |\Z)", lines, re.M | re.S)
  return " ".join(told.group(1).split()).rstrip(".").replace("%", "%%") if told else ""


def check(args: argparse.Namespace, fail: Callable[[str], None]) -> None:
  """Calls `fail` with what is wrong with the flags taken together."""
  given = [name for name in ("config", "build") if getattr(args, name)]
  if args.action == "seen":
    if args.spec or not args.config:
      fail("seen takes a config: mmjax data seen --config=NAME")
  elif args.action and not args.spec:
    fail(f"{args.action} needs the data: mmjax data {args.action} SPEC")
  if args.build and (args.action or args.config):
    fail("--build=scenes stands alone")
  if not (args.action or given):
    fail("give inspect SPEC, build SPEC, --config or --build=scenes")
  if args.action == "build" and not args.out:
    fail("build needs --out=DIR")
  if args.beam is not None and args.action != "build":
    fail("--beam is of build")
  if args.beam is not None and args.processes is not None:
    fail("--processes: with --beam the runner decides on them")
  steps = [field.name for field in dataclasses.fields(Settings) if hasattr(args, field.name)]
  if steps and args.action != "build":
    fail(f"--{steps[0]} is a step of build")
  if args.rows is not None and args.rows < (0 if args.action else 1):
    fail(f"--rows={args.rows}: must be at least {0 if args.action else 1}")


def run(args: argparse.Namespace, overrides: dict[str, str]) -> None:
  """Does what the flags say."""
  from mmjax import config
  from mmjax.data import inspect, spec
  from mmjax.training import assemble, pretrained, user_data
  from mmjax.training.streams import make_stream
  try:
    if args.build:
      inspect.build_scenes(args.count, args.size, args.data_dir)
      return
    if args.action == "build":
      return _build(args)
    if args.action == "seen":
      return inspect.show_shares(*assemble.seen(config.load(args.config, overrides)))
    if args.config:
      given = dict.fromkeys(("data.train", "data.eval"), args.spec) if args.spec else {}
      node = pretrained.resolve(user_data.resolve(config.load(args.config, {**overrides, **given})))
      stream, _ = make_stream(node.get("data"), "data")
    if not args.action:
      inspect.show(stream, 256 if args.rows is None else args.rows, args.save)
      return
    most = 20_000 if args.rows is None else args.rows or None
    inspect.inspect(spec.open_source(args.spec), stream if args.config else None, args.out or "data_inspect",
                    most, _processes(args))
  except (ValueError, OSError) as error:  # a full disk, a folder that may not be read
    raise config.ConfigError(str(error)) from error


def _build(args):
  from mmjax.data import spec
  from mmjax.data.build import command
  given = {field.name: getattr(args, field.name) for field in dataclasses.fields(Settings)
           if hasattr(args, field.name)}
  for name in ("captions", "languages"):
    if name in given:
      given[name] = tuple(part for text in given[name] for part in text.split(","))
  settings = Settings(**{name: tuple(value) if isinstance(value, list) else value for name, value in given.items()})
  if args.beam is not None:
    from mmjax.data.build import beam
    manifest = beam.build(args.spec, args.out, settings, shlex.split(args.beam))
  else:
    manifest = command.build(spec.open_source(args.spec), args.out, settings, _processes(args))
  print(f"{args.out}: {manifest['counts']['kept']:,} records, digest {manifest['digest'][:16]}; "
        f"read it with --config.data.train={args.out}")


def _processes(args):
  return len(os.sched_getaffinity(0)) if args.processes is None else args.processes
