"""One training pass of a shipped config's objective, and what of its input reached the student."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmjax import config as config_lib
from mmjax.nn.patch import patchify
from mmjax.objectives.contract import Context, Objective
from mmjax.training.assemble import assemble

ROWS, SEED = 8, 3
PIXELS = ("image", "video", "global_views")  # an objective reads one of them
# Features that the student makes: what reaches these from the pixels has been seen.
STUDENT = ("predictions", "prediction", "class/student", "patch/student", "image/expanded", "made",
           "image/prediction", "depth/prediction", "semantic/prediction", "decoder/hidden")


@dataclasses.dataclass
class Seen:
  """What went into a training pass and what came out.

  Attributes:
    objective, params, state, batch: as they went in.
    features: of `forward`.
    terms: {name: mean}.
    weights: {name: weight}; a term that is missing weighs 1.
    new_state: what `update` makes of the state.
    slope: how strongly the student's features depend on each patch, [B, N]; of views [B, V, N].
  """

  objective: Objective
  params: dict
  state: dict
  batch: dict
  features: dict
  terms: dict
  weights: dict
  new_state: dict
  slope: np.ndarray


def look(name):
  """The pass of a config such as "masked/mae:smoke"; it needs no data."""
  run = assemble(config_lib.load(name, {"batch_size": str(ROWS)}), jax.devices()[:1],
                 example_data=True)
  rng, objective, shapes = np.random.default_rng(0), run.objective, run.abstract
  batch = {name: draw_input(rng, name, x) for name, x in run.abstract_batch.items()}
  params, state, teachers = jax.tree_util.tree_map_with_path(
      functools.partial(draw_parameter, rng), (shapes.params, shapes.state, shapes.teachers))
  key = next(key for key in PIXELS if key in batch)

  def forward(pixels, params, state, teachers, batch):
    ctx = Context(step=jnp.int32(0), state=state, teachers=teachers, seed=SEED)
    batch = objective.augment(ctx, {**batch, key: pixels})
    features, stats = objective.forward(ctx, params, batch)
    terms = {**objective.terms(ctx, params, features, batch)[0],
             **objective.couple(ctx, params, features, batch)[0]}
    made = jax.tree.leaves([features[name] for name in STUDENT if name in features])
    return sum((jnp.sum(jnp.sin(x)) for x in made), jnp.float32(0)), {
        "features": features, "terms": {name: term.mean for name, term in terms.items()},
        "new_state": objective.update(ctx, stats)}

  slope, found = jax.device_get(jax.jit(jax.grad(forward, has_aux=True))(
      batch[key], params, state, teachers, batch))
  return Seen(objective, params, state, batch, weights=jax.device_get(objective.weights(0)),
              slope=by_patch(slope, objective, key), **found)


def draw_input(rng, name, like):
  """A random input of the shape of `like`, every row of which is valid."""
  if name == "row":
    return np.stack([np.zeros(ROWS), np.arange(ROWS)], 1).astype(np.uint32)
  if like.dtype == bool:
    return np.ones(like.shape, bool)
  if like.dtype == np.int32:
    return rng.integers(1, 8, like.shape).astype(np.int32)
  return (rng.uniform(1, 20, like.shape) if name == "depth" else rng.uniform(-1, 1, like.shape)
          ).astype(np.float32)


def draw_parameter(rng, path, like):
  """Nothing is zero that a network multiplies by; averages of codes begin at nothing."""
  path = jax.tree_util.keystr(path)
  if "uses" in path:
    return np.zeros(like.shape, np.float32)
  return (rng.normal(size=like.shape, scale=0.2) + ("scale" in path)).astype(np.float32)


def by_patch(slope, objective, key):
  """[B, (V,) H, W, C], or of a clip, -> [B, (V,) N]: the largest of each patch."""
  if key == "global_views":
    views = [by_patch(slope[:, i], objective, "image") for i in range(slope.shape[1])]
    return np.stack(views, axis=1)
  # Where the encoder has ids for pixels, the tokenizer has the patches.
  reads = getattr(objective, "tokenizer", None) or objective.encoder
  grid = reads.grid_of(slope.shape)
  patch = tuple(side // count for side, count in zip(slope.shape[1:-1], grid))
  return np.asarray(np.abs(patchify(slope, patch)).max(axis=tuple(range(2, 3 + len(grid)))))
