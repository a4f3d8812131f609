"""From a config to the objects of a run: mesh, data, objective, optimizer, and the state's layout.

`train`, `eval` and whoever wants to compile the very same step begin here. Nothing is computed and
no parameter is made.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.errors import FlaxError
from jax.sharding import Mesh

from mmjax import config as config_lib
from mmjax.checkpoint import paths, retention
from mmjax.checkpoint.checkpointer import Checkpointer
from mmjax.config import ConfigError
from mmjax.data.batch_sizes import BatchSizes
from mmjax.data.mixture import Mixture
from mmjax.data.stream import Stream
from mmjax.nn import names
from mmjax.objectives.contract import Objective
from mmjax.optim import build as optim_lib
from mmjax.optim import groups as optim_groups
from mmjax.parallel import lint
from mmjax.parallel import mesh as mesh_lib
from mmjax.training import compiler, flops, labels, outputs, pretrained, ramp, streams, user_data
from mmjax.training import frozen as frozen_lib
from mmjax.training import state as state_lib
from mmjax.training.step import make_train_step
from mmjax.training.streams import Loading

Node = dict[str, Any]
LENGTHS = ("total_steps", "total_examples", "total_epochs")  # of the run; one is given


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The top level of a config; every other key of a config stands inside one of these.

  Attributes:
    objective: {"name": a file in `mmjax/objectives/`, and its arguments}.
    data: {"source": {"name": ...}, "transforms": [...], ...} or {"mixture": {...}}, see
      `mmjax/training/streams.py`.
    optim: optimizer, learning rate, schedule and parameter groups, see `mmjax/optim/build.py`; and
      `ema_decay`, which keeps an average of all parameters for evaluation.
    total_steps: length of the run (or `total_examples`, `total_epochs`).
    init_from: checkpoint that the parameters begin as: a workdir, or a folder of another format.
    init: what of it is taken, see `mmjax/training/pretrained.py`.
    labels: names of a classifier's classes, in order; default those of the training data.
    batch_size: rows a step, over all devices.
    batch_ramp: [{"until_steps": ..., "batch_size": ...}, ...]: other sizes at the start of the run,
      see `mmjax/training/ramp.py`. The schedule of the learning rate stays in steps.
    micro_batches: parts into which a step cuts its batch to save memory; the result is the same.
    seed: of parameters, masks and augmentations; the data's order has `data.seed`.
    eval_data: the evaluators' stream where they name none; like `data`.
    evals: {name: {"name": a file in `mmjax/evals/` (default the key), "every_steps": ..., ...}}.
    mesh: sizes of the mesh axes, see `mmjax/parallel/mesh.py`.
    rules: changes to the table from logical axes to mesh axes.
    max_waste_gib: GiB of the state on a device that may be copies which the mesh could have divided,
      see `mmjax/parallel/lint.py`; None for no limit.
    compiler_options: {name: value}, of XLA, for the train step; those of other platforms are left out.
    checkpoint: when to save and what to keep, see `CheckpointSettings`.
    log_every_steps: how often metrics are written.
    writers: to where; names or {"name": a file in `mmjax/report/writers/`, and its arguments}.
    watchdog_seconds: end the process with its stacks printed if no step ends for so long.
  """

  objective: dict
  data: dict
  total_steps: int
  batch_size: int
  batch_ramp: tuple = ()
  init_from: str | None = None
  init: dict = dataclasses.field(default_factory=dict)
  labels: tuple = ()
  optim: dict = dataclasses.field(default_factory=dict)
  micro_batches: int = 1
  seed: int = 0
  eval_data: dict | None = None
  evals: dict = dataclasses.field(default_factory=dict)
  mesh: dict = dataclasses.field(default_factory=dict)
  rules: dict = dataclasses.field(default_factory=dict)
  max_waste_gib: float | None = 1.0
  compiler_options: dict = dataclasses.field(default_factory=dict)
  checkpoint: dict = dataclasses.field(default_factory=dict)
  log_every_steps: int = 50
  writers: tuple = ("jsonl", "tensorboard")
  watchdog_seconds: float | None = None

  def __post_init__(self):
    config_lib.at_least(1, self, "total_steps", "micro_batches", "log_every_steps")
    if self.watchdog_seconds is not None and self.watchdog_seconds <= 0:
      raise ValueError(f"watchdog_seconds: must be positive or None, not {self.watchdog_seconds}")
    if self.max_waste_gib is not None and self.max_waste_gib < 0:
      raise ValueError(f"max_waste_gib: must be at least 0 or None, not {self.max_waste_gib}")

  @functools.cached_property
  def batch_sizes(self) -> BatchSizes:
    """The rows of every step: `batch_ramp`, then `batch_size`."""
    return ramp.resolve(self.batch_ramp, self.batch_size)

  @property
  def rows(self) -> int:
    """Rows of the whole run."""
    return self.batch_sizes.first_row(self.total_steps)


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
  """When a run saves, and what it keeps.

  Attributes:
    every_steps: saves at multiples of it, and at the end.
    keep_last, keep_every_steps, keep_best: as in `Checkpointer`; `keep_best` is (metric, "max" or
      "min", count).
  """

  every_steps: int = 1000
  keep_last: int = 2
  keep_every_steps: int | None = None
  keep_best: tuple | None = None

  def __post_init__(self):
    config_lib.at_least(1, self, "every_steps")
    retention.check(self.keep_last, self.keep_every_steps, self.keep_best)

  def open(self, directory: str, read_only: bool = False) -> Checkpointer:
    return Checkpointer(directory, keep_last=self.keep_last, keep_every_steps=self.keep_every_steps,
                        keep_best=self.keep_best, read_only=read_only)


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluator, its name in the metrics and its schedule (None: only at the end)."""

  name: str
  evaluator: Any
  every_steps: int | None


@dataclasses.dataclass(frozen=True)
class Run:
  """All that a config describes.

  `frozen` are the sources of the objective's frozen networks, see `mmjax/training/frozen.py`;
  `abstract` the state's shapes, and `shardings` their places.
  """

  settings: Settings
  config: Node
  mesh: Mesh
  stream: Stream | Mixture
  loading: Loading
  eval_stream: Stream | Mixture | None
  evaluations: tuple[Evaluation, ...]
  checkpoint: CheckpointSettings
  objective: Objective
  frozen: dict[str, frozen_lib.Source]
  optimizer: optax.GradientTransformation
  optim_info: optim_lib.Info
  ema_decay: float | None
  abstract_batch: Node
  abstract: state_lib.TrainState
  shardings: state_lib.TrainState
  findings: lint.Findings

  def use(self):
    """The context in which this run's functions are traced."""
    return mesh_lib.use(self.mesh, self.settings.rules)

  @property
  def batch_sharding(self):
    return mesh_lib.batch_sharding(self.mesh, self.settings.rules)

  @property
  def placed(self) -> state_lib.TrainState:
    """`abstract` with each leaf's sharding in it: what a checkpoint is restored to."""
    place = lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    return jax.tree.map(place, self.abstract, self.shardings)

  def create_state(self, initial: dict[str, np.ndarray] | None = None,
                   frozen: dict[str, np.ndarray] | None = None) -> state_lib.TrainState:
    """The state before the first step, made where it will lie; arguments as of `state.create`."""
    def make(params, state):
      batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.abstract_batch)
      return state_lib.create(self.objective, self.optimizer, batch, seed=self.settings.seed,
                              ema=self.ema_decay is not None, initial=params, frozen=state)

    with self.use():
      return jax.jit(make, out_shardings=self.shardings)(
          _placed(initial, self.shardings.params), _placed(frozen, self.shardings.state))

  def step_fn(self):
    """The jitted train step; it takes over (donates) the state it is given."""
    step = make_train_step(self.objective, self.optimizer, seed=self.settings.seed,
                           micro_batches=self.settings.micro_batches, ema_decay=self.ema_decay)
    return jax.jit(step, in_shardings=(self.shardings, self.batch_sharding),
                   out_shardings=(self.shardings, mesh_lib.replicated(self.mesh)), donate_argnums=0,
                   compiler_options=compiler.options(self.mesh, self.settings.compiler_options))

  def model_flops(self, batch_size: int | None = None) -> int | None:
    """FLOPs of a step of so many rows (default `settings.batch_size`), nothing computed twice; None
    if they can't be seen."""
    rows = batch_size or self.settings.batch_size
    batch = {key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
             for key, x in self.abstract_batch.items()}
    objective = flops.mathematics(self.objective)
    step = make_train_step(objective, self.optimizer, seed=0, ema_decay=self.ema_decay)
    try:
      return flops.count(step, self.abstract, batch)
    except ValueError:
      return None


