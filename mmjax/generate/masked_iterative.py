"""Iterative decoding of masked ids (MaskGIT, Chang et al. 2022, arXiv:2202.04200, sec. 3.2).

All ids are predicted at once, the surest are kept and the rest masked again, fewer at every step.
"""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.generate.logits import sample


def cosine_schedule(steps: int) -> np.ndarray:
  """The share of the ids that is masked after step i = 1, 2, ...: cos(pi / 2 * i / steps).

  Float64 [steps]; the last is 0 (MaskGIT, sec. 3.3).

  Raises:
    ValueError: there is no step.
  """
  if steps < 1:
    raise ValueError(f"steps: at least 1, not {steps}")
  share = np.cos(np.pi / 2 * np.arange(1, steps + 1) / steps)
  share[-1] = 0.0  # and not 6e-17
  return share


def decode(predict, ids: jax.Array, keys: jax.Array, *, mask_id: int, steps: int,
           temperature: float, choice_temperature: float) -> jax.Array:
  """Fills in what is masked; what is given stays.

  Args:
    predict: int32 [B, N] -> float32 [B, N, K], logits of every id.
    ids: int32 [B, N]; `mask_id` where an id is wanted.
    keys: one PRNG key a row, [B].
    mask_id: the id of a masked token, not below K.
    steps: of the schedule.
    temperature: of the sampled ids.
    choice_temperature: of the Gumbel noise on the log-probability by which ids are kept; falls
      linearly to 0.

  Returns:
    int32 [B, N], without `mask_id`.
  """
  wanted = jnp.sum(ids == mask_id, axis=1)
  shares = jnp.asarray(cosine_schedule(steps), jnp.float32)

  def step(ids, place):
    number, share = place
    for_ids, for_choice = jnp.moveaxis(
        jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(keys), 1, 0)
    masked = ids == mask_id
    drawn, probability = sample(for_ids, predict(ids), temperature)
    noise = jax.vmap(lambda key: jax.random.gumbel(key, ids.shape[1:]))(for_choice)
    noise = noise * choice_temperature * (1 - (number + 1) / steps)
    confidence = jnp.where(masked, jnp.log(probability) + noise, jnp.inf)
    left = masked_after(share, wanted, jnp.sum(masked, axis=1))
    again = jnp.argsort(jnp.argsort(confidence, axis=1), axis=1) < left[:, None]
    return jnp.where(masked, jnp.where(again, mask_id, drawn), ids), None

  return jax.lax.scan(step, ids.astype(jnp.int32), (jnp.arange(steps), shares))[0]


def masked_after(share: jax.Array, wanted: jax.Array, masked: jax.Array) -> jax.Array:
  """How many ids a step masks again: floor(share * wanted), but fewer than before and not none.

  Args:
    share: float32 [], of `cosine_schedule`; 0 at the last step, which decodes all that is left.
    wanted: int32 [B], how many were masked at the beginning.
    masked: int32 [B], how many still are. A single one waits for the last step.
  """
  left = jnp.clip(jnp.floor(share * wanted).astype(jnp.int32), 1, jnp.maximum(masked - 1, 1))
  return jnp.where(share > 0, jnp.minimum(left, masked), 0)


def pictures(objective, params, state, keys: jax.Array, grid: tuple[int, int], **how) -> jax.Array:
  """Pictures out of nothing: float32 [B, H, W, C].

  Args:
    objective: a `Mage`, or what else has `logits(params, ids, grid)`, `picture(state, ids, grid)` and
      a `tokenizer`.
    params, state: of a run of it.
    keys: one PRNG key a picture, [B].
    grid: (rows, columns) of ids.
    how: `steps`, `temperature` and `choice_temperature` of `decode`.

  Raises:
    ValueError: the tokenizer makes no pictures.
  """
  mask_id = objective.tokenizer.codes
  ids = jnp.full((len(keys), grid[0] * grid[1]), mask_id, jnp.int32)
  ids = decode(lambda ids: objective.logits(params, ids, grid), ids, keys, mask_id=mask_id, **how)
  return objective.picture(state, ids, grid)
