"""Vector quantisation: vectors as the nearest codes of a book that learns without gradients.

van den Oord et al. 2017 (VQ-VAE, arXiv:1711.00937); the codebook follows the vectors that chose it
by exponential moving averages (Razavi et al. 2019, VQ-VAE-2, arXiv:1906.00446, sec. 2.1).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Below this average count, in vectors a step, a code keeps its place: 0 / 0 would have none.
MIN_COUNT = 1e-12


class Codebook(NamedTuple):
  """What is learned of `K` codes.

  Attributes:
    codes: float32 [K, d].
    count: float32 [K], moving average of how many vectors a step chose each code.
    sum: float32 [K, d], moving average of the sum of these vectors.
  """

  codes: jax.Array
  count: jax.Array
  sum: jax.Array


def start(rng: jax.Array, size: int, dim: int) -> Codebook:
  """`size` random codes [K, dim] that nothing has chosen yet; the first steps revive them."""
  codes = jax.random.uniform(rng, (size, dim), jnp.float32, -1.0, 1.0) / size
  return Codebook(codes, jnp.zeros(size, jnp.float32), jnp.zeros((size, dim), jnp.float32))


def unit(x: jax.Array) -> jax.Array:
  """x / |x| over the last axis, float32; finite in value and gradient where x is zero."""
  x = x.astype(jnp.float32)
  return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), -1, keepdims=True), 1e-12))


def nearest(vectors: jax.Array, codes: jax.Array) -> jax.Array:
  """The code at the smallest Euclidean distance (VQ-VAE, eq. 1); of equals the first.

  Args:
    vectors: [..., d].
    codes: [K, d].

  Returns:
    int32 [...].
  """
  vectors, codes = vectors.astype(jnp.float32), codes.astype(jnp.float32)
  products = jnp.einsum("...d,kd->...k", vectors, codes, precision="highest")
  # |v - c|^2 without |v|^2, which is the same for all codes.
  return jnp.argmin(jnp.sum(jnp.square(codes), -1) - 2 * products, axis=-1).astype(jnp.int32)


def straight_through(vectors: jax.Array, chosen: jax.Array) -> jax.Array:
  """`chosen` in value, its gradient goes to `vectors` unchanged (VQ-VAE, sec. 3.2)."""
  return vectors + jax.lax.stop_gradient(chosen - vectors)


def uses(vectors: jax.Array, ids: jax.Array, weight: jax.Array, size: int
         ) -> tuple[jax.Array, jax.Array]:
  """How often each code was chosen, and the sum of the vectors that chose it: sums over rows.

  Args:
    vectors: [..., d]; they get no gradient.
    ids: int [...], the codes they chose.
    weight: bool or float [...], 0 for what is not to count.
    size: K, of the codebook.

  Returns:
    float32 [K] and [K, d].
  """
  weight = weight.astype(jnp.float32).reshape(-1)
  vectors = jax.lax.stop_gradient(vectors).astype(jnp.float32).reshape(-1, vectors.shape[-1])
  vectors = jnp.where(weight[:, None] > 0, vectors, 0) * weight[:, None]
  ids = ids.reshape(-1)
  return (jax.ops.segment_sum(weight, ids, size), jax.ops.segment_sum(vectors, ids, size))


def moved(book: Codebook, count: jax.Array, total: jax.Array, decay: float,
          normalise: bool = False) -> Codebook:
  """The codebook after a step: N = g N + (1 - g) n, m = g m + (1 - g) sum z, e = m / N.

  VQ-VAE, app. A.1, eq. 6 to 8, and VQ-VAE-2, sec. 2.1.

  Args:
    count, total: of the whole batch, see `uses`.
    decay: g.
    normalise: codes have unit norm, e = m / |m| (ViT-VQGAN, arXiv:2110.04627, sec. 3.2).
  """
  count = decay * book.count + (1 - decay) * count
  total = decay * book.sum + (1 - decay) * total
  known = count[:, None] > MIN_COUNT
  mean = total / jnp.where(known, count[:, None], 1)
  return Codebook(jnp.where(known, unit(mean) if normalise else mean, book.codes), count, total)


def revived(book: Codebook, candidates: jax.Array, available: jax.Array, below: float) -> Codebook:
  """Codes that hardly anything chooses begin anew as vectors of the batch.

  The random restarts of Jukebox (Dhariwal et al. 2020, arXiv:2005.00341, sec. 3.1). The first dead
  code takes the first candidate, and so on; where candidates run out, codes wait.

  Args:
    candidates: float32 [S, d], encoder outputs.
    available: number [], how many of them are there, from the first.
    below: a code is dead below this share of the mean count of all codes.
  """
  mean = jnp.mean(book.count)
  dead = book.count <= below * mean
  place = jnp.cumsum(dead) - 1
  taken = dead & (place < jnp.minimum(available, len(candidates)))
  fresh = candidates[jnp.clip(place, 0, len(candidates) - 1)]
  codes = jnp.where(taken[:, None], fresh, book.codes)
  count = jnp.where(taken, mean, book.count)  # long enough to show whether it is of use
  return Codebook(codes, count, jnp.where(taken[:, None], fresh * mean, book.sum))


def perplexity(count: jax.Array) -> jax.Array:
  """exp of the entropy of the codes' use, float32 []: how many codes are in use, from 1 to K.

  Args:
    count: [K], how often each was chosen; of nothing the perplexity is 1.
  """
  share = count / jnp.maximum(jnp.sum(count), 1e-12)
  return jnp.exp(-jnp.sum(jnp.where(share > 0, share * jnp.log(jnp.where(share > 0, share, 1)), 0)))
