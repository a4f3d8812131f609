"""The report of a run: one page that holds everything and opens from a file, in any browser."""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from etils import epath
import numpy as np

from mmjax.report import charts, kept, page, runs, writers
from mmjax.report.console import BESIDE

NAME = "report.html"
FIRST = ("lr", "grad_norm", "examples_per_s", "mfu", "model_tflops_per_second")  # after the losses
LOG_SPAN = 50       # a grad_norm whose extremes differ by more is drawn on a logarithmic axis
MOST_WARNINGS = 50
MOST_STARTS = 100   # of a run that was preempted all the time, the newest
DIGEST = 12         # characters shown of a SHA-256 or a commit
# What is shown of a start in its own place; anything else that was noted of it follows as JSON.
KNOWN = ("started", "command", "git", "config", "data", "python", "packages", "devices")


def write(workdir: str, out: str | None = None) -> str:
  """Writes the report of the run in `workdir` to `out`, by default into the workdir; its path.

  Raises:
    ValueError: nothing of a run is there.
  """
  path = epath.Path(out) if out else epath.Path(workdir) / NAME
  text = render(workdir)
  path.parent.mkdir(parents=True, exist_ok=True)
  writers.replace_text(path, text)
  return str(path)


def render(workdir: str) -> str:
  """The page, from whatever the workdir holds."""
  run = runs.read(workdir)
  made = [(title, list(make(run))) for title, make in (
      ("Summary", _summary), ("Training", _training), ("Evaluation", _evaluation),
      ("Retrieved neighbours", _neighbours), ("Classes", _classes),
      ("Reconstructions", _reconstructions), ("Generated", _generated), ("Patches", _patches),
      ("Parameters", _parameters),
      ("Config", _config), ("Provenance", _provenance))]
  made.insert(1, ("Warnings", list(_warnings(run))))  # last, since the others may find problems
  return page.document(_title(run), [page.section(title, *parts) for title, parts in made if parts])


def _title(run: runs.Run) -> str:
  objective = (run.config or {}).get("objective")
  name = objective.get("name") if isinstance(objective, Mapping) else None
  return f"{run.path.name}: {_config_spec(run) or name or 'run'}"


def _config_spec(run: runs.Run) -> str | None:
  """What stood behind --config in the newest command."""
  command = " ".join(map(str, run.starts[-1].get("command", ()))) if run.starts else ""
  match = re.search(r"--config[= ](\S+)", command)
  return match[1] if match else None


def _summary(run: runs.Run) -> Iterator[str]:
  facts = page.table(("", ""), [(name, value) for name, value in _facts(run) if value], "ll")
  rows, trivial = [], run.model.get("trivial") or {}
  for name in _losses(run):
    steps, values = run.training[name]
    none = [None] * len(BESIDE)
    rows.append([f"{name} (training)", values[-1], trivial.get(name), *none, steps[-1]])
  companions = {f"{name}/{beside}" for name in run.evaluations for beside in BESIDE}
  for name, (steps, values) in run.evaluations.items():
    if name not in companions:
      beside = [run.evaluations.get(f"{name}/{one}", (None, [None]))[1][-1] for one in BESIDE]
      rows.append([name, values[-1], None, *beside, steps[-1]])
  head = ["metric", "value", "trivial", *BESIDE, "step"]
  used = [i for i in range(len(head)) if any(row[i] is not None for row in rows)]
  plain = [[_plain(row[i]) for i in used] for row in rows]
  yield page.row([facts, page.table([head[i] for i in used], plain) if rows else ""])


def _facts(run: runs.Run) -> Iterator[tuple[str, Any]]:
  config = run.config or {}
  total, objective = config.get("total_steps"), config.get("objective")
  yield "objective", objective.get("name") if isinstance(objective, Mapping) else None
  yield "workdir", str(run.path)
  if isinstance(total, int):
    whole = "complete" if run.step >= total else "not complete"
    yield "steps", f"{run.step:,} of {total:,}: {whole}"
  else:
    yield "steps", f"{run.step:,}"
  rows = runs.examples(config, run.step)
  yield "examples", f"{rows:,}" if rows else None
  seconds = runs.seconds_running(run)
  count = len(run.starts)
  yield "time", f"{_duration(seconds)} in {count} start{'s' * (count != 1)}" if seconds else None
  for name, label in (("examples_per_s", "examples per second"), ("mfu", "MFU")):
    if name in run.training and np.isfinite(run.training[name][1]).any():
      middle = float(np.nanmedian(run.training[name][1]))
      yield label, f"{middle:.1%}" if name == "mfu" else f"{middle:,.0f} (median)"
  yield "parameters", (str(run.model.get("parameters", "")).splitlines() or [""])[-1]
  yield "devices", _devices(run.starts[-1]) if run.starts else None


