"""Losses of self-distillation against their formulas in NumPy, float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import self_distillation as losses

RNG = np.random.default_rng(0)


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def test_cross_entropy_is_that_of_two_softmaxes():
  teacher, student = RNG.normal(size=(2, 3, 4, 7)) * 5
  expected = -(softmax(teacher) * np.log(softmax(student))).sum(-1)
  np.testing.assert_allclose(losses.cross_entropy(teacher, student), expected, rtol=2e-6)


def test_no_gradient_goes_to_the_target():
  teacher, student = jnp.asarray(RNG.normal(size=(2, 4, 7)), jnp.float32)
  of_teacher, of_student = jax.grad(lambda t, s: losses.cross_entropy(t, s).sum(), (0, 1))(
      teacher, student)
  assert np.abs(of_teacher).max() == 0
  np.testing.assert_allclose(of_student, softmax(student) - softmax(teacher), atol=1e-6)


def test_unused_is_what_the_mean_prediction_lacks_of_the_largest_entropy():
  usage = RNG.uniform(0.1, 5, 9)
  p = usage / usage.sum()
  assert float(losses.unused(usage)) == pytest.approx(np.log(9) + (p * np.log(p)).sum(), abs=2e-6)
  assert float(losses.unused(np.ones(9))) == pytest.approx(0, abs=1e-6)
  assert float(losses.unused(np.eye(9)[2])) == pytest.approx(np.log(9), rel=1e-6)
  assert float(losses.unused(np.zeros(9))) == 0


def rows(count=11, width=5):
  x = RNG.normal(size=(count, width)).astype(np.float32)
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def koleo(x, valid):
  x = x.astype(np.float64)
  distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
  distance[:, ~valid] = np.inf
  np.fill_diagonal(distance, np.inf)
  return np.where(valid, -np.log(distance.min(1)), 0)


@pytest.mark.parametrize("block", [4, 11, 4096])
def test_koleo_is_the_log_of_the_distance_to_the_nearest_valid_row(block):
  x, valid = rows(), np.arange(11) % 4 != 1
  for mask in (valid, None):
    want = koleo(x, valid | (mask is None))
    np.testing.assert_allclose(losses.koleo(x, mask, block=block), want, rtol=1e-5, atol=1e-6)


def test_koleo_pushes_neighbours_apart():
  x = jnp.asarray(rows())
  before = koleo(np.asarray(x), np.ones(11, bool)).sum()
  moved = x - 1e-3 * jax.grad(lambda x: losses.koleo(x).sum())(x)
  after = koleo(np.asarray(moved), np.ones(11, bool)).sum()
  expected = 1e-3 * float(jnp.sum(jnp.square(jax.grad(lambda x: losses.koleo(x).sum())(x))))
  assert before - after == pytest.approx(expected, rel=0.05)  # to first order


def test_koleo_of_equal_rows_and_of_one_row_is_finite():
  x = jnp.ones((3, 4)) / 2
  value, gradient = jax.value_and_grad(lambda x: losses.koleo(x).sum())(x)
  assert np.isfinite(value) and np.isfinite(gradient).all()
  assert losses.koleo(x[:1]) == 0
  np.testing.assert_array_equal(losses.koleo(x, np.array([False, True, False])), 0)
