"""Signs of collapse: features and prototypes of a model that says the same of everything.

All are sums over rows before anything else is done with them, so that a batch spread over devices
needs no more than its moments [D, D] in one place.
"""

import jax
import jax.numpy as jnp

# Eigenvalues of a float32 moment are exact to about this share of the largest; the rest is noise.
RESOLUTION = 1e-6
SMALLEST_NORM = 1e-12


def effective_rank(features: jax.Array, weight: jax.Array | None = None) -> jax.Array:
  """RankMe (Garrido et al. 2023, arXiv:2210.02885, eq. 1): exp of the entropy of singular values.

  With the singular values s of the rows, and p = s / sum(s): exp(-sum p ln p). Between 1 (all rows
  are multiples of one) and min(rows, D). From the second moment [D, D], whose eigenvalues are s^2;
  an s below a thousandth of the largest counts as zero, since float32 cannot tell it from zero.

  Args:
    features: [..., D].
    weight: [...] bool or float, 0 for rows to leave out; None takes all.

  Returns:
    float32 []; 1 where no row has weight.
  """
  rows, weight = _rows(features, weight)
  moment = jnp.einsum("nd,ne->de", rows * weight[:, None], rows,
                      precision=jax.lax.Precision.HIGHEST)
  eigenvalues = _eigenvalues(moment)
  singular = jnp.sqrt(jnp.where(eigenvalues > RESOLUTION * jnp.max(eigenvalues), eigenvalues, 0))
  return jnp.exp(entropy(singular / jnp.maximum(jnp.sum(singular), SMALLEST_NORM)))


def feature_std(features: jax.Array, weight: jax.Array | None = None) -> jax.Array:
  """Deviation of each dimension of unit-norm rows, averaged over dimensions, times sqrt(D).

  1 where directions are spread evenly, 0 where all rows point one way (Chen & He 2021,
  arXiv:2011.10566, sec. 4.1, who leave out the factor).

  Args:
    features: [..., D].
    weight: [...] bool or float, 0 for rows to leave out; None takes all.

  Returns:
    float32 []; 0 where no row has weight.
  """
  rows, weight = _rows(features, weight)
  rows = rows / jnp.maximum(jnp.linalg.norm(rows, axis=1, keepdims=True), SMALLEST_NORM)
  variance = _mean(jnp.square(rows - _mean(rows, weight)), weight)
  return jnp.mean(jnp.sqrt(variance)) * rows.shape[1] ** 0.5


def prototype_entropy(probabilities: jax.Array, weight: jax.Array | None = None) -> jax.Array:
  """Entropy of the mean assignment to K prototypes, as a share of its largest value ln K.

  1 where prototypes are used equally often, 0 where all rows go to one (the regulariser of MSN,
  Assran et al. 2022, arXiv:2204.07141, sec. 3, maximises it).

  Args:
    probabilities: [..., K], each sums to 1.
    weight: [...] bool or float, 0 for rows to leave out; None takes all.

  Returns:
    float32 []; 0 where no row has weight.
  """
  rows, weight = _rows(probabilities, weight)
  return entropy(_mean(rows, weight)) / jnp.log(jnp.float32(max(rows.shape[1], 2)))


def entropy(p: jax.Array) -> jax.Array:
  """-sum p ln p over the last axis, in nats; 0 ln 0 is 0."""
  return -jnp.sum(jnp.where(p > 0, p * jnp.log(jnp.where(p > 0, p, 1)), 0), axis=-1)


def _eigenvalues(moment):
  """Eigenvalues [D] of a symmetric [D, D], in any order.

  On a TPU by Jacobi's method: its compiler takes minutes for the default one from D = 257 on.
  """
  def jacobi(x):
    method = jax.lax.linalg.EighImplementation.JACOBI
    return jax.lax.linalg.eigh(x, implementation=method, sort_eigenvalues=False)[1]

  return jax.lax.platform_dependent(moment, tpu=jacobi, default=jnp.linalg.eigvalsh)


def _rows(features, weight):
  """[..., D] as float32 [N, D], zeros where the weight [N] is zero; no gradient goes through."""
  weight = jnp.ones(features.shape[:-1]) if weight is None else weight
  weight = jnp.broadcast_to(weight, features.shape[:-1]).astype(jnp.float32).reshape(-1)
  rows = jax.lax.stop_gradient(features).astype(jnp.float32).reshape(-1, features.shape[-1])
  return jnp.where(weight[:, None] > 0, rows, 0), jax.lax.stop_gradient(weight)


def _mean(rows, weight):
  """[N, D] -> [D]."""
  return jnp.sum(rows * weight[:, None], axis=0) / jnp.maximum(jnp.sum(weight), SMALLEST_NORM)
