"""The plain contrastive formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import contrastive


def _pairs(batch=6, width=5, seed=0):
  x = jax.random.normal(jax.random.key(seed), (2, batch, width))
  return tuple(x / jnp.linalg.norm(x, axis=-1, keepdims=True))


def _bias_sigmoid(image, text, scale, valid=None):
  return contrastive.sigmoid(image, text, scale, -2.0, valid)


def _self_distill(image, text, scale, valid=None):
  return contrastive.distill(image, text, scale, text, image, 7.0, valid)


LOSSES = [contrastive.softmax, _bias_sigmoid, _self_distill]


def test_softmax_of_equal_embeddings_is_ln_batch():
  one = jnp.ones((6, 4)) / 2
  np.testing.assert_allclose(contrastive.softmax(one, one, 10.0), np.log(6), rtol=1e-6)


def test_sigmoid_of_zero_logits_is_batch_times_ln_2():
  one = jnp.ones((6, 4)) / 2
  np.testing.assert_allclose(contrastive.sigmoid(one, one, 10.0, -10.0), 6 * np.log(2), rtol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
def test_invalid_rows_change_nothing_but_their_own_zero(loss):
  image, text = _pairs()
  valid = jnp.array([True, False, True, True, False, True])

  def total(image, text, scale, valid):
    values = loss(image, text, scale, valid)
    return jnp.sum(values), values

  grads, values = jax.grad(total, (0, 1, 2), has_aux=True)(image, text, 8.0, valid)
  kept, kept_values = jax.grad(total, (0, 1, 2), has_aux=True)(image[valid], text[valid], 8.0, None)
  # The same sums with zeros added: float32 rounding only.
  np.testing.assert_allclose(values[valid], kept_values, rtol=1e-6)
  np.testing.assert_array_equal(values[~valid], 0)
  for got, want in zip(grads[:2], kept[:2]):
    np.testing.assert_allclose(got[valid], want, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(got[~valid], 0)
  np.testing.assert_allclose(grads[2], kept[2], rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_batch_without_a_valid_row_is_zero_with_zero_gradient(loss):
  image, text = _pairs()
  valid = jnp.zeros(6, bool)
  value, grad = jax.value_and_grad(lambda x: jnp.sum(loss(x, text, 8.0, valid)))(image)
  assert value == 0 and not np.any(grad)


@pytest.mark.parametrize("loss", LOSSES)
def test_large_scales_stay_finite(loss):
  image, text = _pairs()
  value, grad = jax.value_and_grad(lambda x: jnp.sum(loss(x, text, 1e4)))(image)
  assert np.isfinite(value) and np.all(np.isfinite(grad))


def test_bfloat16_embeddings_give_float32_losses():
  image, text = (x.astype(jnp.bfloat16) for x in _pairs())
  for loss in LOSSES:
    assert loss(image, text, 8.0).dtype == jnp.float32


def test_distillation_is_least_where_student_equals_teacher():
  image, text = _pairs()

  def total(x):
    return jnp.sum(contrastive.distill(x, text, 5.0, image, text, 5.0))

  grad = jax.grad(total)(image)
  np.testing.assert_allclose(grad, 0, atol=1e-6)
  assert total(image) < total(text)
