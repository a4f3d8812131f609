"""From a config to the objects of a run: mesh, data, objective, optimizer, and how the state lies on the mesh.

`train`, `eval` and whoever wants to compile the very same step begin here. Nothing is computed and no
parameter is made.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mmjax import config as config_lib
from mmjax.checkpoint.checkpointer import Checkpointer
from mmjax.config import ConfigError
from mmjax.data import tokenizers
from mmjax.data.mixture import Mixture
from mmjax.data.stream import Stream
from mmjax.objectives.contract import Objective
from mmjax.optim import build as optim_lib
from mmjax.parallel import mesh as mesh_lib
from mmjax.training import flops
from mmjax.training import state as state_lib
from mmjax.training.step import make_train_step

Node = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
  """The top level of a config; every other key of a config stands inside one of these.

  Attributes:
    objective: {"name": a file in `mmjax/objectives/`, and its arguments}.
    data: {"source": {"name": ...}, "transforms": [...], ...} or {"mixture": {...}}, see `make_stream`.
    optim: optimizer, learning rate, schedule and parameter groups, see `mmjax/optim/build.py`; and
      `ema_decay`, which keeps an average of all parameters for evaluation.
    total_steps: length of the run (or `total_examples`, `total_epochs`).
    batch_size: rows a step, over all devices.
    micro_batches: parts into which a step cuts its batch to save memory; the result is the same.
    seed: of parameters, masks and augmentations; the data's order has `data.seed`.
    eval_data: the evaluators' stream where they name none; like `data`.
    evals: {name: {"name": a file in `mmjax/evals/` (default the key), "every_steps": ..., ...}}.
    mesh: sizes of the mesh axes, see `mmjax/parallel/mesh.py`.
    rules: changes to the table from logical axes to mesh axes.
    checkpoint: when to save and what to keep, see `CheckpointSettings`.
    log_every_steps: how often metrics are written.
    watchdog_seconds: end the process with its stacks printed if no step ends for so long.
  """

  objective: dict
  data: dict
  total_steps: int
  batch_size: int
  optim: dict = dataclasses.field(default_factory=dict)
  micro_batches: int = 1
  seed: int = 0
  eval_data: dict | None = None
  evals: dict = dataclasses.field(default_factory=dict)
  mesh: dict = dataclasses.field(default_factory=dict)
  rules: dict = dataclasses.field(default_factory=dict)
  checkpoint: dict = dataclasses.field(default_factory=dict)
  log_every_steps: int = 50
  watchdog_seconds: float | None = None


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
  """When a run saves, and what it keeps.

  Attributes:
    every_steps: saves at multiples of it, and at the end.
    keep_last, keep_every_steps, keep_best: as in `Checkpointer`; `keep_best` is (metric, "max" or "min", count).
  """

  every_steps: int = 1000
  keep_last: int = 2
  keep_every_steps: int | None = None
  keep_best: tuple | None = None

  def open(self, directory: str, read_only: bool = False) -> Checkpointer:
    return Checkpointer(directory, keep_last=self.keep_last, keep_every_steps=self.keep_every_steps,
                        keep_best=self.keep_best, read_only=read_only)


@dataclasses.dataclass(frozen=True)
class Loading:
  """How a process reads its rows: worker processes (0: threads only), threads, batches in advance."""

  workers: int = 0
  read_threads: int = 4
  prefetch: int = 2


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluator, its name in the metrics and its schedule (None: only at the end)."""

  name: str
  evaluator: Any
  every_steps: int | None


@dataclasses.dataclass(frozen=True)
class Run:
  """All that a config describes. `abstract` is the state's shapes; `shardings` where each leaf lies."""

  settings: Settings
  config: Node
  mesh: Mesh
  stream: Stream | Mixture
  loading: Loading
  eval_stream: Stream | Mixture | None
  evaluations: tuple[Evaluation, ...]
  checkpoint: CheckpointSettings
  objective: Objective
  optimizer: optax.GradientTransformation
  optim_info: optim_lib.Info
  ema_decay: float | None
  abstract_batch: Node
  abstract: state_lib.TrainState
  shardings: state_lib.TrainState
  undivided: list

  def use(self):
    """The context in which this run's functions are traced."""
    return mesh_lib.use(self.mesh, self.settings.rules)

  @property
  def batch_sharding(self):
    return mesh_lib.batch_sharding(self.mesh, self.settings.rules)

  @property
  def placed(self) -> state_lib.TrainState:
    """`abstract` with each leaf's sharding in it: what a checkpoint is restored to."""
    return jax.tree.map(lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
                        self.abstract, self.shardings)

  def create_state(self) -> state_lib.TrainState:
    """The state before the first step, made where it will lie."""
    def make():
      batch = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), self.abstract_batch)
      return state_lib.create(self.objective, self.optimizer, batch, seed=self.settings.seed,
                              ema=self.ema_decay is not None)

    with self.use():
      return jax.jit(make, out_shardings=self.shardings)()

  def step_fn(self):
    """The jitted train step; it takes over (donates) the state it is given."""
    step = make_train_step(self.objective, self.optimizer, seed=self.settings.seed,
                           micro_batches=self.settings.micro_batches, ema_decay=self.ema_decay)
    return jax.jit(step, in_shardings=(self.shardings, self.batch_sharding),
                   out_shardings=(self.shardings, mesh_lib.replicated(self.mesh)), donate_argnums=0)

  def model_flops(self) -> int | None:
    """FLOPs of one step's forward and backward pass, nothing computed twice; None if they can't be seen."""
    plain = _without_remat(self.config["objective"])
    objective = config_lib.build("mmjax.objectives", plain, "objective")
    step = make_train_step(objective, self.optimizer, seed=0, ema_decay=self.ema_decay)
    try:
      return flops.count(step, self.abstract, self.abstract_batch)
    except ValueError:
      return None


