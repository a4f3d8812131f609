"""What happens between steps: metrics, warnings, checkpoints, evaluation, stopping.

Nothing here waits for the step just launched, except where the state itself is needed (checkpoint,
evaluation, end).
"""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mmjax.checkpoint.checkpointer import Checkpointer
from mmjax.objectives.contract import Term
from mmjax.parallel import processes
from mmjax.training import collapse, flops
from mmjax.training.assemble import Run
from mmjax.training.evaluate import Session, due
from mmjax.training.metrics import HostMetrics, Window
from mmjax.training.state import TrainState

log = logging.getLogger("mmjax")
TRIVIAL_SHARE = 0.01   # a loss within this share of its trivial value has learned nothing yet
TRIVIAL_AFTER = 0.3    # ... which is worth a warning after this share of the run


class Halted(RuntimeError):
  """The loss or its gradient was not finite. The message names the step and the checkpoint to go on from."""


class Hooks:
  """Called after every step; `done` turns true when the run should end.

  Args:
    writers: objects with `write(step, scalars)`.
    stop: `stop.after(step)` says whether a signal asks the run to end after this step.
  """

  def __init__(self, run: Run, checkpointer: Checkpointer, writers: Sequence[Any], session: Session,
               stop: Any):
    self._run, self._checkpointer, self._writers = run, checkpointer, writers
    self._session, self._stop = session, stop
    self._metrics = HostMetrics(run.settings.log_every_steps)
    self._model_flops = {size: run.model_flops(size) for size in run.settings.batch_sizes.sizes}
    self._clock = self._launched = time.monotonic()
    self._batch_size = None
    self._warned = False
    self._collapse = collapse.Watch(run.settings.total_steps)
    self._results: dict[str, float] = {}
    self._evaluated: dict[str, int] = {}
    self.done = False

  def after(self, step: int, state: TrainState, metrics: Mapping[str, Term]) -> None:
    """`step` updates have been launched; `state` and `metrics` are those after the last of them."""
    settings = self._run.settings
    self._discount_compilation(settings.batch_sizes.at(step - 1))
    windows = self._metrics.push(step, metrics)
    last = step >= settings.total_steps
    stop = self._stop.after(step)
    for window in windows + (self._metrics.drain() if last or stop else []):
      self._write_window(window, state)
    if step % self._run.checkpoint.every_steps == 0 or last or stop:
      self._save(step, state)  # before the evaluators, whose errors are not to cost the steps
    self._evaluate(step, state, due(self._run, step))
    if stop and not last:
      log.warning("asked to stop: saved step %d of %d; the same command goes on from here", step,
                  settings.total_steps)
    self.done = last or stop
    self._launched = time.monotonic()

  def resume(self, step: int, state: TrainState, lines: Sequence[Mapping[str, float]]) -> None:
    """Evaluates what was due after `step`, at which the run goes on, and is not in the `lines` of its metrics:
    it ended between the two."""
    told = [name for line in lines if line["step"] == step for name in line]
    self._evaluate(step, state, [e for e in due(self._run, step)
                                 if not any(name.startswith(f"{e.name}/") for name in told)])

  @property
  def results(self) -> dict[str, float]:
    """The newest value of every evaluator's metrics."""
    return self._results

  def _discount_compilation(self, batch_size: int) -> None:
    """The first step of each size compiles before it is launched, which is not the steps' time."""
    if batch_size != self._batch_size:
      seconds = time.monotonic() - self._launched
      log.info("first step of %d rows launched after %.1f s", batch_size, seconds)
      self._clock += seconds
      self._batch_size = batch_size

  def _save(self, step: int, state: TrainState) -> None:
    """Saves a finite state, never a halted one, with the metric that `keep_best` goes by."""
    if bool(processes.fetch(state.halted)):
      self._halt(state)
    best = self._run.checkpoint.keep_best
    if best:
      judge = [e for e in self._run.evaluations if best[0].startswith(f"{e.name}/")]
      try:
        self._evaluate(step, state, judge)
      except Exception:
        if jax.process_count() == 1:  # others may evaluate still, and could not save with this one
          self._checkpointer.save(step, state)
        raise
    self._checkpointer.save(step, state, metrics=self._results if best else None)

  def _write_window(self, window: Window, state: TrainState) -> None:
    if window.values["halted"] != 0:
      self._halt(state)
    now = time.monotonic()
    seconds = now - self._clock
    self._clock = now
    sizes, steps = self._run.settings.batch_sizes, range(window.first - 1, window.last)
    scalars = {name: value for name, value in window.values.items() if name != "halted"}
    scalars["lr"] = float(self._run.optim_info.lr_at(window.last - 1))
    rows = sizes.first_row(steps.stop) - sizes.first_row(steps.start)
    scalars["examples_per_s"] = rows / seconds
    if None not in self._model_flops.values():
      work = sum(self._model_flops[sizes.at(step)] for step in steps)
      scalars["model_tflops_per_second"] = work / seconds / 1e12
      share = flops.mfu(work, seconds, list(self._run.mesh.devices.flat))
      scalars |= {} if share is None else {"mfu": share}
    self._write(window.last, scalars)
    self._warn_if_trivial(window.last, scalars)
    least = self._run.objective.collapsed_below(sizes.at(window.last - 1))
    for line in self._collapse.look(window.first, window.last, scalars, least):
      log.warning("%s", line)

  def _evaluate(self, step: int, state: TrainState, evaluations: Sequence[Any]) -> None:
    evaluations = [e for e in evaluations if self._evaluated.get(e.name) != step]
    if not evaluations:
      return
    paused = time.monotonic()
    self._session.load(state)
    for evaluation in evaluations:
      scalars = self._session.evaluate(evaluation.name, evaluation.evaluator)
      self._results |= scalars
      self._evaluated[evaluation.name] = step
      self._write(step, scalars)
    self._clock += time.monotonic() - paused  # time spent here is not the steps'

  def _write(self, step: int, scalars: Mapping[str, float]) -> None:
    for writer in self._writers:
      writer.write(step, scalars)

  def _warn_if_trivial(self, step: int, scalars: Mapping[str, float]) -> None:
    settings = self._run.settings
    if self._warned or step < TRIVIAL_AFTER * settings.total_steps:
      return
    for name, value in self._run.objective.trivial(settings.batch_sizes.at(step - 1)).items():
      if math.isclose(scalars.get(name, math.nan), value, rel_tol=TRIVIAL_SHARE):
        log.warning("after %d steps the loss %s = %.4f sits at its trivial value %.4f: nothing has been "
                    "learned (learning rate, data and labels paired?)", step, name, scalars[name], value)
        self._warned = True

  def _halt(self, state: TrainState) -> None:
    good = int(processes.fetch(state.step))
    self._checkpointer.wait()
    latest = self._checkpointer.latest()
    kept = f"the checkpoint of step {latest} is kept" if latest is not None else "there is no checkpoint yet"
    sizes = self._run.settings.batch_sizes
    raise Halted(f"the loss or its gradient was not finite in step {good + 1}; nothing was updated after "
                 f"step {good}, and {kept}. Lower the learning rate, set optim.clip_norm, or look at the "
                 f"rows {sizes.first_row(good)} to {sizes.first_row(good + 1) - 1} of the data")
