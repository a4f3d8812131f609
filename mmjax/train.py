"""The loop: one for every recipe."""

import contextlib
import logging
import os
from collections.abc import Sequence
from typing import Any

import jax
from etils import epath

from mmjax.config import ConfigError
from mmjax.data import loader
from mmjax.optim import groups
from mmjax.parallel import lint, processes
from mmjax.parallel import mesh as mesh_lib
from mmjax.report import console
from mmjax.report import html as report
from mmjax.training import frozen, interpolate, outputs, pretrained, streams
from mmjax.training import workdir as workdir_lib
from mmjax.training.assemble import Run, assemble
from mmjax.training.evaluate import Session
from mmjax.training.hooks import Hooks

log = logging.getLogger("mmjax")


def train(config: dict[str, Any], workdir: str) -> dict[str, float]:
  """Trains what `config` describes, from where `workdir` left off.

  Returns:
    The last value of every evaluator's metrics, under "evaluator/metric".

  Raises:
    ConfigError: the config cannot be used, or is not that of the run in `workdir`.
    DataError: the data cannot be read.
    Halted: a loss or gradient was not finite.
  """
  use_compilation_cache()
  run = assemble(workdir_lib.recall(config, workdir))
  path = workdir_lib.open_workdir(workdir, run)
  with contextlib.ExitStack() as closing:
    checkpointer = closing.enter_context(contextlib.closing(run.checkpoint.open(str(path / "checkpoints"))))
    state, start = restore_or_create(run, checkpointer, path)
    _announce(run, start)
    recorded = outputs.recorded(path)
    writers = _writers(path, run, start)
    closing.callback(_report, path)  # runs when the writers below are closed, however the run ends
    for writer in writers:
      closing.callback(writer.close)
    session = Session(run, str(path / "evals"))
    session.check(state)
    stop = closing.enter_context(processes.StopRequest())
    watchdog = processes.Watchdog(run.settings.watchdog_seconds)
    closing.callback(watchdog.close)
    hooks = Hooks(run, checkpointer, writers, session, stop)
    step_fn = run.step_fn()

    if start:
      hooks.resume(start, state, recorded)
    if start >= run.settings.total_steps:
      log.info("the run is complete; its evaluators once more:")
      return evaluate(run, state, session)
    batches = loader.train_batches(run.stream, run.settings.batch_sizes, run.batch_sharding,
                                   start_step=start, workers=run.loading.workers,
                                   read_threads=run.loading.read_threads, prefetch=run.loading.prefetch)
    closing.callback(batches.close)
    with run.use():
      for step, batch in batches:
        state, metrics = step_fn(state, batch)  # returns at once; the device works on
        watchdog.mark()
        if step == start:
          _warn(lint.activation_lines(mesh_lib.undivided_activations(), run.mesh))
        hooks.after(step + 1, state, metrics)
        if hooks.done:
          break
    checkpointer.wait()
    return hooks.results


def evaluate(run: Run, state: Any, session: Session) -> dict[str, float]:
  """The metrics of all evaluators of a run on one state, under "evaluator/metric"."""
  session.load(state)
  results = {}
  for evaluation in run.evaluations:
    results |= session.evaluate(evaluation.name, evaluation.evaluator)
  return results


def restore_or_create(run: Run, checkpointer: Any, path: epath.Path) -> tuple[Any, int]:
  """(state, step): of the newest complete checkpoint, or of a new run in the workdir `path`."""
  if checkpointer.latest() is None:
    return _create(run, path), 0
  state, _ = checkpointer.restore(run.placed)
  step = int(processes.fetch(state.step))
  log.info("resuming from step %d", step)
  return state, step


def _create(run: Run, path: epath.Path) -> Any:
  """The state of a new run; where its weights come from is told in provenance.json."""
  tensors, facts = {}, {}
  if run.settings.init_from:
    tensors, facts["init_from"] = pretrained.initial(
        run.settings.init_from, run.settings.init, run.abstract.params)
  networks, told = frozen.initial(run.frozen, run.abstract.state, streams.tokenise(run.stream))
  facts |= {"frozen": told} if told else {}
  if facts:
    workdir_lib.note(path, **facts)
  return run.create_state(tensors, networks)