def assemble(config: Node, devices: list | None = None) -> Run:
  """Builds everything that `config` describes, and so finds whatever is wrong with it.

  Raises:
    ConfigError: with the path in the config.
  """
  top = _resolve_top(config)
  settings = config_lib.fields(Settings, top, "config")
  mesh = _mesh(settings, devices)
  stream, loading = make_stream(settings.data, "data")
  resolved = _resolve_durations(top, settings, stream)
  settings = config_lib.fields(Settings, resolved, "config")

  eval_stream = make_stream(settings.eval_data, "eval_data")[0] if settings.eval_data else None
  objective = config_lib.build("mmjax.objectives", settings.objective, "objective")
  _check_vocabulary(objective, stream)
  evaluations = _evaluations(settings.evals)
  checkpoint = config_lib.fields(CheckpointSettings, settings.checkpoint, "checkpoint")
  _check_best(checkpoint, evaluations)
  batch = _abstract_batch(stream, settings.batch_size)
  node, ema_decay = dict(settings.optim), settings.optim.get("ema_decay")
  node.pop("ema_decay", None)
  try:
    boxed, _ = jax.eval_shape(objective.init, jax.random.key(0), batch)
    optimizer, info = optim_lib.from_config(node, mesh_lib.unbox(boxed), settings.total_steps)
  except (ValueError, TypeError, KeyError) as error:
    where = "" if str(error).startswith("optim") else "objective: "
    raise ConfigError(f"{where}{error}") from error
  abstract = jax.eval_shape(functools.partial(
      state_lib.create, objective, optimizer, seed=settings.seed, ema=ema_decay is not None), batch)
  shardings, undivided = state_lib.shardings(objective, abstract, batch, mesh, settings.rules)
  return Run(
      settings=settings, config=resolved, mesh=mesh, stream=stream, loading=loading,
      eval_stream=eval_stream, evaluations=evaluations, checkpoint=checkpoint, objective=objective, optimizer=optimizer, optim_info=info, ema_decay=ema_decay,
      abstract_batch=batch, abstract=abstract, shardings=shardings, undivided=undivided)


def make_stream(node: Node, path: str) -> tuple[Stream | Mixture, Loading]:
  """A stream, or a mixture of streams, from its node, and how it is to be read.

  {"source": {"name": a file in `mmjax/data/sources/`, ...}, "transforms": [{"name": a class in
  `mmjax/data/transforms.py`, ...}], "shuffle": bool, "seed": int, "max_bad_fraction": float}, or
  {"mixture": {name: the same, and "weight"}}.
  """
  own = {f.name for f in dataclasses.fields(Loading)}
  loading = config_lib.fields(Loading, {k: v for k, v in node.items() if k in own}, path)
  rest = {key: value for key, value in node.items() if key not in own}
  if "mixture" not in rest:
    return _single(rest, path), loading
  parts = rest.pop("mixture")
  streams, weights = [], []
  for index, (name, part) in enumerate(sorted(parts.items())):
    where = f"{path}.mixture.{name}"
    if "weight" not in part:
      raise ConfigError(f"{where}.weight: is missing")
    stream = _single({"seed": index, **{k: v for k, v in part.items() if k != "weight"}}, where)
    streams.append(stream)
    weights.append(part["weight"])
  return config_lib.call(Mixture, rest, path, streams=tuple(streams), weights=tuple(weights)), loading


def _single(node: Node, path: str) -> Stream:
  if not isinstance(node.get("source"), dict):
    raise ConfigError(f"{path}.source: is missing; give the name of a file in mmjax/data/sources")
  source = config_lib.build("mmjax.data.sources", node["source"], f"{path}.source")
  transforms = tuple(
      config_lib.build("mmjax.data.transforms", item, f"{path}.transforms.{i}")
      for i, item in enumerate(node.get("transforms", ())))
  rest = {key: value for key, value in node.items() if key not in ("source", "transforms")}
  return config_lib.call(Stream, rest, path, source=source, transforms=transforms)


