"""Weights in and out, for those who use a model rather than train one.

  objective, params = mmjax.load("path")                  a workdir, or a folder of Hugging Face, OpenCLIP, big_vision
  process = mmjax.processor("path")                        what its inputs go through
  batch = process(images=[open("cat.jpg", "rb").read()], texts=["a cat"])
  features = mmjax.features(objective, params, batch)      {"image/embed": [1, D], "text/embed": [1, D], ...}
"""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp

from mmjax import config as config_lib
from mmjax.checkpoint import paths
from mmjax.checkpoint.checkpointer import CheckpointError
from mmjax.checkpoint.interop import hf, workdir
from mmjax.checkpoint.interop.pretrained import Pretrained
from mmjax.checkpoint.interop.read import read
from mmjax.data.processor import Processor
from mmjax.objectives.contract import Objective
from mmjax.training import frozen
from mmjax.training.step import make_features

FORMATS = ("hf", "mmjax")


def load(path: str, step: int | None = None) -> tuple[Objective, Any]:
  """The model at `path`: (objective, params), float32.

  Args:
    path: an mmjax workdir (averaged parameters, where the run keeps an average), a Hugging Face folder, an
      OpenCLIP folder or a big_vision file.
    step: of a workdir's checkpoint; default the newest.

  Raises:
    CheckpointError: there is nothing, it is of no known kind, or its parts do not agree.
  """
  return build(read_model(path, step))


def read_model(path: str, step: int | None = None) -> Pretrained:
  """The model at `path` before it is built: weights, and the transforms of its inputs; raises as `load`."""
  return _checked(read, path, step)


def build(model: Pretrained) -> tuple[Objective, Any]:
  """(objective, params) of a checkpoint that was read; in `params` there are also codes and frozen networks."""
  node, _ = frozen.split(model.objective)
  objective = config_lib.build("mmjax.objectives", node, "objective")
  weights = {**model.state, **model.params}  # no two have the same path
  return objective, paths.nest({name: jnp.asarray(x) for name, x in weights.items()})


def processor(path: str) -> Processor:
  """What the inputs of the model at `path` go through: (images=None, texts=None) -> batch.

  Raises: as `load`.
  """
  model = read_model(path)
  return Processor(model.image, model.text)


def features(objective: Objective, params: Any, batch: Mapping[str, Any],
             want: Sequence[str] = ()) -> dict[str, jax.Array]:
  """The objective's features of a batch, train=False.

  Args:
    batch: of `processor`, or arrays [B, ...] under the same names; `row` and `valid` may be missing.
    want: names beside those that are always there, such as ("image/tokens",); see the model's docstring.

  Returns:
    {"image/embed": float32 [B, D], "logit_scale": [], ...}: those of the modalities in the batch.

  Raises:
    ValueError: the batch is empty, or does not fit the model; `want` has an unknown name.
  """
  if isinstance(want, str):
    raise ValueError(f"want={want!r}: it is a list of names; put a single one into a list")
  if not batch:
    raise ValueError("the batch is empty; expected `image`, `text` or both, as of mmjax.processor")
  rows = len(next(iter(batch.values())))
  given = {"row": jnp.zeros((rows, 2), jnp.uint32), "valid": jnp.ones((rows,), bool), **batch}
  # What was read has its state among the parameters (see `build`), and an averaged encoder in the encoder's place.
  return _features(_Key(objective), tuple(want))(params, params, objective.teachers(params), given)


def convert(source: str, to: str, form: str = "hf", step: int | None = None, encoder: bool = False) -> str:
  """Writes the model at `source` into the new folder `to`; returns a line that says what it is there.

  Args:
    source: as in `load`.
    form: "hf", a folder that transformers opens; or "mmjax", a workdir without a run.
    encoder: only the image encoder, without its classifier or the text tower.

  Raises:
    CheckpointError: `source` cannot be read, or no model of transformers has its form.
    FileExistsError: `to` is not empty.
  """
  if form not in FORMATS:
    raise config_lib.ConfigError(f"--format={form}: unknown{config_lib.nearest(form, FORMATS)}")
  model = read_model(source, step)
  if encoder:
    model = _checked(model.encoder)
  count = sum(x.size for x in model.params.values())
  if form == "mmjax":
    _checked(workdir.write, model, epath.Path(to))
    return f"{to}: {model.objective['name']}, {count:,} parameters; mmjax.load({to!r}) opens it"
  name = _checked(hf.write, model, pathlib.Path(to))
  node = model.objective.get("model", {})
  pooled = node.get("pool") == "mean" and node.get("class_token") and not node.get("classes")
  first = 1 + node.get("registers", 0)
  note = f"; its image is the mean of last_hidden_state[:, {first}:], which it does not take itself" if pooled else ""
  return f"{to}: {name}, {count:,} parameters; transformers.{name}.from_pretrained({to!r}) opens it{note}"


def _checked(function, *args):
  """What the function returns; its errors are the checkpoint's."""
  try:
    return function(*args)
  except (ValueError, FileNotFoundError) as error:
    raise CheckpointError(str(error)) from error


class _Key:
  """An objective as a key of a cache: equal if all its fields are, some of which may be dicts."""

  def __init__(self, objective):
    self.objective, self._text = objective, repr(objective)

  def __eq__(self, other):
    return self._text == other._text

  def __hash__(self):
    return hash(self._text)


@functools.lru_cache(maxsize=16)
def _features(key, want):
  return jax.jit(make_features(key.objective, seed=0, want=want))
