"""What each masked and self-distilled recipe learns on the built-in data: makes docs/recipes.md.

  python -m benchmarks.recipes --workdir=runs/recipes                # all, three seeds: hours on 2 cores
  python -m benchmarks.recipes --workdir=runs/recipes --only=mae,ijepa --seeds=1
  python -m benchmarks.recipes --list

For each recipe's `smoke` variant and each seed there are two runs of `mmjax train`: the recipe, and
its encoder untrained (one step at learning rate 0); for the first seed also its encoder trained on
labels with as many FLOPs. All end with the recipe's own probes, on more records than in the smoke
variant. A recipe that wants a teacher gets a CLIP that is trained first. Each run is a folder of the
workdir; those that are finished are not repeated, so an interrupted command goes on where it was, and
several commands may share a workdir if they differ in `--only`. The page shows what there is, and
names what is missing. What runs came to is kept in docs/recipes.json, from which the page can be made
without them; an entry counts as long as the recipe's config is the one that was run (--anew pays it no
heed).
"""

import argparse
from collections.abc import Mapping
import copy
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import statistics

from mmjax import config as config_lib

PAGE = pathlib.Path(__file__).resolve().parent.parent / "docs" / "recipes.md"
KEPT = PAGE.with_suffix(".json")
SEEDS = 3
KINDS = ("recipe", "untrained", "labels")
STEPS = 1000  # five times those of most smoke variants
PICTURES = 30_000  # of the dataset that probes read: 1,000 records of single objects to test on
CLIPS = 4_000  # of clips; those of another seed are to test on, all of them rather than a tenth
MARGIN = 0.03  # 2.5 standard errors of the difference of 0.90 and 0.95 in 1,000 records
LOSS_SHARE = 0.05
CLASSES = {"colour": 8, "shape": 6}
CONSTANTS = "best_constants.json"  # of a run: {loss term: its value}
TEACHER = "contrastive/clip:smoke"
TEACHER_STEPS = 1500
HUGE_PAGES = "glibc.malloc.hugetlb=1"  # they spare page faults, see launch/environment.sh


@dataclasses.dataclass(frozen=True)
class Recipe:
  """A row of the page.

  Attributes:
    config: its name, without a variant.
    pins: the mechanism that is its own.
    label: what the probe is to tell; the other of `CLASSES` is shown besides.
    margin: by how much the probe is to beat that of the untrained encoder, in every seed.
    labelled: the encoder is trained on the label too, for comparison. Not where it is part of a
      tokenizer.
    settings: {path in the config: value}, where it differs from the smoke variant with `STEPS`.
    taught: its teacher is the CLIP that is trained first.
  """

  config: str
  pins: str
  label: str = "shape"
  margin: float = MARGIN
  labelled: bool = True
  settings: Mapping[str, str] = dataclasses.field(default_factory=dict, hash=False)
  taught: bool = False

  @property
  def name(self) -> str:
    return self.config.rpartition("/")[2]

  @property
  def steps(self) -> int:
    return int(self.settings.get("total_steps", STEPS))

  def kinds(self, seed: int = 0) -> tuple[str, ...]:
    """What is run with a seed."""
    return KINDS if self.labelled and seed == 0 else KINDS[:2]

  @property
  def probes(self) -> dict[str, str]:
    """{label: evaluator}, that of `label` first."""
    labels = sorted(CLASSES, key=lambda label: label != self.label)
    return {label: f"{label}_linear_probe" for label in labels}


