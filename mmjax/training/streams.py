"""From a config's `data` to streams of records, and to the shapes of the batches they make."""

import dataclasses
import logging
import sys
from typing import Any

import jax
import jax.numpy as jnp

from mmjax import config as config_lib
from mmjax.config import ConfigError
from mmjax.data import tokenizers
from mmjax.data.mixture import Mixture, share, shares_by_size
from mmjax.data.part import cut
from mmjax.data.sources import synthetic
from mmjax.data.stream import DataError, Stream
from mmjax.data.text_transforms import Tokenise

Node = dict[str, Any]
SOURCES = "mmjax.data.sources"
log = logging.getLogger("mmjax")


@dataclasses.dataclass(frozen=True)
class Loading:
  """How a process reads its rows: worker processes (0: none), threads (None: see `train_batches`), batches
  in advance."""

  workers: int = 0
  read_threads: int | None = None
  prefetch: int = 2

  def __post_init__(self):
    config_lib.at_least(0, self, "workers", *(() if self.read_threads is None else ("read_threads",)))
    config_lib.at_least(1, self, "prefetch")


def make_stream(node: Node, path: str, example_data: bool = False
                ) -> tuple[Stream | Mixture, Loading]:
  """A stream, or a mixture of streams, from its node, and how it is to be read.

  {"source": {"name": a file in `mmjax/data/sources/`, ..., "part": see `mmjax.data.part.cut`},
  "transforms": [{"name": a class in `mmjax/data/transforms.py`, ...}], "shuffle": bool, "seed": int,
  "max_bad_fraction": float}, or
  {"mixture": {name: the same, and the keys of `PartOfMixture`}, "temperature": see `shares_by_size`}.

  Args:
    node: of the config.
    path: where it stands there, for errors.
    example_data: nothing is built and nothing need be there, see `example_source`.
  """
  node = config_lib.check(node, dict, path)
  own = {f.name for f in dataclasses.fields(Loading)}
  loading = config_lib.fields(Loading, {k: v for k, v in node.items() if k in own}, path)
  rest = {key: value for key, value in node.items() if key not in own}
  if "mixture" not in rest:
    return _single(rest, path, own | {"mixture"}, example_data), loading
  parts = config_lib.check(rest.pop("mixture"), dict, f"{path}.mixture")
  temperature = rest.pop("temperature", None)
  streams, settings = [], []
  for index, (name, part) in enumerate(sorted(parts.items())):
    where = f"{path}.mixture.{name}"
    part = {"seed": index, **config_lib.check(part, dict, where)}
    if "weight" not in part and temperature is None:
      raise ConfigError(f"{where}.weight: is missing; without a {path}.temperature each part needs one")
    own = {key: part.pop(key) for key in ("weight", "cap", "epochs") if key in part}
    settings.append(config_lib.fields(PartOfMixture, own, where))
    streams.append(_single(part, where, {"weight", "cap", "epochs"}, example_data))
  mixture = config_lib.call(Mixture, rest, path, streams=tuple(streams),
                            weights=_weights(streams, settings, temperature, path),
                            epochs=tuple(part.epochs for part in settings), where=path)
  return mixture, loading


@dataclasses.dataclass(frozen=True)
class PartOfMixture:
  """What stands beside a stream in a mixture.

  Attributes:
    weight: of its share; with a temperature a factor on its records.
    cap: with a temperature: the records that count for its share at most.
    epochs: how often it is read at most.
  """

  weight: float = 1.0
  cap: int | None = None
  epochs: float | None = None


def _weights(streams, settings, temperature, path):
  weights = tuple(part.weight for part in settings)
  if temperature is None:
    for part in settings:
      if part.cap is not None:
        raise ConfigError(f"{path}.mixture: a cap counts with a temperature only; set {path}.temperature=1")
    return weights
  temperature = config_lib.check(temperature, float, f"{path}.temperature")
  try:
    return shares_by_size([len(stream) for stream in streams], weights, [part.cap for part in settings], temperature)
  except ValueError as error:
    raise ConfigError(f"{path}: {error}") from error


def finite_stream(node: Node, path: str, example_data: bool = False) -> Stream:
  """As `make_stream`, for who reads every record once."""
  stream, _ = make_stream(node, path, example_data)
  if isinstance(stream, Mixture):
    raise ConfigError(f"{path}.mixture: has no end; evaluate its streams one by one")
  return stream


def with_limits(node: Node, data: Node, path: str) -> Node:
  """An evaluator's `node` with the limits on bad records of the training `data`, where it has none of its own."""
  limits = {key: data[key] for key in ("max_bad_fraction", "max_bad") if key in data}
  return {**limits, **config_lib.check(node, dict, path)}


