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
from mmjax.objectives.contract import Context
from mmjax.objectives.fourm import FourM
from mmjax.objectives.mage import Mage
from mmjax.objectives.masked import Masked
from mmjax.objectives.multimae import MultiMAE
from mmjax.objectives.tokenizer import Tokenizer
from mmjax.training import frozen
from mmjax.training.assemble import assemble

ROWS = 512  # of the held-out data


def best_constants(config: dict) -> dict[str, float]:
  """{loss term: its value} of the best constant; without terms that have none, such as those of two views.

  The constant is one vector for all tokens: the mean of the targets for l2, their median for l1 and
  smooth l1, the mean direction for the cosine. Of ids it is their frequencies, whose cost is their
  entropy.
  """
  run = assemble({**config, "evals": {}})  # whose data need not be there
  objective = run.objective
  if not isinstance(objective, (Masked, Tokenizer, Mage, MultiMAE, FourM)):
    return {}
  networks, _ = frozen.initial(run.frozen, run.abstract.state)
  state, targets, rows = run.create_state(None, networks), {}, 0
  with loader.eval_batches(run.eval_stream, ROWS // 8, run.batch_sharding) as batches:
    for _, batch in batches:
      good = np.asarray(batch["valid"])
      for term, (loss, values, there) in _targets(objective, state, batch).items():
        there = np.asarray(there) if there is not None else np.ones(len(good), bool)
        kept = np.asarray(values)[there & good.reshape(-1, *[1] * (there.ndim - 1))]
        targets.setdefault(term, (loss, []))[1].append(kept)
      rows += int(good.sum())
      if rows >= ROWS:
        break
  beta = getattr(objective, "beta", 1.0)
  return {term: constant_cost(loss, np.concatenate(parts), beta) for term, (loss, parts) in targets.items()}


def _targets(objective, state, batch):
  """{term: (loss, targets [B, ..., d] or ids int [B, ...], which of them count or None)}."""
  if isinstance(objective, Masked):
    grid = objective.encoder.grid_of(batch[objective.input].shape)
    return {"prediction": (objective.loss, objective.target(state.state["target"], batch, grid)[0], None)}
  if isinstance(objective, Mage):
    return {"cross_entropy": ("cross_entropy", objective._ids(state.state, batch), None)}
  if isinstance(objective, MultiMAE):
    patches = objective._patches(batch)
    known = (patches["semantic"] >= 0) & (patches["semantic"] < objective.classes)
    return {"image": ("l2", patches["image"], None), "depth": ("l1", patches["depth"], None),
            "semantic": ("cross_entropy", patches["semantic"], known)}
  if isinstance(objective, FourM):
    ctx = Context(step=jnp.int32(0), state=state.state, teachers={}, seed=0, train=False)
    found = jax.jit(lambda batch: objective._masked_pass(ctx, state.params, batch))(batch)
    return {name: ("cross_entropy", found["ids"], (found["modality"] == number) & found["there"])
            for number, name in enumerate(objective.decoder(batch).targets)}
  name = next(iter(objective.losses))
  if objective.target is None:
    return {name: (name, batch["image"], None)}
  grid = objective.tokenizer.grid_of(batch["image"].shape)
  return {name: (name, objective.target(state.state["target"], batch, grid)[0], None)}


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