RECIPES = (
    Recipe("masked/mae", "only visible patches are encoded; normalised pixels"),
    Recipe("masked/simmim", "mask tokens in the encoder; raw pixels, linear head", label="colour"),
    Recipe("masked/mae_st", "a tenth of a clip's patches is encoded"),
    Recipe("masked/spark", "a CNN that computes on seen cells only", label="colour"),
    Recipe("masked/maskdistill", "normalised features of a frozen teacher", label="colour",
         taught=True),
    Recipe("masked/eva02", "a teacher's features by cosine; SwiGLU, rotary positions",
         label="colour", taught=True),
    Recipe("masked/maskalign", "seen tokens aligned with a teacher's; nothing is reconstructed",
         label="colour", taught=True, margin=0.02),  # 3,000 steps gave +.042, +.068, +.016
    Recipe("masked/vq", "codes that follow what is encoded; dead ones are revived", label="colour",
         labelled=False),
    Recipe("masked/vq_kd", "codes that tell what a teacher sees", label="colour", labelled=False,
         taught=True),
    Recipe("masked/beit_v2", "ids of a tokenizer; block masks", label="colour"),
    Recipe("masked/mage", "tokens in, tokens out, a ratio of its own for each row",
         settings={"total_steps": "2000"}),
    Recipe("masked/multimae", "three modalities in, three out; Dirichlet budget"),
    Recipe("masked/fourm", "one table of modalities; encoder and decoder on budgets"),
    Recipe("selfdistill/ibot", "teacher's prototypes of masked patches and of other views",
         label="colour", settings={"total_steps": "300"}),
    Recipe("selfdistill/dinov2", "the same with Sinkhorn, heads apart, KoLeo", label="colour",
         settings={"total_steps": "600"}),
    Recipe("selfdistill/msn", "masked views assigned to prototypes, mean entropy", label="colour",
         settings={"total_steps": "300"}),
    Recipe("selfdistill/ijepa", "features of target blocks from a context", label="colour",
         settings={"total_steps": "3000"}),
    Recipe("selfdistill/cjepa", "the same with variance and covariance terms", label="colour",
         settings={"total_steps": "3000"}),
    Recipe("selfdistill/vicreg", "variance, invariance, covariance of two views", label="colour"),
)

INTRODUCTION = f"""# What the recipes learn

Made by `python -m benchmarks.recipes`. Every masked and self-distilled recipe in its `smoke` variant,
on the built-in pictures at 64 pixels (or 32), for more steps than there: a check that the mechanism
works, not a comparison of methods, whose order at such a size means nothing.

- *loss*: held out, at the end, beside its trivial value, that of the best constant prediction (of ids: of their
  frequencies); of several terms the one nearest to it. Losses of features that are learned at the same time (of
  views, of I-JEPA's blocks) have none, and only the probe judges;
- *probe*: what a linear probe on the frozen encoder is to tell, fitted to 1,000 records and
  tested on 1,000. Its accuracy, mean over seeds, after the *recipe*, of the same encoder
  *untrained*, and (first seed only) of the same encoder trained on these *labels* with as many FLOPs;
- *gain*: the least over seeds of recipe minus untrained;
- *learns*: in every seed each term is below its trivial value by {LOSS_SHARE:.0%} or more, and the gain
  at least the margin, {MARGIN:.2f} unless it says otherwise;
- *other probe*: a second label, which decides nothing, after the recipe and untrained.
"""


def smoke(recipe: Recipe, seed: int, teacher: str = "") -> dict:
  """The recipe's own config, with more records for its probe.

  Args:
    teacher: workdir of a trained teacher; "" leaves a random one.
  """
  settings = {"total_steps": str(recipe.steps), **recipe.settings, "seed": str(seed)}
  if teacher:
    settings["objective.target.teacher.from"] = teacher
  config = config_lib.load(f"{recipe.config}:smoke", settings)
  for name in recipe.probes.values():
    probe = config["evals"][name]
    probe["max_records"], probe["every_percent"] = 1000, None
    clips = "frames" in probe["train"]["source"]
    for stream in probe["train"], probe["data"]:
      stream["source"]["count"] = CLIPS if clips else PICTURES
    if clips:
      probe["data"]["source"].update(split="train", seed=1)
  return config