def _placed(tensors: dict[str, np.ndarray] | None, shardings: Any) -> dict[str, jax.Array]:
  """Some of a tree's tensors {path: array} on the devices that will hold them."""
  places = paths.flatten(shardings)
  return {name: jax.make_array_from_callback(x.shape, places[name], x.__getitem__)
          for name, x in (tensors or {}).items()}


def assemble(config: Node, devices: list | None = None, example_data: bool = False) -> Run:
  """Builds everything that `config` describes, and so finds whatever is wrong with it.

  Args:
    devices: of the mesh; default all of all processes. They may be absent, as in `mmjax plan`.
    example_data: no data need be there; shapes come from an example, see `streams.example_source`.

  Raises:
    ConfigError: with the path in the config.
    DataError: the data cannot be read.
  """
  config = pretrained.resolve(frozen_lib.resolve(user_data.resolve(config)))
  settings, _ = _settings(config, epoch=1)  # its keys are looked at before any data is built
  outputs.check(settings.writers)
  mesh = _mesh(settings, devices)
  compiler.check(mesh, settings.compiler_options)
  stream, loading = streams.make_stream(settings.data, "data", example_data)
  config = labels.fill_in(config, stream)
  settings, resolved = _settings(config, epoch=_epoch(config, stream))
  ramp.check_end(settings.batch_sizes, settings.total_steps)
  streams.check_end(stream, settings.rows, settings.total_steps)

  eval_stream = None
  if settings.eval_data:
    limited = streams.with_limits(settings.eval_data, settings.data, "eval_data")
    eval_stream, _ = streams.make_stream(limited, "eval_data", example_data)
  node, sources = frozen_lib.split(settings.objective)
  objective = config_lib.build("mmjax.objectives", node, "objective")
  streams.check_vocabulary(objective, stream)
  labels.check(objective, stream, eval_stream)
  evaluations = _evaluations(settings, eval_stream, example_data)
  checkpoint = config_lib.fields(CheckpointSettings, settings.checkpoint, "checkpoint")
  _check_best(checkpoint, evaluations)
  batch = streams.abstract_batch(stream, settings.batch_size)
  boxed = _abstract_params(objective, batch)
  _check_rules(settings.rules, boxed)
  optimizer, info, ema_decay = _optimizer(settings.optim, boxed, settings.total_steps)
  abstract = jax.eval_shape(functools.partial(
      state_lib.create, objective, optimizer, seed=settings.seed, ema=ema_decay is not None), batch)
  frozen_lib.check(sources, abstract.state)
  shardings, undivided = state_lib.shardings(objective, abstract, batch, mesh, settings.rules)
  findings = lint.check(abstract, shardings, boxed, undivided, mesh, settings.rules,
                        settings.max_waste_gib)
  if findings.error:
    raise ConfigError(findings.error)
  return Run(
      settings=settings, config=resolved, mesh=mesh, stream=stream, loading=loading,
      eval_stream=eval_stream, evaluations=evaluations, checkpoint=checkpoint, objective=objective,
      frozen=sources, optimizer=optimizer, optim_info=info, ema_decay=ema_decay, abstract_batch=batch,
      abstract=abstract, shardings=shardings, findings=findings)