def _warnings(run: runs.Run) -> Iterator[str]:
  for problem in run.problems:
    yield page.paragraph(problem, "warn")
  lines = list(run.warnings.items())
  for line, count in lines[-MOST_WARNINGS:]:
    yield page.paragraph(f"{line} ({count} times)" if count > 1 else line, "warn")
  if len(lines) > MOST_WARNINGS:
    yield page.paragraph(f"{len(lines) - MOST_WARNINGS} earlier ones are in log.txt", "soft")


def _training(run: runs.Run) -> Iterator[str]:
  """Every scalar of the steps, and beside it the evaluators' metric of the same name."""
  if not run.training:
    yield page.paragraph("There are no metrics of training steps.", "soft")
    return
  trivial = run.model.get("trivial") or {}
  names = _losses(run) + [name for name in FIRST if name in run.training]
  names += sorted(set(run.training) - {"loss", *names})
  drawn = []
  for name in names:
    series = {"training": run.training[name]} | _held_out(run, name)
    dashed = {"trivial": trivial[name]} if name in trivial else {}
    drawn.append(charts.lines(series if len(series) > 1 else {name: run.training[name]}, name,
                              dashed=dashed, log_y=name == "grad_norm" and _wide(*series.values())))
  yield page.grid(drawn)


def _losses(run: runs.Run) -> list[str]:
  """`loss` and its terms, as far as they are known; without `loss` where it is the only term."""
  terms = [name for name in run.model.get("trivial") or {} if name in run.training]
  equal = lambda one, other: np.array_equal(run.training[one], run.training[other], equal_nan=True)
  if len(terms) == 1 and equal("loss", terms[0]):
    return terms
  return [name for name in ("loss", *terms) if name in run.training]


def _held_out(run: runs.Run, name: str) -> runs.Series:
  """{"evals.EVALUATOR": series} of the metrics EVALUATOR/name."""
  return {f"evals.{metric.removesuffix(f'/{name}')}": series
          for metric, series in run.evaluations.items()
          if metric.endswith(f"/{name}") and metric.count("/") == 1 + name.count("/")}


def _evaluation(run: runs.Run) -> Iterator[str]:
  """Metrics over steps; those that differ in a last number only (R@1, R@5) share a chart."""
  drawn_above = {f"{where.removeprefix('evals.')}/{name}" for name in run.training
                 for where in _held_out(run, name)}
  groups: dict[str, runs.Series] = {}
  for name, series in run.evaluations.items():
    whole, _, companion = name.rpartition("/")
    if not (companion in BESIDE and whole in run.evaluations) and name not in drawn_above:
      groups.setdefault(re.sub(r"\d+$", "k", name), {})[name] = series
  drawn = []
  for group, series in groups.items():
    if any(len(np.unique(values)) > 1 for _, values in series.values()):
      dashed = {beside: float(run.evaluations[f"{name}/{beside}"][1][-1])
                for name in series for beside in BESIDE if f"{name}/{beside}" in run.evaluations}
      short = {name.removeprefix(group.split("/")[0] + "/"): one for name, one in series.items()}
      drawn.append(charts.lines(short, group, dashed=dashed))
  if drawn:
    yield page.grid(drawn)
    yield page.paragraph("Metrics that never changed stand in the summary only.", "soft")


def _neighbours(run: runs.Run) -> Iterator[str]:
  yield from _kept(run, "neighbours", kept.neighbours)


def _classes(run: runs.Run) -> Iterator[str]:
  """Confusion matrices, as many in a row as there is room for; then the mistakes."""
  blocks = list(_kept(run, "classes", kept.classes))
  if blocks:
    yield page.row(blocks)
  for evaluator, kind in sorted(run.arrays):
    if kind == "mistakes":
      _, confusion = run.arrays.get((evaluator, "classes"), (0, None))
      names = kept.class_names(confusion) if confusion else None
      yield from _kept(run, kind, lambda arrays: kept.mistakes(arrays, names), evaluator)


def _reconstructions(run: runs.Run) -> Iterator[str]:
  yield from _kept(run, "reconstructions", kept.reconstructions)


def _generated(run: runs.Run) -> Iterator[str]:
  yield from _kept(run, "generated", kept.strips)