def alone(recipe: Recipe, seed: int, teacher: str = "") -> dict:
  """The same with no evaluators but its probes and its loss."""
  config = smoke(recipe, seed, teacher)
  kept = only_probes(config, recipe)
  if "loss" in config["evals"]:
    kept["evals"]["loss"] = config["evals"]["loss"]
  return kept


def untrained(recipe: Recipe, seed: int, teacher: str = "") -> dict:
  """One step that changes nothing, and the probes."""
  del teacher
  config = only_probes(smoke(recipe, seed), recipe)
  config["optim"]["lr"] = 0.0
  return {**config, "total_steps": 1}


def labels(recipe: Recipe, seed: int, teacher: str = "") -> dict:
  """The encoder as a classifier of what the probe reads, with the recipe's FLOPs."""
  del teacher
  config = only_probes(smoke(recipe, seed), recipe)
  budget = config["total_steps"] * flops(smoke(recipe, seed))
  encoder = {**config["objective"]["encoder"], "classes": CLASSES[recipe.label]}
  encoder.pop("mask_token", None)
  config["objective"] = {"name": "classification", "label": recipe.label, "model": encoder}
  for probe in config["evals"].values():
    if probe["feature"] == "video/pooled":  # a classifier calls clips images too
      probe["feature"] = "image/pooled"
      for stream in probe["train"], probe["data"]:
        stream["transforms"] = [*stream["transforms"],
                                {"name": "Rename", "names": {"video": "image"}}]
  probe = config["evals"][recipe.probes[recipe.label]]["train"]
  transforms = [step for old in probe["transforms"] for step in (
      [{**old, "name": "RandomResizedCrop", "scale": (0.6, 1.0)},
       {"name": "Flip", "key": old.get("key", "image")}] if old["name"] == "Resize" else [old])]
  config["data"] = {**probe, "transforms": transforms, "shuffle": True}
  config.pop("eval_data", None)
  config["optim"] = {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "clip_norm": 1.0,
                     "schedule": {"name": "cosine", "warmup_percent": 10}}
  config["total_steps"] = max(1, round(budget / flops(config)))
  return config


def only_probes(config: dict, recipe: Recipe) -> dict:
  """The config with no evaluators but the recipe's probes."""
  config = copy.deepcopy(config)
  config["evals"] = {name: config["evals"][name] for name in recipe.probes.values()}
  return config


def flops(config: dict) -> int:
  """Of a step, nothing computed twice."""
  from mmjax.training.assemble import assemble
  run = assemble(config, example_data=True)
  with run.use():
    return run.model_flops()


MAKE = {"recipe": alone, "untrained": untrained, "labels": labels}


def train(recipe: Recipe, kind: str, seed: int, workdir: str, teacher: str = "") -> None:
  """One run to its end, in this process; for the recipe also what the best constants lose."""
  from benchmarks import trivial
  from mmjax import train as train_lib
  config = MAKE[kind](recipe, seed, teacher)
  if kind == "recipe":
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    (pathlib.Path(workdir) / CONSTANTS).write_text(json.dumps(trivial.best_constants(config)))
  train_lib.train(config, workdir)


def train_teacher(workdir: str) -> None:
  """The CLIP whose image tower teaches, in this process; nothing if it is there."""
  from mmjax import train as train_lib
  train_lib.train(config_lib.load(TEACHER, {"total_steps": str(TEACHER_STEPS)}), workdir)


@dataclasses.dataclass(frozen=True)
class Result:
  """The end of a run: its probes, and {term: (held-out loss, the trivial one)} of those that have one."""

  probe: float
  other: float
  losses: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)

  @property
  def hardest(self) -> str | None:
    """The term that is nearest to its trivial value."""
    return max(self.losses, key=lambda term: self.losses[term][0] / self.losses[term][1], default=None)


