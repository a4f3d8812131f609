"""Losses of predictions against NumPy in float64."""

import jax
import numpy as np
import pytest

from mmjax.losses import prediction as losses

RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(2, 3, 5, 12))


def huber(x, y, beta):
  size = np.abs(x - y)
  return np.where(size < beta, size ** 2 / (2 * beta), size - beta / 2).mean(-1)


REFERENCES = {
    "l2": (losses.l2, lambda x, y: ((x - y) ** 2).mean(-1)),
    "l1": (losses.l1, lambda x, y: np.abs(x - y).mean(-1)),
    "smooth_l1": (losses.smooth_l1, lambda x, y: huber(x, y, 1.0)),
    "smooth_l1 of beta 2": (lambda x, y: losses.smooth_l1(x, y, 2.0),
                            lambda x, y: huber(x, y, 2.0)),
    "cosine": (losses.cosine, lambda x, y: 1 - (x * y).sum(-1) / np.sqrt(
        (x ** 2).sum(-1) * (y ** 2).sum(-1))),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_a_loss_is_its_formula(name):
  loss, reference = REFERENCES[name]
  # Means of twelve float32 numbers of order one.
  got = loss(X.astype(np.float32), Y.astype(np.float32))
  np.testing.assert_allclose(got, reference(X, Y), atol=1e-6)


def test_cosine_of_nothing_is_one_with_a_finite_gradient():
  zero = np.zeros(4, np.float32)
  value, gradient = jax.value_and_grad(losses.cosine)(zero, zero + 1)
  assert value == 1 and np.isfinite(gradient).all()


def test_ranking_is_the_mean_over_the_ordered_pairs():
  scores, values = RNG.normal(size=(2, 3, 6))
  values[0, :2] = 1.0  # a tie is no order
  want = []
  for score, value in zip(scores, values):
    pairs = [(i, j) for i in range(6) for j in range(6) if value[i] > value[j]]
    want.append(np.mean([np.log1p(np.exp(score[j] - score[i])) for i, j in pairs]))
  np.testing.assert_allclose(losses.ranking(scores, values), want, rtol=1e-5)
  assert losses.ranking(np.ones(3), np.ones(3)) == 0


def test_ranking_teaches_the_scores_and_not_the_values():
  scores, values = np.zeros(4, np.float32), np.arange(4, dtype=np.float32)
  of_scores, of_values = jax.grad(losses.ranking, (0, 1))(scores, values)
  assert (np.diff(of_scores) < 0).all() and (of_values == 0).all()