def _patches(run: runs.Run) -> Iterator[str]:
  for kind in ("attention", "feature_pca"):
    yield from _kept(run, kind, kept.strips)


def _kept(run: runs.Run, kind: str, show, only: str | None = None) -> Iterator[str]:
  """A block for the arrays of one kind, evaluator by evaluator."""
  for (evaluator, this), (step, arrays) in sorted(run.arrays.items()):
    if this != kind or only not in (None, evaluator):
      continue
    try:
      shown = show(arrays)
    except (KeyError, IndexError, ValueError, TypeError) as error:
      run.problems.append(f"evals/{step}/{evaluator}-{kind}.npz: {type(error).__name__}: {error}")
      continue
    what = "mistakes " if kind == "mistakes" else ""
    yield page.block(page.heading(f"{evaluator}, {what}at step {step:,}"), shown)


def _parameters(run: runs.Run) -> Iterator[str]:
  if run.model.get("parameters"):
    lines = str(run.model["parameters"]).splitlines()
    yield page.details(lines[-1], page.code("\n".join(lines)))


def _config(run: runs.Run) -> Iterator[str]:
  if run.config is not None:
    text = json.dumps(run.config, indent=2, sort_keys=True)
    yield page.details("the resolved config", page.code(text))


def _provenance(run: runs.Run) -> Iterator[str]:
  """A line a start, then what the newest one ran with."""
  if not run.starts:
    return
  shown = run.starts[-MOST_STARTS:]
  rows = [(one.get("started"), _code(one), _devices(one), str(one.get("config"))[:DIGEST],
           (one.get("packages") or {}).get("jax")) for one in shown]
  yield page.table(("started", "code", "devices", "config", "jax"), rows)
  if len(run.starts) > len(shown):
    earlier = len(run.starts) - len(shown)
    yield page.paragraph(f"{earlier} earlier ones are in provenance.json", "soft")
  for index, one in _changes(shown):
    newest = index + 1 == len(shown)
    which = "" if newest else f" (start {index + 1 + len(run.starts) - len(shown)})"
    yield page.details(f"command, packages and data{which}", _start(one), opened=newest)


def _start(start: Mapping[str, Any]) -> page.Html:
  versions = (start.get("packages") or {}).items()
  packages = [f"{name} {version}" for name, version in versions if version]
  data = [(part.get("source"), part.get("records"), part.get("digest"))
          for part in start.get("data") or () if isinstance(part, Mapping)]
  noted = {key: value for key, value in start.items() if key not in KNOWN}
  return page.Html(
      page.code(shlex.join(map(str, start.get("command") or ())))
      + page.paragraph(", ".join([f"Python {start.get('python')}", *packages]), "soft")
      + page.table(("data", "records", "SHA-256"), data)
      + (page.code(json.dumps(noted, indent=2)) if noted else ""))


def _changes(starts: list[Mapping[str, Any]]) -> list[tuple[int, Mapping[str, Any]]]:
  """(index, start) of the newest start, and of the last before each change; newest first."""
  same = lambda one: [one.get(key) for key in ("command", "packages", "python", "data")]
  return [(index, one) for index, one in reversed(list(enumerate(starts)))
          if index + 1 == len(starts) or same(one) != same(starts[index + 1])]


def _code(start: Mapping[str, Any]) -> str:
  git = start.get("git")
  if not isinstance(git, Mapping):
    return f"mmjax {(start.get('packages') or {}).get('mmjax')}"
  return str(git.get("commit"))[:DIGEST] + (" with changes" if git.get("changed") else "")


def _devices(start: Mapping[str, Any]) -> str:
  devices = start.get("devices") or {}
  mesh = ", ".join(f"{axis} {size}" for axis, size in (devices.get("mesh") or {}).items())
  processes = devices.get("processes", 1)
  spread = f" in {processes} processes" if processes != 1 else ""
  return f"{devices.get('count')} x {devices.get('kind')}{spread}; mesh {mesh}"


def _wide(*series: tuple[np.ndarray, np.ndarray]) -> bool:
  values = np.concatenate([values for _, values in series])
  values = values[np.isfinite(values)]
  return bool(values.size and values.min() > 0 and values.max() > LOG_SPAN * values.min())


def _plain(value: Any) -> Any:
  return value.item() if isinstance(value, np.generic) else value


def _duration(seconds: float) -> str:
  minutes, seconds = divmod(round(seconds), 60)
  return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
