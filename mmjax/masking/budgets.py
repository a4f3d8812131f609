"""How many tokens of each modality a row shows and how many it has to predict (4M, MultiMAE).

The total is fixed, so that shapes are static; how it falls to the modalities is drawn for each row
from a Dirichlet distribution (Mizrahi et al. 2023, arXiv:2312.06647; Bachmann et al. 2022,
arXiv:2204.01678). All functions are of one row; `jax.vmap` makes them of a batch.
"""

import jax
import jax.numpy as jnp

LEAST_ALPHA = 1e-9  # stands for a concentration of zero, as in 4M's code


def split(share, more, total, most):
  """Divides `total` tokens in the proportions `share`, as 4M's code does.

  Each modality gets floor(share * total). Of the tokens left over one at a time goes to the largest
  of a further draw, so that modalities of a small concentration do not get them by rounding. What
  is above `most` is cut off and lost: see `fill`.

  Args:
    share: float32 [M], non-negative, of sum 1.
    more: float32 [E, M], further draws like `share`; of these as many are used as tokens are left
      over, which are at most M.
    total: int, or int32 [].
    most: int32 [M], tokens that there are of each.

  Returns:
    int32 [M].
  """
  whole = jnp.floor(share * total).astype(jnp.int32)
  left = total - jnp.sum(whole)
  chosen = jax.nn.one_hot(jnp.argmax(more, axis=-1), len(share), dtype=jnp.int32)
  used = jnp.arange(len(more)) < left
  return jnp.minimum(whole + jnp.sum(chosen * used[:, None], axis=0), most)


def fill(counts, share, most, total):
  """`counts` int32 [M] raised to the sum `total`, as far as `most` allows: largest share first."""
  order = jnp.argsort(-share, stable=True)
  room = (most - counts)[order]
  before = jnp.cumsum(room) - room
  added = jnp.clip(total - jnp.sum(counts) - before, 0, room)
  return counts.at[order].add(added)


def draw(key, alpha, total, most):
  """Draws a budget.

  Args:
    key: one PRNG key.
    alpha: float32 [M], concentrations; a modality of 0 gets nothing.
    total: number of tokens, an int.
    most: int32 [M], tokens that there are of each modality.

  Returns:
    counts: int32 [M], at most `most`, whose sum is `total` (or all there are, if these are fewer).
    share: float32 [M], the proportions that were drawn, for `fill`.
  """
  most = jnp.where(alpha > 0, most, 0)
  drawn = jax.random.dirichlet(key, jnp.maximum(alpha, LEAST_ALPHA), (1 + len(alpha),))
  share, more = drawn[0], drawn[1:]
  return fill(split(share, more, total, most), share, most, total), share


def check(key, total, available):
  """Raises ValueError, naming the config's `key`, if `total` tokens are not to be had."""
  if not 0 < total <= available:
    raise ValueError(f"{key}={total}: must be at least 1 and at most {available}, the tokens of "
                     "the modalities that take part")
