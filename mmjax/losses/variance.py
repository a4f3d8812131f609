"""Variance and covariance of a batch, as losses (VICReg, Bardes et al. 2022, arXiv:2105.04906).

Both are of the whole batch, and come from sums over its rows: devices that share a batch exchange
the mean [D] and the covariance [D, D], never rows.
"""

import jax
import jax.numpy as jnp

EPSILON = 1e-4  # inside the root of the variance, sec. 4.1
TARGET = 1.0    # gamma, sec. 4.1: the deviation that is enough


def variance(features: jax.Array, weight: jax.Array | None = None) -> jax.Array:
  """Mean over dimensions of max(0, 1 - sqrt(variance + 1e-4)) (eq. 1 and 2).

  Args:
    features: [N, D].
    weight: [N] bool or float, 0 for rows to leave out; None takes all.

  Returns:
    float32 [].
  """
  centred, weight, count = _centred(features, weight)
  variances = jnp.sum(jnp.square(centred) * weight[:, None], axis=0) / jnp.maximum(count - 1, 1)
  return jnp.mean(jax.nn.relu(TARGET - jnp.sqrt(variances + EPSILON)))


def covariance(features: jax.Array, weight: jax.Array | None = None) -> jax.Array:
  """Sum of the squares of the covariance's entries off its diagonal, over D (eq. 3 and 4).

  Args:
    features: [N, D].
    weight: [N] bool or float, 0 for rows to leave out; None takes all.

  Returns:
    float32 [].
  """
  centred, weight, count = _centred(features, weight)
  matrix = jnp.einsum("nd,ne->de", centred * weight[:, None], centred,
                      precision=jax.lax.Precision.HIGHEST) / jnp.maximum(count - 1, 1)
  off_diagonal = jnp.where(jnp.eye(len(matrix), dtype=bool), 0, matrix)
  return jnp.sum(jnp.square(off_diagonal)) / len(matrix)


def _centred(features, weight):
  """[N, D] less its mean, float32, with the weight [N] and its sum."""
  weight = jnp.ones(len(features)) if weight is None else weight.astype(jnp.float32)
  features = jnp.where(weight[:, None] > 0, features.astype(jnp.float32), 0)
  count = jnp.sum(weight)
  mean = jnp.sum(features * weight[:, None], axis=0) / jnp.maximum(count, 1)
  return features - mean, weight, count
