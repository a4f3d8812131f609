"""Evaluation: what an evaluator may ask of a run, and the run's evaluators on their own schedules."""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from etils import epath

from mmjax import config as config_lib
from mmjax.checkpoint import paths
from mmjax.checkpoint.checkpointer import CheckpointError
from mmjax.checkpoint.interop.read import read
from mmjax.config import ConfigError
from mmjax.data import loader
from mmjax.objectives.contract import Term
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel import processes
from mmjax.training.assemble import Run
from mmjax.training.streams import abstract_batch
from mmjax.training.state import EMA, TrainState
from mmjax.training.step import make_eval_step, make_features, make_generate

Batch = Mapping[str, Any]


class Session:
  """What an evaluator sees: data, features, metrics, and a place for its arrays.

  Compiled functions stay with the session, so one session serves all evaluations of a run.

  Args:
    directory: arrays that evaluators save go to `directory/<step>/<evaluator>.npz`; None: nowhere.
  """

  def __init__(self, run: Run, directory: str | None = None):
    self._run = run
    self._directory = directory
    self._functions, self._encoders = {}, {}
    self._params = self._state = self._teachers = None
    self._step, self._name = 0, ""

  def load(self, state: TrainState) -> None:
    """The weights to evaluate: the average of all parameters where the run keeps one."""
    self._params = state.teachers.get(EMA, state.params)
    self._state, self._teachers = state.state, state.teachers
    self._step = int(state.step)

  def check(self, state: TrainState) -> None:
    """Looks for what is wrong with an evaluator's settings before anything is trained.

    Raises:
      ConfigError: with the path in the config.
    """
    self.load(state)
    for evaluation in self._run.evaluations:
      if hasattr(evaluation.evaluator, "check"):
        self._name = evaluation.name
        with self._run.use():
          evaluation.evaluator.check(self)

  def stream(self, stream: Any) -> Any:
    """`stream` itself, or for None the run's own evaluation stream."""
    stream = stream if stream is not None else self._run.eval_stream
    if stream is None:
      raise self.error("data", "is missing, and there is no eval_data to take instead")
    return stream

  def error(self, key: str, what: str) -> ConfigError:
    """What an evaluator raises when its setting `key` does not fit the data or the model."""
    return ConfigError(f"evals.{self._name}.{key}: {what}")

  def batches(self, stream: Any, batch_size: int) -> Iterator[Batch]:
    """Every record of `stream` once, in order; None is the run's own evaluation stream.

    `batch_size` is rounded up to what the mesh divides; rows of padding have `valid` False.
    """
    stream, sharding = self.stream(stream), self._run.batch_sharding
    with loader.eval_batches(stream, self._rounded(batch_size), sharding) as batches:
      for _, batch in batches:
        yield batch

  def abstract_batch(self, stream: Any, batch_size: int) -> Batch:
    """Shapes and dtypes of what `batches` gives."""
    return abstract_batch(self.stream(stream), self._rounded(batch_size))

  def _rounded(self, batch_size: int) -> int:
    sharding = self._run.batch_sharding
    parts = len({str(index) for index in sharding.devices_indices_map((sharding.num_devices,)).values()})
    return -(-batch_size // parts) * parts

  def features(self, batch: Batch, want: tuple[str, ...] = ()) -> dict[str, jax.Array]:
    """The objective's features of a batch with train=False; see `Objective.forward`."""
    return self._call(("features", tuple(want)), batch)

  def generate(self, batch: Batch, **how: Any) -> dict[str, dict]:
    """What the objective generates from a batch; see `Objective.generate`. `how` can be hashed."""
    return self._call(("generate", tuple(sorted(how.items()))), batch)

  def encoder(self, path: str) -> Callable[..., dict[str, jax.Array]]:
    """Another model's `features`: those of the image encoder of the checkpoint at `path`, a workdir
    or a folder of another format. It is read once, and lies whole on every device.

    Raises:
      ValueError: it cannot be read, or has no image encoder.
    """
    if path not in self._encoders:
      try:
        model = read(path).encoder()
      except (CheckpointError, OSError) as error:
        raise ValueError(str(error)) from error
      objective = config_lib.build("mmjax.objectives", model.objective, "objective")
      params = jax.device_put(paths.nest(model.params), mesh_lib.replicated(self._run.mesh))
      make = functools.cache(lambda want: jax.jit(make_features(objective, seed=0, want=want)))
      self._encoders[path] = lambda batch, want=(): make(tuple(want))(
          params, {}, {}, jax.tree.map(self._on_mesh, dict(batch)))
    return self._encoders[path]

  def metrics(self, batch: Batch) -> dict[str, Term]:
    """The objective's loss terms and metrics on a batch with train=False."""
    return self._call(("metrics",), batch)

  def fetch(self, tree: Any) -> Any:
    """Global arrays as numpy on every process."""
    return processes.fetch(tree)

  def save(self, name: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps arrays (a confusion matrix, neighbours) beside the run's metrics."""
    if self._directory is None or not processes.is_lead():
      return
    path = epath.Path(self._directory) / str(self._step) / f"{self._name}-{name}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
      np.savez(file, **arrays)

  def evaluate(self, name: str, evaluator: Any) -> dict[str, float]:
    """One evaluator's metrics, under `name/metric`."""
    self._name = name
    with self._run.use():
      return {f"{name}/{metric}": value for metric, value in evaluator.run(self).items()}

  def _call(self, which: tuple, batch: Batch) -> Any:
    if which not in self._functions:
      kind, *more = which
      make = {"features": lambda **kw: make_features(want=more[0], **kw),
              "generate": lambda **kw: make_generate(**dict(more[0]), **kw),
              "metrics": make_eval_step}[kind]
      make = make(objective=self._run.objective, seed=self._run.settings.seed)
      self._functions[which] = jax.jit(
          make, out_shardings=mesh_lib.replicated(self._run.mesh) if kind == "metrics" else None)
    batch = jax.tree.map(self._on_mesh, dict(batch))
    return self._functions[which](self._params, self._state, self._teachers, batch)

  def _on_mesh(self, x: Any) -> jax.Array:
    """What an evaluator made itself (prompts) is given to every device."""
    return x if isinstance(x, jax.Array) else jax.device_put(x, mesh_lib.replicated(self._run.mesh))


def due(run: Run, step: int) -> list:
  """The evaluations whose turn it is after `step` updates; all of them at the end."""
  last = step >= run.settings.total_steps
  return [e for e in run.evaluations if last or (e.every_steps and step % e.every_steps == 0)]