def _evaluations(settings: Settings, eval_stream: Stream | Mixture | None, example_data: bool
                 ) -> tuple[Evaluation, ...]:
  result = []
  for name, node in settings.evals.items():
    path = f"evals.{name}"
    node = dict(config_lib.check(node, dict, path))
    every = config_lib.check(node.pop("every_steps", None), int | None, f"{path}.every_steps")
    if every is not None and every < 1:
      raise ConfigError(f"{path}.every_steps: must be at least 1 (none: only at the end), not {every}")
    for key in ("data", "train", "reference"):
      stream = node.pop(key, None)
      if stream is not None:
        limited = streams.with_limits(stream, settings.data, f"{path}.{key}")
        node[key] = streams.finite_stream(limited, f"{path}.{key}", example_data)
    evaluator = config_lib.build("mmjax.evals", {"name": name, **node}, path, ("every_steps",))
    if getattr(evaluator, "data", eval_stream) is None and eval_stream is None:
      raise ConfigError(f"{path}.data: is missing, and there is no eval_data to take instead")
    if getattr(evaluator, "batch_size", 1) < 1:
      raise ConfigError(f"{path}.batch_size: must be at least 1, not {evaluator.batch_size}")
    result.append(Evaluation(name, evaluator, every))
  return tuple(result)