def result(recipe: Recipe, workdir: pathlib.Path, steps: int | None = None) -> Result | None:
  """What a finished run came to; None if it is not finished, or had another number of steps."""
  from mmjax.report import runs
  if not (workdir / "config.json").exists():
    return None
  run = runs.read(str(workdir))
  probes = [run.evaluations.get(f"{name}/top1", ((0,), (0.0,))) for name in recipe.probes.values()]
  total = run.config["total_steps"]
  if any(ends[-1] < total for ends, _ in probes) or steps not in (None, total):
    return None
  constants = workdir / CONSTANTS
  trivial = json.loads(constants.read_text()) if constants.exists() else {}
  held = {term: run.evaluations[f"loss/{term}"][1] for term in trivial if f"loss/{term}" in run.evaluations}
  return Result(*(float(values[-1]) for _, values in probes),
                {term: (float(values[-1]), trivial[term]) for term, values in held.items() if len(values)})


def below_trivial(one: Result) -> bool:
  """Every term by a share; True where no trivial value is known."""
  return all(loss <= (1 - LOSS_SHARE) * trivial for loss, trivial in one.losses.values())


def mean(values: list[float]) -> float:
  return statistics.fmean(values)


def row(recipe: Recipe, results: dict[str, list[Result]]) -> tuple[str, ...]:
  """The cells of a recipe's line; `results` has one list a kind, seed by seed."""
  ours, before = results["recipe"], results["untrained"]
  gain = min(a.probe - b.probe for a, b in zip(ours, before))
  term = ours[0].hardest
  loss = "–"
  if term:
    loss = f"{mean([one.losses[term][0] for one in ours]):.3f} of {ours[0].losses[term][1]:.3f}"
    loss += f" ({term})" if len(ours[0].losses) > 1 else ""
  held = "yes" if gain >= recipe.margin and all(map(below_trivial, ours)) else "**no**"
  labelled = results.get("labels")
  first, second = recipe.probes
  probe, other = (lambda some, name=name: f"{mean([getattr(one, name) for one in some]):.3f}"
                  for name in ("probe", "other"))
  return (f"[`{recipe.config}`](../configs/{recipe.config}.py)", recipe.pins, f"{recipe.steps:,}",
          str(len(ours)), loss, first, probe(ours), probe(before),
          probe(labelled) if labelled else "–", f"{gain:+.3f}",
          held if recipe.margin == MARGIN else f"{held} ({recipe.margin:.2f})",
          f"{second} {other(ours)} / {other(before)}")


COLUMNS = ("recipe", "what it pins", "steps", "seeds", "loss", "probe", "recipe", "untrained", "labels",
           "gain", "learns", "other probe, recipe / untrained")


def page(results: dict[str, dict[str, list[Result]]]) -> str:
  """The page of the recipes whose runs are finished."""
  line = lambda cells: f"| {' | '.join(cells)} |"
  complete = [one for one in RECIPES if all(results[one.name].get(kind) for kind in one.kinds())]
  lines = [line(row(one, results[one.name])) for one in complete]
  parts = [INTRODUCTION, line(COLUMNS), line(["---"] * len(COLUMNS)), *lines, ""]
  missing = [one.name for one in RECIPES if one not in complete]
  if missing:
    parts.append(f"Not run yet: {', '.join(missing)}.\n")
  return "\n".join(parts)


def found(workdir: pathlib.Path, seeds: int, kept: Mapping | None = None) -> dict[str, dict[str, list[Result]]]:
  """{recipe: {kind: results}} of the seeds that are finished in all kinds."""
  results = {}
  for recipe in RECIPES:
    ours = results[recipe.name] = {kind: [] for kind in recipe.kinds()}
    for seed in range(seeds):
      ends = {kind: end_of(workdir, recipe, kind, seed, kept) for kind in recipe.kinds(seed)}
      for kind, end in ends.items() if None not in ends.values() else ():
        ours[kind].append(end)
  return results


