"""Collapse monitors against NumPy's singular values, and at both ends of their ranges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import collapse
from mmjax.parallel import mesh as mesh_lib

ROWS, WIDTH = 64, 24


def drawn(seed=0, rows=ROWS):
  """Rows whose singular values fall off, around a mean that is not zero."""
  rng = np.random.default_rng(seed)
  return (rng.normal(size=(rows, WIDTH)) * 0.8 ** np.arange(WIDTH) + 0.3).astype(np.float32)


def rank_me(x):
  s = np.linalg.svd(x.astype(np.float64), compute_uv=False)
  p = s / s.sum()
  return np.exp(-(p * np.log(p)).sum())


def test_effective_rank_is_the_exponential_entropy_of_singular_values():
  x = drawn()
  # float32 moments: eigenvalues to 1e-6 of the largest, the smallest of these is 4e-5 of it.
  np.testing.assert_allclose(collapse.effective_rank(x), rank_me(x), rtol=1e-4)
  np.testing.assert_allclose(collapse.effective_rank(x[:10]), rank_me(x[:10]), rtol=1e-4)


def test_effective_rank_is_one_for_one_row_and_the_width_for_orthogonal_rows():
  collapsed = np.random.default_rng(0).normal(size=(ROWS, 1)) * np.linspace(-1, 3, WIDTH)
  np.testing.assert_allclose(collapse.effective_rank(collapsed), 1, rtol=1e-5)
  np.testing.assert_allclose(collapse.effective_rank(np.eye(WIDTH)), WIDTH, rtol=1e-5)


def test_feature_std_is_that_of_unit_norm_rows():
  x = drawn().astype(np.float64)
  unit = x / np.linalg.norm(x, axis=1, keepdims=True)
  want = unit.std(axis=0).mean() * WIDTH ** 0.5
  np.testing.assert_allclose(collapse.feature_std(x), want, rtol=1e-5)
  np.testing.assert_allclose(collapse.feature_std(np.tile(x[:1], (ROWS, 1))), 0, atol=1e-5)
  spread = np.random.default_rng(1).normal(size=(4000, WIDTH))
  np.testing.assert_allclose(collapse.feature_std(spread), 1, atol=0.01)


def test_prototype_entropy_is_that_of_the_mean_assignment():
  p = np.random.default_rng(2).dirichlet(np.full(WIDTH, 0.3), ROWS)
  mean = p.mean(axis=0)
  want = -(mean * np.log(mean)).sum() / np.log(WIDTH)
  np.testing.assert_allclose(collapse.prototype_entropy(p), want, rtol=1e-5)
  np.testing.assert_allclose(collapse.prototype_entropy(np.eye(WIDTH)), 1, rtol=1e-5)
  np.testing.assert_allclose(collapse.prototype_entropy(np.tile(np.eye(WIDTH)[:1], (ROWS, 1))), 0)


MONITORS = (collapse.effective_rank, collapse.feature_std,
            lambda x, w: collapse.prototype_entropy(jax.nn.softmax(x), w))


@pytest.mark.parametrize("monitor", MONITORS)
def test_rows_without_weight_are_not_seen(monitor):
  x = drawn()
  weight = np.arange(ROWS) % 4 != 1
  broken = np.where(weight[:, None], x, np.nan)
  np.testing.assert_allclose(monitor(broken, weight), monitor(x[weight], None), rtol=1e-5)
  assert np.isfinite(monitor(broken, np.zeros(ROWS, bool)))


def test_monitors_of_a_batch_on_eight_devices_are_those_of_one():
  x, mesh = drawn(), mesh_lib.make_mesh(data=2, fsdp=4)
  every = jax.jit(lambda x: jnp.stack([monitor(x, None) for monitor in MONITORS]))
  with mesh_lib.use(mesh):
    got = every(jax.device_put(x, mesh_lib.batch_sharding(mesh)))
  np.testing.assert_allclose(got, every(x), rtol=1e-5)


def test_tokens_count_as_rows():
  x = drawn().reshape(8, 8, WIDTH)
  weight = np.ones((8, 8), bool)
  for monitor in MONITORS:
    np.testing.assert_allclose(monitor(x, weight), monitor(x.reshape(ROWS, WIDTH), None), rtol=1e-6)