def _evaluations(nodes: Node) -> tuple[Evaluation, ...]:
  result = []
  for name, node in nodes.items():
    path, node = f"evals.{name}", dict(node)
    every = node.pop("every_steps", None)
    data = make_stream(node.pop("data"), f"{path}.data")[0] if node.get("data") else None
    node.pop("data", None)
    evaluator = config_lib.build("mmjax.evals", {"name": name, **node}, path,
                                 **({"data": data} if data else {}))
    result.append(Evaluation(name, evaluator, every))
  return tuple(result)


def _check_best(checkpoint: CheckpointSettings, evaluations: tuple[Evaluation, ...]) -> None:
  """The metric that decides what is kept must be one that some evaluator gives."""
  best, names = checkpoint.keep_best, [e.name for e in evaluations]
  if best and best[0].split("/")[0] not in names:
    raise ConfigError(f"checkpoint.keep_best: {best[0]!r} is no evaluator's metric"
                      + config_lib.nearest(best[0].split("/")[0], names))


def _resolve_top(config: Node) -> Node:
  """`total_steps` from examples; from epochs it must wait for the data, so the key stays None till then."""
  top = dict(config)
  units = [u for u in ("steps", "examples", "epochs") if top.get(f"total_{u}") is not None]
  if len(units) != 1:
    raise ConfigError("total_steps: give the run's length as total_steps, total_examples or total_epochs"
                      + (f", not as {' and '.join(units)}" if units else ""))
  amount = top.pop(f"total_{units[0]}")
  for unit in ("steps", "examples", "epochs"):
    top.pop(f"total_{unit}", None)
  if units[0] == "epochs":
    stream, _ = make_stream(top["data"], "data")
    amount = amount * _records(stream)
  if units[0] != "steps":
    amount = max(1, round(amount / top["batch_size"]))
  return {**top, "total_steps": amount}


def _resolve_durations(top: Node, settings: Settings, stream) -> Node:
  fixed = {key: top[key] for key in ("data", "eval_data", "objective") if key in top}
  rest = {key: value for key, value in top.items() if key not in fixed}
  rest = config_lib.resolve_durations(rest, batch_size=settings.batch_size, epoch=_records(stream),
                                      total=settings.total_steps)
  return {**rest, **fixed}


def _records(stream) -> int:
  parts = getattr(stream, "streams", (stream,))
  return sum(len(part) for part in parts)


def _mesh(settings: Settings, devices) -> Mesh:
  mesh = config_lib.call(mesh_lib.make_mesh, settings.mesh, "mesh", devices=devices)
  try:
    rows = mesh_lib.batch_sharding(mesh, settings.rules)
  except ValueError as error:
    raise ConfigError(f"rules: {error}") from error
  parts = rows.num_devices // _copies(rows)
  if settings.batch_size % (parts * settings.micro_batches):
    raise ConfigError(
        f"batch_size: {settings.batch_size} rows cannot be cut into {settings.micro_batches} "
        f"micro-batches over {parts} devices; take a multiple of {parts * settings.micro_batches}")
  return mesh


def _copies(sharding) -> int:
  axes = sharding.spec[0] if sharding.spec else None
  axes = (axes,) if isinstance(axes, str) else axes or ()
  return sharding.num_devices // int(np.prod([sharding.mesh.shape[axis] for axis in axes], initial=1))


def _abstract_batch(stream, batch_size: int) -> Node:
  batch = {key: jax.ShapeDtypeStruct((batch_size, *spec.shape), spec.dtype)
           for key, spec in stream.spec.items()}
  return {**batch, "row": jax.ShapeDtypeStruct((batch_size, 2), jnp.uint32),
          "valid": jax.ShapeDtypeStruct((batch_size,), jnp.bool_)}


def _check_vocabulary(objective: Objective, stream) -> None:
  """A tokenizer with more ids than the model has embeddings would be clamped silently by the device."""
  room = getattr(getattr(objective, "text", None), "vocab", None)
  parts = getattr(stream, "streams", (stream,))
  for name in {t.tokenizer for part in parts for t in part.transforms if hasattr(t, "tokenizer")}:
    size = tokenizers.load(name).vocab_size
    if room is not None and size > room:
      raise ConfigError(f"objective.text.vocab: {room} is too small for the tokenizer {name!r}, which "
                        f"has {size} ids")


def _without_remat(node: Any) -> Any:
  if isinstance(node, dict):
    return {key: "none" if key == "remat" else _without_remat(value) for key, value in node.items()}
  return [_without_remat(value) for value in node] if isinstance(node, list) else node