def eval_workdir(workdir: str, step: int | None = None, config: dict | None = None) -> dict[str, float]:
  """The evaluators on a checkpoint of a run.

  Args:
    step: of the checkpoint; default the newest.
    config: instead of the run's own, for other evaluators; its model must be the same.
  """
  run, state = _open(workdir, step, config)
  session = Session(run, str(epath.Path(workdir) / "evals"))
  session.check(state)
  results = evaluate(run, state, session)
  console.show(console.evaluation_table(f"step {int(state.step)}", results), lead=processes.is_lead())
  return results


def eval_between(workdir: str, start: str, alphas: Sequence[float], step: int | None = None,
                 config: dict | None = None, save: str | None = None) -> dict[float, dict[str, float]]:
  """The evaluators on weights between those at `start` and those of a run (WiSE-FT), for each alpha.

  Args:
    start: what the run was fine-tuned from, see `interpolate.between`.
    alphas: shares of the run's weights.
    step, config: as in `eval_workdir`.
    save: a new workdir for the weights, of a single alpha.
  """
  if save and len(alphas) != 1:
    raise ConfigError(f"--save={save}: takes the weights of one alpha, not of {len(alphas)}")
  if save:
    interpolate.require_new(save)
  run, state = _open(workdir, step, config)
  session, results = Session(run), {}
  for alpha, mixed in interpolate.between(run, state, start, alphas):
    results[alpha] = evaluate(run, mixed, session)
    if save:
      interpolate.save(run, mixed, save)
  rows = [[name, *(results[alpha][name] for alpha in alphas)] for name in results[alphas[0]]]
  columns = ["metric", *(f"alpha {alpha:g}" for alpha in alphas)]
  console.show(console.table(f"from {start} to {workdir}", columns, rows), lead=processes.is_lead())
  return results


def _open(workdir: str, step: int | None, config: dict | None) -> tuple[Run, Any]:
  """The run in a workdir and its state at a step, as `eval_workdir` wants them."""
  use_compilation_cache()
  run = assemble(workdir_lib.recall(config or workdir_lib.read_config(workdir), workdir))
  path = epath.Path(workdir)
  with contextlib.closing(run.checkpoint.open(str(path / "checkpoints"), read_only=True)) as checkpointer:
    if step is not None and step not in checkpointer.steps():
      raise ConfigError(f"--step={step}: {workdir} has checkpoints of the steps {checkpointer.steps()}")
    if checkpointer.latest() is None:
      raise ConfigError(f"--workdir={workdir}: holds no complete checkpoint")
    state, _ = checkpointer.restore(run.placed, step)
  return run, state


def use_compilation_cache() -> None:
  """Keeps compiled programs between runs: in JAX_COMPILATION_CACHE_DIR, or ~/.cache/mmjax/xla."""
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/mmjax/xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _announce(run: Run, start: int) -> None:
  lead = processes.is_lead()
  console.show(groups.format_table(run.optim_info.table), lead=lead)
  _warn(run.findings.lines())
  log.info("%d steps of %s rows on mesh %s, from step %d", run.settings.total_steps,
           run.settings.batch_sizes, dict(run.mesh.shape), start)


def _warn(lines: list[str]) -> None:
  """What the lint of the mesh says."""
  for line in lines:
    log.warning("mesh: %s", line)


def _writers(path: epath.Path, run: Run, start: int) -> list:
  if not processes.is_lead():
    return []
  return [*outputs.open_writers(run.settings.writers, str(path), start),
          console.Console(run.settings.total_steps, start=start)]


def _report(path: epath.Path) -> None:
  """Writes the run's report; whatever goes wrong with it, the run has ended as it has."""
  if not processes.is_lead():
    return
  try:
    log.info("report: %s", report.write(str(path)))
  except Exception as error:
    log.warning("no report could be written: %s: %s", type(error).__name__, error)