def end_of(workdir: pathlib.Path, recipe: Recipe, kind: str, seed: int, kept: Mapping | None = None
           ) -> Result | None:
  """`result` of one of the page's runs, else what is kept of it."""
  done = result(recipe, folder(workdir, recipe, kind, seed), recipe.steps if kind == "recipe" else None)
  entry = (kept or {}).get(recipe.name, {})
  if done is None and entry.get("config") == config_digest(recipe) and f"{kind}-{seed}" in entry:
    return Result(**entry[f"{kind}-{seed}"])
  return done


def config_digest(recipe: Recipe) -> str:
  """Tells whether what is kept was run with the recipe as it is; other evaluators make no difference."""
  return hashlib.sha256(json.dumps(alone(recipe, 0), sort_keys=True).encode()).hexdigest()[:16]


def to_keep(workdir: pathlib.Path, kept: Mapping) -> dict:
  """{recipe: {"config": digest, "recipe-0": the fields of `Result`, ...}} of all that is finished."""
  entries = {}
  for recipe in RECIPES:
    ends = {f"{kind}-{seed}": end_of(workdir, recipe, kind, seed, kept)
            for seed in range(SEEDS) for kind in recipe.kinds(seed)}
    done = {name: dataclasses.asdict(end) for name, end in ends.items() if end is not None}
    if done:
      entries[recipe.name] = {"config": config_digest(recipe), **done}
  return entries


def folder(workdir: pathlib.Path, recipe: Recipe, kind: str, seed: int) -> pathlib.Path:
  return workdir / recipe.name / f"{kind}-{seed}"


def main(argv=None):
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, help="where the runs are kept")
  parser.add_argument("--only", default="", help="names of recipes, by commas")
  parser.add_argument("--seeds", type=int, default=SEEDS)
  parser.add_argument("--list", action="store_true", help="print the names of all recipes")
  parser.add_argument("--page", type=pathlib.Path, default=PAGE, help="the file that is written")
  parser.add_argument("--kept", type=pathlib.Path, default=KEPT, help="the file that keeps what runs came to")
  parser.add_argument("--anew", action="store_true", help="run also what is kept")
  args = parser.parse_args(argv)
  if args.list:
    return print("\n".join(recipe.name for recipe in RECIPES))
  if args.workdir is None:
    parser.error("--workdir: is missing; the runs are kept there")
  names = [recipe.name for recipe in RECIPES]
  chosen = args.only.split(",") if args.only else names
  unknown = [name for name in chosen if name not in names]
  if unknown:
    parser.error(f"--only: no recipe {unknown[0]!r}; valid: {', '.join(names)}")
  os.environ.setdefault("GLIBC_TUNABLES", HUGE_PAGES)  # of the processes below
  kept = json.loads(args.kept.read_text()) if args.kept.exists() and not args.anew else {}

  def write():
    args.kept.write_text(json.dumps(to_keep(args.workdir, kept), indent=1) + "\n")
    args.page.write_text(page(found(args.workdir, args.seeds, kept)))
  for seed in range(args.seeds):
    for recipe in RECIPES:
      for kind in recipe.kinds(seed) if recipe.name in chosen else ():
        place = folder(args.workdir, recipe, kind, seed)
        if end_of(args.workdir, recipe, kind, seed, kept) is None:
          teacher = str(args.workdir / "teacher") if recipe.taught else ""
          if teacher:
            _in_a_process(train_teacher, teacher)
          status = _in_a_process(train, recipe, kind, seed, str(place), teacher)
          done = end_of(args.workdir, recipe, kind, seed)
          print(f"{recipe.name} {kind} seed {seed}: "
                + (f"probe {done.probe:.3f}" if done else f"failed with status {status}"), flush=True)
          write()
  write()


def _in_a_process(fn, *args):
  """Each run in a process of its own, as from the command line; its exit status."""
  process = multiprocessing.get_context("spawn").Process(target=fn, args=args)
  process.start()
  process.join()
  return process.exitcode


if __name__ == "__main__":
  main()
