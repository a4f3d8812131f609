"""Loss and gradient of an objective: at once, or in micro-batches with the same result.

The objective first augments the whole batch (`Objective.augment`). With more than one micro-batch the
step then makes up to three passes; each does only what the objective needs, since XLA drops what
nothing reads:

  1. survey   forward without gradients: the features that couple rows, the weights of all terms
  2. couple   gradient of whole-batch terms with respect to those features and the parameters
  3. rows     forward again, one micro-batch at a time: gradient of the row-wise terms, plus the
              vector-Jacobian product of pass 2's gradient
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mmjax.objectives.contract import Context, Objective, Term
from mmjax.parallel import mesh as mesh_lib

Tree = Any


@flax.struct.dataclass
class Outcome:
  """What a step knows besides its gradient: loss float32 [], and per name Terms of the whole batch."""

  loss: jax.Array
  terms: dict[str, Term]
  metrics: dict[str, Term]
  stats: dict


def loss_and_grad(objective: Objective, ctx: Context, params: Tree, batch: Tree, *,
                  micro_batches: int = 1, only: tuple[str, ...] | None = None,
                  ) -> tuple[Tree, Outcome]:
  """Gradient of the loss with respect to `params`, and the step's outcome.

  Args:
    batch: leaves `[B, ...]`.
    micro_batches: how many parts the rows are cut into; 1 computes everything at once.
    only: differentiate these terms alone (adaptive weights, gradient surgery); default all.

  Raises:
    ValueError: B is not a multiple of `micro_batches`, or the objective's forward is not row by row
      and it has not declared ghost batches.
  """
  batch = objective.augment(ctx, batch)
  weights = objective.weights(ctx.step)

  def scale(name: str) -> float | jax.Array:
    return weights.get(name, 1.0) if only is None or name in only else 0.0

  if micro_batches == 1:
    return _at_once(objective, ctx, params, batch, scale)
  if objective.forward_couples and not objective.ghost_batch:
    raise ValueError(
        f"{type(objective).__name__}: {objective.forward_couples} reads the whole batch, so "
        f"{micro_batches} micro-batches would change its result. Set micro_batches=1, or declare "
        "per-micro-batch statistics with ghost_batch=True.")
  return _accumulated(objective, ctx, params, batch, micro_batches, scale)


def _weighted(terms: dict[str, Term], scale) -> jax.Array:
  return sum((scale(name) * term.mean for name, term in terms.items()), jnp.float32(0))


def _at_once(objective, ctx, params, batch, scale):
  def loss_fn(params):
    features, stats = objective.forward(ctx, params, batch)
    terms, metrics = objective.terms(ctx, params, features, batch)
    cache = _select(features, objective.couples)
    more, extra = objective.couple(ctx, params, cache, batch)
    indices = objective.mine(ctx, jax.lax.stop_gradient(cache), batch)
    if indices is not None:
      fused, fused_metrics, fused_stats = objective.fuse(ctx, params, cache, indices, batch)
      more, extra = {**more, **fused}, {**extra, **fused_metrics}
      stats = {**stats, **fused_stats}
    terms, metrics = _disjoint(terms, more), _disjoint(metrics, extra)
    loss = _weighted(terms, scale)
    return loss, Outcome(loss, terms, metrics, stats)

  return jax.grad(loss_fn, has_aux=True)(params)


def _accumulated(objective, ctx, params, batch, count, scale):
  parts = {"batch": split_rows(batch, count)}

  def forward(params, part):
    features, stats = objective.forward(ctx, params, part["batch"])
    terms, metrics = objective.terms(ctx, params, features, part["batch"])
    return features, terms, metrics, stats

  def survey(_, part):
    features, terms, _, _ = forward(params, part)
    return None, (_select(features, objective.couples), {n: t.weight for n, t in terms.items()})

  _, (cache, row_weights) = jax.lax.scan(survey, None, parts)
  cache = jax.lax.stop_gradient(merge_rows(cache))

  # What couples rows, on the cache.
  def coupled(params, cache):
    terms, metrics = objective.couple(ctx, params, cache, batch)
    return _weighted(terms, scale), (terms, metrics)

  (grads, pull), (couple_terms, couple_metrics) = jax.grad(
      coupled, argnums=(0, 1), has_aux=True)(params, cache)

  # Pairs that were mined, a micro-batch at a time, on the cache.
  fuse_terms, fuse_metrics, fuse_stats = {}, {}, {}
  indices = objective.mine(ctx, cache, batch)
  if indices is not None:
    pairs = {**parts, "indices": split_rows(indices, count)}
    fuse = lambda at, part: objective.fuse(ctx, *at, part["indices"], part["batch"])
    (grads, pull), (fuse_terms, fuse_metrics, fuse_stats) = _sum_grads(
        fuse, (params, cache), (grads, pull), pairs, scale)

  # Each micro-batch's own terms, and its share of what couples rows.
  def rows(params, part):
    features, terms, metrics, stats = forward(params, part)
    share = sum((jnp.vdot(g.astype(jnp.float32), features[name].astype(jnp.float32)).real
                 for name, g in part["pull"].items()), jnp.float32(0))
    return terms, metrics, stats, share

  parts["pull"] = _split_pull(pull, count)
  totals = {n: jnp.sum(w) for n, w in row_weights.items()}
  grads, (terms, metrics, stats) = _sum_grads(rows, params, grads, parts, scale, totals)

  terms = _disjoint(terms, {**couple_terms, **fuse_terms})
  metrics = _disjoint(metrics, {**couple_metrics, **fuse_metrics})
  return grads, Outcome(_weighted(terms, scale), terms, metrics, {**stats, **fuse_stats})


def _sum_grads(fn, at: Tree, grads: Tree, parts: Tree, scale, totals=None):
  """Adds to `grads` the gradient at `at` of `fn`'s terms over all micro-batches.

  `fn(at, part) -> (terms, metrics, stats[, share])`; `totals` are the terms' weights over the whole
  batch, found by a pass of their own where they are not given.
  """
  if totals is None:
    weigh = lambda _, part: (None, {n: t.weight for n, t in fn(at, part)[0].items()})
    totals = jax.tree.map(jnp.sum, jax.lax.scan(weigh, None, parts)[1])

  def one(grads, part):
    def loss_fn(at):
      terms, metrics, stats, *share = fn(at, part)
      loss = sum(share, jnp.float32(0))
      for name, term in terms.items():
        loss += scale(name) * Term(term.sum, totals[name]).mean
      return loss, (terms, metrics, stats)

    more, aux = jax.grad(loss_fn, has_aux=True)(at)
    return jax.tree.map(lambda g, m: g + m.astype(g.dtype), grads, more), aux

  grads, aux = jax.lax.scan(one, grads, parts)
  return grads, jax.tree.map(lambda x: jnp.sum(x, axis=0), aux)


def split_rows(tree: Tree, count: int) -> Tree:
  """Leaves `[B, ...]` -> `[count, B / count, ...]`, part i holding rows i, i + count, i + 2 count ...

  Strided, so that a batch sharded in contiguous blocks gives every device its share of every part.
  """
  def split(x):
    if x.shape[0] % count:
      raise ValueError(f"{count} micro-batches do not divide a batch of {x.shape[0]} rows")
    x = jnp.swapaxes(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 0, 1)
    return mesh_lib.constrain(x, (None, "batch") + (None,) * (x.ndim - 2))

  return jax.tree.map(split, tree)


def merge_rows(tree: Tree) -> Tree:
  """The inverse of `split_rows`; a scalar feature `[count]` is the same in each part: its first."""
  def merge(x):
    if x.ndim == 1:
      return x[0]
    x = jnp.swapaxes(x, 0, 1)
    x = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    return mesh_lib.constrain(x, ("batch",) + (None,) * (x.ndim - 1))

  return jax.tree.map(merge, tree)


def _split_pull(pull: dict, count: int) -> dict:
  """A gradient with respect to cached features, by part; that of a scalar is shared out equally."""
  return {name: jnp.full((count,), g / count) if g.ndim == 0 else split_rows(g, count)
          for name, g in pull.items()}


def _select(features: dict, names: tuple[str, ...]) -> dict:
  missing = [name for name in names if name not in features]
  if missing:
    raise ValueError(f"forward gave no feature {missing}, which `couples` names; it gave "
                     f"{sorted(features)}")
  return {name: features[name] for name in names}


def _disjoint(a: dict, b: dict) -> dict:
  both = sorted(set(a) & set(b))
  if both:
    raise ValueError(f"two stages of the objective use the same names: {both}")
  return {**a, **b}
