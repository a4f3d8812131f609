"""The loss that the best constant prediction has on a run's held-out data.

What a model that ignores its input can reach, for losses whose least value without input depends on
the data: regressions of pixels and of a teacher's features, and ids of a tokenizer.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.data import loader
from mmjax.losses import prediction
from mmjax.objectives.masked import Masked
from mmjax.objectives.tokenizer import Tokenizer
from mmjax.training import frozen
from mmjax.training.assemble import assemble

ROWS = 512  # of the held-out data


def best_constant(config: dict) -> tuple[str, float] | None:
  """(term, its value) of the best constant; None where the objective has no such term.

  The constant is one vector for all tokens: the mean of the targets for l2, their median for l1 and
  smooth l1, the mean direction for the cosine. Of ids it is their frequencies, whose cost is their
  entropy.
  """
  run = assemble({**config, "evals": {}})  # whose data need not be there
  objective = run.objective
  if not isinstance(objective, (Masked, Tokenizer)):
    return None
  networks, _ = frozen.initial(run.frozen, run.abstract.state)
  state = run.create_state(None, networks).state
  rows = []
  with loader.eval_batches(run.eval_stream, ROWS // 8, run.batch_sharding) as batches:
    for _, batch in batches:
      targets = _targets(objective, state, batch)
      rows.append(np.asarray(targets)[np.asarray(batch["valid"])])
      if sum(map(len, rows)) >= ROWS:
        break
  targets = np.concatenate(rows)
  if isinstance(objective, Tokenizer):
    name = next(iter(objective.losses))
    return name, constant_cost(name, targets)
  return "prediction", constant_cost(objective.loss, targets, beta=objective.beta)


def _targets(objective, state, batch):
  """[B, ..., d], or ids int [B, N]."""
  if isinstance(objective, Masked):
    grid = objective.encoder.grid_of(batch[objective.input].shape)
    return objective.target(state["target"], batch, grid)[0]
  if objective.target is None:
    return batch["image"]
  grid = objective.tokenizer.grid_of(batch["image"].shape)
  return objective.target(state["target"], batch, grid)[0]


def constant_cost(loss: str, targets: np.ndarray, beta: float = 1.0) -> float:
  """The mean loss of the best constant.

  Args:
    loss: "l1", "l2", "smooth_l1", "cosine" or "cross_entropy".
    targets: [..., d]; ids, of any shape, for cross_entropy.
    beta: of smooth_l1.
  """
  if loss == "cross_entropy":
    share = np.unique(targets, return_counts=True)[1] / targets.size
    return float(-np.sum(share * np.log(share)))
  flat = np.asarray(targets, np.float32).reshape(-1, targets.shape[-1])
  if loss == "cosine":
    constant = np.mean(flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-8), 0)
  else:
    constant = np.mean(flat, 0) if loss == "l2" else np.median(flat, 0)
  cost = {"l1": prediction.l1, "l2": prediction.l2, "cosine": prediction.cosine,
          "smooth_l1": functools.partial(prediction.smooth_l1, beta=beta)}[loss]
  return float(jnp.mean(jax.jit(cost)(jnp.broadcast_to(constant, flat.shape), flat)))