def _single(node: Node, path: str, around: set[str], example_data: bool) -> Stream:
  """One stream; `around` are the keys that may stand beside its own, for the error message."""
  own = {f.name for f in dataclasses.fields(Stream)} - {"where"}
  config_lib.check_keys(node, own | around, path)
  if not isinstance(node.get("source"), dict):
    raise ConfigError(f"{path}.source.name: is missing; it says which of {SOURCES} to use")
  make = example_source if example_data else lambda *at: config_lib.build(SOURCES, *at)
  place = dict(node["source"])
  part = place.pop("part", None)
  source = make(place, f"{path}.source")
  if part is not None:
    source = config_lib.call(cut, {"text": part}, f"{path}.source", source=source)
  items = config_lib.check(node.get("transforms", ()), tuple, f"{path}.transforms")
  transforms = tuple(
      config_lib.build("mmjax.data.transforms", item, f"{path}.transforms.{i}")
      for i, item in enumerate(items))
  rest = {key: value for key, value in node.items() if key not in ("source", "transforms")}
  return config_lib.call(Stream, rest, path, source=source, transforms=transforms, where=path)


def example_source(node: Node, path: str) -> Any:
  """A source whose records have the form of those that `node` describes, for a run that reads none.

  A module that binds `example` beside `build` gives it. The source of any other is opened, which
  reads little; if it is not within reach from here, `synthetic` stands in for it, with a warning:
  its usual keys, and those of the `keys` in `node` that it knows.
  """
  if "name" not in node:
    raise ConfigError(f"{path}.name: is missing; it says which of {SOURCES} to use")
  build = config_lib.find(SOURCES, node["name"], path)
  example = getattr(sys.modules[build.__module__], "example", None)
  if example is not None:
    return config_lib.call(example, {k: v for k, v in node.items() if k != "name"}, path, ("name",))
  config_lib.arguments([build], {k: v for k, v in node.items() if k != "name"}, path, (), ("name",))
  try:
    return config_lib.build(SOURCES, node, path)
  except (ConfigError, DataError, OSError) as error:
    log.warning("%s: out of reach here (%s); in its place: pictures of %d pixels with a caption and "
                "the label 0", path, error, synthetic.SIZE)
    asked = [key for key in node.get("keys") or () if key in synthetic.ALL_KEYS]
    return synthetic.build(keys=tuple(dict.fromkeys((*synthetic.KEYS, *asked))))


def count_records(stream: Stream | Mixture) -> int:
  """Records of an epoch: those of all parts."""
  parts = getattr(stream, "streams", (stream,))
  return sum(len(part) for part in parts)


def shares(stream: Stream | Mixture, rows: int) -> list:
  """What a run of so many rows reads of each source: `mmjax.data.mixture.Share`s."""
  return stream.shares(rows) if isinstance(stream, Mixture) else [share(stream, rows)]


def check_end(stream: Stream | Mixture, rows: int, steps: int) -> None:
  """Raises ConfigError if a mixture ends before a run of so many rows does."""
  most = stream.rows if isinstance(stream, Mixture) else None
  if most is not None and rows > most:
    raise ConfigError(f"total_steps: {steps:,} steps read {rows:,} rows, but the mixture has {most:,}: all of "
                      "its parts have epochs; take fewer steps, more epochs, or leave one part without")


def is_stand_in(stream: Stream | Mixture, node: Node) -> bool:
  """Whether `synthetic` stands in a part of `stream` for another source that `node` names."""
  nodes = [node, *config_lib.plain(node).get("mixture", {}).values()]
  asked = any(part.get("source", {}).get("name") == "synthetic" for part in nodes)
  parts = getattr(stream, "streams", (stream,))
  return not asked and any(isinstance(part.source, synthetic.Synthetic) for part in parts)


def abstract_batch(stream: Stream | Mixture, batch_size: int) -> Node:
  """Shapes and dtypes of the batches that the loader makes of a stream."""
  try:
    spec = stream.spec
  except ValueError as error:  # the parts of a mixture differ
    raise ConfigError(f"data: {error}") from error
  batch = {key: jax.ShapeDtypeStruct((batch_size, *one.shape), one.dtype)
           for key, one in spec.items()}
  return {**batch, "row": jax.ShapeDtypeStruct((batch_size, 2), jnp.uint32),
          "valid": jax.ShapeDtypeStruct((batch_size,), jnp.bool_)}


def tokenise(stream: Stream | Mixture) -> list[Tokenise]:
  """The transforms by which texts of a stream, or of its parts, become ids."""
  parts = getattr(stream, "streams", (stream,))
  return [step for part in parts for step in part.transforms if isinstance(step, Tokenise)]


def check_vocabulary(objective: Any, stream: Stream | Mixture) -> None:
  """A tokenizer with more ids than the model has embeddings would be clamped silently."""
  rooms = getattr(objective, "vocabularies", {})  # {path in the objective's config: ids}
  if hasattr(getattr(objective, "text", None), "vocab"):
    rooms = {"text.vocab": objective.text.vocab}
  parts = getattr(stream, "streams", (stream,))
  for name in {t.tokenizer for part in parts for t in part.transforms if hasattr(t, "tokenizer")}:
    size = tokenizers.load(name).vocab_size
    for path, room in rooms.items():
      if size > room:
        raise ConfigError(f"objective.{path}: {room} is too small for the tokenizer {name!r}, "
                          f"which has {size} ids")