def _abstract_params(objective: Objective, batch: Node) -> Any:
  """The shapes of the parameters, boxed with their logical axis names."""
  try:
    return jax.eval_shape(objective.init, jax.random.key(0), batch)[0]
  except KeyError as error:
    raise ConfigError(f"objective: the batch has no {error}; data gives {', '.join(batch)}: see data.transforms, "
                      "in which Keep and Rename say what is in it") from error
  except (ValueError, TypeError, FlaxError) as error:
    raise ConfigError(names.below("objective", str(error))) from error


def _check_rules(rules: Node, boxed: Any) -> None:
  """A rule for an axis that nothing has would be passed over silently."""
  boxes = jax.tree.leaves(boxed, is_leaf=optim_groups.is_box)
  axes = {axis for box in boxes for axis in getattr(box, "names", ()) if axis}
  config_lib.check_keys(rules, axes | set(mesh_lib.RULES), "rules")


def _optimizer(node: Node, params: Any, total_steps: int
               ) -> tuple[optax.GradientTransformation, optim_lib.Info, float | None]:
  """`optim` as (transformation, info, ema_decay); its keys are those of the signatures.

  `params` are boxed with their logical axis names, by which an optimizer tells layers and matrices.
  """
  node = {"name": "adamw", **node}
  schedule = {"name": "cosine", **(config_lib.check(
      node.get("schedule"), dict | None, "optim.schedule") or {})}
  name, curve = node.pop("name"), schedule.pop("name")
  direction = config_lib.find("mmjax.optim.optimizers", name, "optim")
  shape = config_lib.find("mmjax.optim.schedules", curve, "optim.schedule")
  targets = [optim_lib.build, direction, _ema]
  checked = config_lib.arguments(targets, node, "optim",
                                 ("params", "total_steps", "hyper", "table"), ("name",))
  checked["name"] = name
  checked["schedule"] = {"name": curve, **config_lib.arguments(
      [shape], schedule, "optim.schedule", ("total_steps",), ("name",))}
  for i, rule in enumerate(checked.get("groups", ())):
    path = f"optim.groups.{i}"
    config_lib.fields(optim_groups.Rule, config_lib.check(rule, dict, path), path)
  ema_decay = config_lib.call(_ema, {"ema_decay": checked.pop("ema_decay", None)}, "optim")
  try:
    optimizer, info = optim_lib.from_config(checked, params, total_steps)
  except (ValueError, TypeError) as error:
    raise ConfigError(str(error) if str(error).startswith("optim") else f"optim: {error}"
                      ) from error
  return optimizer, info, ema_decay


def _ema(ema_decay: float | None = None) -> float | None:
  """Decay of the average of all parameters; None for no average."""
  if ema_decay is not None and not 0 <= ema_decay < 1:
    raise ValueError(f"ema_decay: must be at least 0 and below 1, not {ema_decay}")
  return ema_decay


