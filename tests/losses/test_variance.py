"""VICReg's variance and covariance against NumPy in float64, and over eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import variance as losses
from mmjax.parallel import mesh as mesh_lib

ROWS, WIDTH = 32, 12


def drawn(seed=0):
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(ROWS, WIDTH)) @ rng.normal(size=(WIDTH, WIDTH)) * 0.3 + 2).astype(np.float32)


def numpy_variance(x):
  return np.maximum(0, 1 - np.sqrt(x.astype(np.float64).var(axis=0, ddof=1) + 1e-4)).mean()


def numpy_covariance(x):
  matrix = np.cov(x.astype(np.float64), rowvar=False)
  return (matrix ** 2).sum() / WIDTH - (np.diag(matrix) ** 2).sum() / WIDTH


CASES = [(losses.variance, numpy_variance), (losses.covariance, numpy_covariance)]


@pytest.mark.parametrize("loss, reference", CASES)
def test_the_losses_are_those_of_the_paper(loss, reference):
  # Sums of a few dozen float32 numbers.
  np.testing.assert_allclose(loss(drawn()), reference(drawn()), rtol=1e-5)


@pytest.mark.parametrize("loss, reference", CASES)
def test_rows_without_weight_are_not_seen(loss, reference):
  x, weight = drawn(), np.arange(ROWS) % 5 != 2
  broken = np.where(weight[:, None], x, np.nan)
  np.testing.assert_allclose(loss(broken, weight), reference(x[weight]), rtol=1e-5)
  gradient = jax.grad(loss)(jnp.where(weight[:, None], x, 1e3), weight)
  assert np.isfinite(gradient).all() and not np.any(gradient[~weight])


def test_the_gradient_of_variance_spreads_collapsed_features():
  x = drawn() * 0.01
  step = x - 0.1 * jax.grad(losses.variance)(x)
  assert losses.variance(step) < losses.variance(x)
  assert np.isfinite(jax.grad(losses.variance)(jnp.ones((ROWS, WIDTH)))).all()


def test_the_losses_of_a_batch_on_eight_devices_are_those_of_one():
  x, mesh = drawn(), mesh_lib.make_mesh(data=2, fsdp=4)
  both = jax.jit(jax.value_and_grad(lambda x: losses.variance(x) + losses.covariance(x)))
  with mesh_lib.use(mesh):
    value, gradient = both(jax.device_put(x, mesh_lib.batch_sharding(mesh)))
  np.testing.assert_allclose(value, both(x)[0], rtol=1e-5)
  np.testing.assert_allclose(gradient, both(x)[1], rtol=1e-4, atol=1e-6)
