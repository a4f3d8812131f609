"""From logits to sampled ids: guidance, filters, temperature."""

import jax
import jax.numpy as jnp


def guide(conditional, unconditional, scale):
  """Classifier-free guidance (Ho and Salimans 2022, arXiv:2207.12598, eq. 6 with w = scale - 1).

  Args:
    conditional, unconditional: [..., V].
    scale: 1 gives the conditional logits.
  """
  return unconditional + (conditional - unconditional) * scale


def keep_top(logits, top_k=None, top_p=None):
  """Puts all but the likeliest ids to -inf; of logits before they are divided by a temperature.

  Args:
    logits: [..., V].
    top_k: how many ids are kept, and all that equal the last of them; as a float, which share of V.
    top_p: the fewest likeliest ids whose probability exceeds it are kept (Holtzman et al. 2020,
      arXiv:1904.09751); after `top_k`.
  """
  size = logits.shape[-1]
  if top_k:
    count = min(int(top_k * size) if isinstance(top_k, float) else top_k, size)
    logits = jnp.where(logits < jax.lax.top_k(logits, count)[0][..., -1:], -jnp.inf, logits)
  if top_p:
    order = jnp.argsort(-logits, axis=-1, stable=True)
    probability = jax.nn.softmax(jnp.take_along_axis(logits, order, axis=-1), axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    place = jnp.argsort(order, axis=-1)
    logits = jnp.where(jnp.take_along_axis(before, place, axis=-1) > top_p, -jnp.inf, logits)
  return logits


def sample(keys, logits, temperature, top_k=None, top_p=None):
  """Draws an id for each position.

  Args:
    keys: one PRNG key a row, [B].
    logits: float32 [B, N, V].
    temperature: float or float32 []; near 0 the likeliest id is drawn.
    top_k, top_p: as in `keep_top`.

  Returns:
    ids int32 [B, N], and the probability of each at that temperature, float32 [B, N].
  """
  logits = jax.nn.log_softmax(keep_top(logits, top_k, top_p) / temperature, axis=-1)
  ids = jax.vmap(jax.random.categorical)(keys, logits)
  own = jnp.take_along_axis(logits, ids[..., None], axis=-1)[..., 0]
  return ids.astype(jnp.int32), jnp.exp(own)