def _check_best(checkpoint: CheckpointSettings, evaluations: tuple[Evaluation, ...]) -> None:
  """The metric that decides what is kept must be one that some evaluator gives."""
  if not checkpoint.keep_best:
    return
  metric, names = str(checkpoint.keep_best[0]), [e.name for e in evaluations]
  if metric.split("/")[0] not in names:
    raise ConfigError(f"checkpoint.keep_best: {metric!r} is no evaluator's metric"
                      + config_lib.nearest(metric.split("/")[0], names))


def _settings(config: Node, epoch: int) -> tuple[Settings, Node]:
  """The top level and the whole config with durations in steps, an epoch being so many records."""
  length = {key: config[key] for key in LENGTHS if config.get(key) is not None}
  if len(length) != 1:
    raise ConfigError(f"total_steps: give the run's length as one of {', '.join(LENGTHS)}"
                      + (f", not as {' and '.join(length)}" if length else ""))
  if "batch_size" not in config:
    raise ConfigError("batch_size: is missing and has no default")
  batch_size = config_lib.check(config["batch_size"], int, "batch_size")
  if batch_size < 1:
    raise ConfigError(f"batch_size: must be at least 1, not {batch_size}")
  sizes = ramp.resolve(config.get("batch_ramp"), batch_size)
  resolve = functools.partial(config_lib.resolve_durations, sizes=sizes, epoch=epoch)
  length = resolve(length, total=None)
  total = config_lib.check(length["total_steps"], int, "total_steps")
  fixed = {key: config[key] for key in ("data", "eval_data", "init") if key in config}
  rest = {key: value for key, value in config.items()
          if key not in (*fixed, *LENGTHS, "batch_ramp")}
  resolved = {**resolve(rest, total=total), **length, **fixed}
  if sizes.stages:
    resolved["batch_ramp"] = ramp.nodes(sizes)
  return config_lib.fields(Settings, resolved, ""), resolved


def seen(config: Node) -> tuple[int, list]:
  """(rows that a run reads, what it reads of each source: `mmjax.data.mixture.Share`s); trains nothing.

  Raises:
    ConfigError, DataError: as of `assemble`.
  """
  config = pretrained.resolve(frozen_lib.resolve(user_data.resolve(config)))
  settings, _ = _settings(config, epoch=1)
  stream, _ = streams.make_stream(settings.data, "data")
  settings, _ = _settings(config, epoch=_epoch(config, stream))
  streams.check_end(stream, settings.rows, settings.total_steps)
  return settings.rows, streams.shares(stream, settings.rows)


def _epoch(config: Node, stream: Stream | Mixture) -> int | None:
  """Records of an epoch; None where nobody can know it."""
  return None if streams.is_stand_in(stream, config["data"]) else streams.count_records(stream)


def _mesh(settings: Settings, devices) -> Mesh:
  mesh = config_lib.call(mesh_lib.make_mesh, settings.mesh, "mesh", devices=devices)
  try:
    rows = mesh_lib.batch_sharding(mesh, settings.rules)
  except (ValueError, TypeError) as error:
    raise ConfigError(f"rules: {error}") from error
  parts = rows.num_devices // _copies(rows)
  paths = [f"batch_ramp.{i}.batch_size" for i in range(len(settings.batch_ramp))] + ["batch_size"]
  for path, size in zip(paths, settings.batch_sizes.sizes, strict=True):
    if size % (parts * settings.micro_batches):
      raise ConfigError(
          f"{path}: {size} rows cannot be cut into {settings.micro_batches} micro-batches over "
          f"{parts} devices; take a multiple of {parts * settings.micro_batches}")
  return mesh


def _copies(sharding) -> int:
  axes = sharding.spec[0] if sharding.spec else None
  axes = (axes,) if isinstance(axes, str) else axes or ()
  parts = np.prod([sharding.mesh.shape[axis] for axis in axes], initial=1)
  return sharding.num_devices // int(parts)
