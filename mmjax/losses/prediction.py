"""What a prediction costs: one value a token, float32. Predictions and targets are [..., d]."""

import jax
import jax.numpy as jnp

MIN_SQUARED_NORM = 1e-16  # below it a vector counts as zero, and its gradient stays finite


def l2(prediction, target):
  """Mean of the squared difference (MAE, arXiv:2111.06377, sec. 3): [..., d] -> [...]."""
  return jnp.mean(jnp.square(_difference(prediction, target)), axis=-1)


def l1(prediction, target):
  """Mean of the absolute difference (SimMIM, arXiv:2111.09886, sec. 3.4): [..., d] -> [...]."""
  return jnp.mean(jnp.abs(_difference(prediction, target)), axis=-1)


def smooth_l1(prediction, target, beta=1.0):
  """Mean over d of x^2 / (2 beta) where |x| < beta, else |x| - beta / 2: [..., d] -> [...].

  With beta = 1 that of Girshick 2015, arXiv:1504.08083, eq. 3.
  """
  size = jnp.abs(_difference(prediction, target))
  return jnp.mean(jnp.where(size < beta, jnp.square(size) / (2 * beta), size - beta / 2), axis=-1)


def cosine(prediction, target):
  """1 - cosine of the angle between the two: [..., d] -> [...]; 1 where one of them is zero."""
  prediction, target = prediction.astype(jnp.float32), target.astype(jnp.float32)
  squared = lambda x: jnp.maximum(jnp.sum(jnp.square(x), axis=-1), MIN_SQUARED_NORM)
  dot = jnp.sum(prediction * target, axis=-1)
  return 1 - dot / jnp.sqrt(squared(prediction) * squared(target))


def ranking(scores, values):
  """Whether scores are in the order of values: the mean over ordered pairs of -log p(the order).

  p(i above j) = sigmoid(score_i - score_j), a pair counting where value_i > value_j (HPM,
  arXiv:2304.05919, sec. 3.2).

  Args:
    scores: [..., P].
    values: [..., P]; without gradient.

  Returns:
    float32 [...]; 0 where all values are equal.
  """
  scores, values = scores.astype(jnp.float32), jax.lax.stop_gradient(values)
  above = values[..., :, None] > values[..., None, :]
  cost = -jax.nn.log_sigmoid(scores[..., :, None] - scores[..., None, :])
  count = jnp.sum(above, axis=(-2, -1))
  return jnp.sum(jnp.where(above, cost, 0), axis=(-2, -1)) / jnp.maximum(count, 1)


def _difference(prediction, target):
  return prediction.astype(jnp.float32) - target.astype(jnp.float32)
