"""Cross-entropies and accuracies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import classification
from mmjax.training import flops


def test_softmax_cross_entropy_is_minus_log_probability():
  logits = jnp.log(jnp.array([[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]]))
  values = classification.softmax_cross_entropy(logits, jnp.array([0, 1]))
  np.testing.assert_allclose(values, -np.log([0.7, 0.1]), rtol=1e-6)


def test_smoothing_is_the_cross_entropy_with_the_smoothed_distribution():
  logits = jax.random.normal(jax.random.key(0), (4, 5))
  labels = jnp.array([0, 4, 2, 2])
  target = 0.9 * jax.nn.one_hot(labels, 5) + 0.1 / 5
  expected = -jnp.sum(target * jax.nn.log_softmax(logits), axis=-1)
  values = classification.softmax_cross_entropy(logits, labels, smoothing=0.1)
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_sigmoid_cross_entropy_sums_binary_cross_entropies():
  probability = np.array([[0.9, 0.2, 0.5]])
  logits = np.log(probability / (1 - probability))
  target = np.array([[1.0, 0.0, 0.25]])
  expected = -np.sum(target * np.log(probability) + (1 - target) * np.log(1 - probability), axis=-1)
  values = classification.sigmoid_cross_entropy(jnp.array(logits), jnp.array(target))
  np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_sigmoid_cross_entropy_of_huge_logits_is_finite():
  values = classification.sigmoid_cross_entropy(jnp.array([[1e4, -1e4]]), jnp.array([[0.0, 1.0]]))
  np.testing.assert_allclose(values, [2e4])


@pytest.mark.parametrize("block", [1, 7, 8, 23, 100])
def test_blocks_of_the_vocabulary_change_no_value_or_gradient(block):
  hidden = jax.random.normal(jax.random.key(0), (2, 3, 8))
  weight = jax.random.normal(jax.random.key(1), (23, 8))
  targets = jnp.array([[0, 22, 7], [8, 21, 6]])
  mask = jnp.array([[1, 1, 0], [1, 1, 1]])

  def plain(hidden, weight):
    values = classification.softmax_cross_entropy(hidden @ weight.T, targets)
    return jnp.sum(mask * values), values

  def blocked(hidden, weight):
    values = classification.token_cross_entropy(hidden, weight, targets, block=block)
    return jnp.sum(mask * values), values

  want = jax.grad(plain, (0, 1), has_aux=True)(hidden, weight)
  got = jax.grad(blocked, (0, 1), has_aux=True)(hidden, weight)
  # Sums of 23 float32 terms in another order, on values up to 10.
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6), got, want)


def test_blocked_cross_entropy_never_holds_the_logits():
  tokens, width, vocabulary = 256, 8, 4096
  args = (jnp.zeros((tokens, width)), jnp.zeros((vocabulary, width)), jnp.zeros(tokens, jnp.int32))

  def temporary(block):
    total = lambda *a: jnp.sum(classification.token_cross_entropy(*a, block=block))
    compiled = jax.jit(jax.grad(total, (0, 1))).lower(*args).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  logits = tokens * vocabulary * 4
  assert temporary(128) < logits / 4 < logits <= temporary(vocabulary)


def test_model_flops_of_blocked_cross_entropy_count_no_logits_twice():
  args = (jnp.zeros((6, 8)), jnp.zeros((20, 8)), jnp.zeros(6, jnp.int32))
  gradient = jax.grad(lambda *a: jnp.sum(classification.token_cross_entropy(*a, block=5)), (0, 1))
  product = 2 * 6 * 8 * 20
  assert flops.count(gradient, *args) == 3 * product
  assert flops.count(gradient, *args, recompute=True) == 4 * product


def test_top_k_counts_the_label_among_the_k_largest():
  logits = jnp.array([[3.0, 2.0, 1.0]] * 3)
  labels = jnp.array([0, 1, 2])
  np.testing.assert_array_equal(classification.top_k_correct(logits, labels), [1, 0, 0])
  np.testing.assert_array_equal(classification.top_k_correct(logits, labels, k=2), [1, 1, 0])


def test_constant_and_broken_predictions_are_not_correct():
  for value in (0.0, jnp.nan):
    assert not np.any(classification.top_k_correct(jnp.full((2, 3), value), jnp.array([0, 2])))
