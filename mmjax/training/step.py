"""The pure train step: gradient, update, teachers, and the flag that stops everything.

The returned function is traced once and jitted by the loop and by anyone who wants to compile, count or
plan the very same step.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from mmjax.objectives.contract import Context, Objective, Term
from mmjax.optim import ema as ema_lib
from mmjax.training.gradients import loss_and_grad
from mmjax.training.state import EMA, TrainState

Tree = Any


def make_train_step(objective: Objective, optimizer: optax.GradientTransformation, *, seed: int,
                    micro_batches: int = 1, ema_decay: float | None = None):
  """`(state, batch) -> (state, metrics)`, pure.

  `metrics` maps a name to a Term (sum, weight): "loss", each loss term, each metric, "grad_norm",
  "update_norm", "param_norm" and "halted". If the loss or the gradient is not finite, the new state is the old one
  with `halted` set, and so are all that follow, however many steps were launched before the host saw it.
  """

  def train_step(state: TrainState, batch: Tree) -> tuple[TrainState, dict[str, Term]]:
    ctx = Context(step=state.step, state=state.state, teachers=state.teachers, seed=seed)
    grads, outcome = loss_and_grad(objective, ctx, state.params, batch, micro_batches=micro_batches)
    grad_norm = optax.tree.norm(grads)
    halted = state.halted | ~(jnp.isfinite(outcome.loss) & jnp.isfinite(grad_norm))

    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    followed = objective.teachers(params)
    decays = objective.teacher_decay(state.step)
    if ema_decay is not None:
      followed, decays = {**followed, EMA: params}, {**decays, EMA: ema_decay}
    new = TrainState(
        step=state.step + 1, params=params, opt_state=opt_state,
        state=objective.update(ctx, outcome.stats),
        teachers={name: ema_lib.update(state.teachers[name], followed[name], decays[name])
                  for name in followed},
        halted=halted)
    new = jax.tree.map(lambda old, new: jnp.where(halted, old, new), state.replace(halted=halted), new)

    scalars = {"loss": outcome.loss, "grad_norm": grad_norm, "update_norm": optax.tree.norm(updates),
               "param_norm": optax.tree.norm(params), "halted": halted}
    metrics = {name: Term(value.astype(jnp.float32), jnp.float32(1)) for name, value in scalars.items()}
    return new, {**outcome.terms, **outcome.metrics, **metrics}

  return train_step


def make_features(objective: Objective, *, seed: int, want: tuple[str, ...] = ()):
  """`(params, state, teachers, batch) -> features` with train=False: what evaluators and exporters read."""

  def features(params: Tree, state: Tree, teachers: Tree, batch: Tree) -> dict[str, jax.Array]:
    ctx = Context(step=jnp.int32(0), state=state, teachers=teachers, seed=seed, train=False, want=want)
    return objective.forward(ctx, params, batch)[0]

  return features


def make_generate(objective: Objective, *, seed: int, **how: Any):
  """`(params, state, teachers, batch) -> ` what the objective generates; see `Objective.generate`."""

  def generate(params: Tree, state: Tree, teachers: Tree, batch: Tree) -> dict[str, dict]:
    ctx = Context(step=jnp.int32(0), state=state, teachers=teachers, seed=seed, train=False)
    return objective.generate(ctx, params, batch, **how)

  return generate


def make_eval_step(objective: Objective, *, seed: int):
  """`(params, state, teachers, batch) -> {name: Term}`: held-out loss, its terms, metrics; train=False.

  `couple` is given those features of `couples` that `forward` has in evaluation.
  """

  def eval_step(params: Tree, state: Tree, teachers: Tree, batch: Tree) -> dict[str, Term]:
    ctx = Context(step=jnp.int32(0), state=state, teachers=teachers, seed=seed, train=False)
    features, _ = objective.forward(ctx, params, batch)
    terms, metrics = objective.terms(ctx, params, features, batch)
    coupled = {n: features[n] for n in objective.couples if n in features}
    more, extra = objective.couple(ctx, params, coupled, batch)
    return {**terms, **more, **metrics, **extra}

  return eval_step
