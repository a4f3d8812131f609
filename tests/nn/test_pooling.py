"""Which tokens the poolings read."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.nn.pooling import AttentionPool, eos_index, last_index, mean_pool, token_at


def test_eos_is_the_first_place_of_its_id_or_of_the_highest_id():
  text = jnp.array([[5, 9, 7, 7], [7, 8, 9, 9], [1, 2, 3, 4]])
  np.testing.assert_array_equal(eos_index(text, 7), [2, 0, 0])  # 0: there is none in the last row
  np.testing.assert_array_equal(eos_index(text), [1, 2, 3])


def test_last_is_the_last_real_token_wherever_the_padding_stands():
  mask = jnp.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]], bool)
  np.testing.assert_array_equal(last_index(mask), [1, 3, 2, 3])


def test_mean_and_attention_pooling_do_not_see_padding():
  x = jax.random.normal(jax.random.key(0), (2, 5, 8))
  mask = jnp.arange(5) < jnp.array([[3], [5]])
  other = jnp.where(mask[..., None], x, 100.0)
  pool = AttentionPool(heads=2, mlp_dim=16)
  params = pool.init(jax.random.key(1), x)
  np.testing.assert_allclose(mean_pool(x, mask), mean_pool(other, mask), atol=1e-6)
  np.testing.assert_allclose(mean_pool(x, mask)[0], x[0, :3].mean(0), atol=1e-6)
  np.testing.assert_allclose(*(pool.apply(params, y, mask) for y in (x, other)), atol=1e-5)


def test_mean_of_no_token_is_zero():
  np.testing.assert_array_equal(mean_pool(jnp.ones((1, 3, 2)), jnp.zeros((1, 3), bool)), [[0, 0]])


def test_token_at_takes_one_token_of_each_row():
  x = jnp.arange(12).reshape(2, 3, 2)
  np.testing.assert_array_equal(token_at(x, jnp.array([2, 0])), [[4, 5], [6, 7]])
