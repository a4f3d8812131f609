"""Losses of self-distillation: DINO, iBOT, DINOv2 and MSN. All float32."""

import math

import jax
from jax import lax
import jax.numpy as jnp

from mmjax.parallel import mesh as mesh_lib

SMALLEST_DISTANCE = 1e-8
BLOCK = 4096  # rows that KoLeo compares with at once


def cross_entropy(target_logits, logits):
  """-sum_k q_k log p_k with q, p = softmax of the two (DINO, arXiv:2104.14294, eq. 2).

  No gradient goes to the target.

  Args:
    target_logits: [..., K], the teacher's, with centre and temperature applied.
    logits: [..., K], the student's, divided by its temperature.

  Returns:
    float32 [...].
  """
  target = lax.stop_gradient(jax.nn.softmax(target_logits.astype(jnp.float32)))
  return -jnp.sum(target * jax.nn.log_softmax(logits.astype(jnp.float32)), axis=-1)


def unused(usage):
  """ln K - H(p): what the mean prediction p lacks of the largest entropy.

  MSN maximises H (arXiv:2204.07141, eq. 2), so it minimises this; 0 where all prototypes are used
  equally often.

  Args:
    usage: [K], sums of probabilities over rows; need not sum to 1.

  Returns:
    float32 []; 0 of no rows.
  """
  total = jnp.sum(usage)
  p = usage.astype(jnp.float32) / jnp.where(total > 0, total, 1)
  log_p = jnp.log(jnp.where(p > 0, p, 1))
  return jnp.where(total > 0, math.log(len(usage)) + jnp.sum(p * log_p), 0)


def koleo(x, valid=None, *, block=BLOCK):
  """-log of the distance to the nearest other row.

  The differential-entropy estimator of Kozachenko and Leonenko (Sablayrolles et al. 2019,
  arXiv:1806.03198, eq. 2); with it DINOv2 spreads a batch (arXiv:2304.07193, sec. 4). Rows are
  compared in blocks, and every device compares its own: [B / devices, block] cosines are held at
  once, and each device holds all rows [B, D].

  Args:
    x: [B, D], of unit norm.
    valid: bool [B]; rows that are not are nobody's neighbour. None means all.
    block: rows compared with at once.

  Returns:
    float32 [B]; 0 for rows that are not valid and where there is no other.
  """
  x = x.astype(jnp.float32)
  valid = jnp.ones(len(x), bool) if valid is None else valid
  nearest, found = _nearest(lax.stop_gradient(x), valid, min(block, len(x)))
  # Sqrt has no derivative at zero, where two rows are the same.
  square = jnp.sum(jnp.square(x - x[nearest]), axis=-1)
  distance = jnp.sqrt(jnp.maximum(square, SMALLEST_DISTANCE ** 2))
  return jnp.where(valid & found, -jnp.log(distance), 0)


def _nearest(x, valid, block):
  """For each row, which other valid one has the largest inner product, int32 [B]; is there any."""
  length = len(x)
  others = mesh_lib.constrain(x, (None, None))
  padding = -length % block
  others = jnp.pad(others, [(0, padding), (0, 0)]).reshape(-1, block, x.shape[1])
  usable = jnp.pad(mesh_lib.constrain(valid, (None,)), (0, padding)).reshape(-1, block)
  place = jnp.arange(length + padding, dtype=jnp.int32).reshape(-1, block)
  own = jnp.arange(length, dtype=jnp.int32)[:, None]

  def compare(carry, part):
    best, nearest = carry
    others, usable, place = part
    dots = jnp.einsum("id,jd->ij", x, others, precision="highest")
    dots = jnp.where(usable & (place != own), dots, -jnp.inf)
    first = jnp.argmax(dots, axis=1)
    dots = jnp.max(dots, axis=1)
    return (jnp.maximum(best, dots), jnp.where(dots > best, place[first], nearest)), None

  start = jnp.full(length, -jnp.inf), jnp.zeros(length, jnp.int32)
  (best, nearest), _ = lax.scan(compare, start, (others, usable, place))
  return nearest, best > -jnp.inf
