"""Vector quantisation against NumPy in float64: nearest codes, averages, revival; its gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn import quantize

CODES, DIM, ROWS, TOKENS = 7, 3, 5, 4


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def numpy_step(codes, count, total, vectors, valid, decay, normalise):
  """One step of VQ-VAE, app. A.1, one vector at a time: the codebook, and the ids."""
  ids = np.zeros(vectors.shape[:2], int)
  n, m = np.zeros(len(codes)), np.zeros(codes.shape)
  for b, row in enumerate(vectors):
    for t, z in enumerate(row):
      ids[b, t] = min(range(len(codes)), key=lambda k: np.sum((z - codes[k]) ** 2))
      if valid[b]:
        n[ids[b, t]] += 1
        m[ids[b, t]] += z
  count = decay * count + (1 - decay) * n
  total = decay * total + (1 - decay) * m
  codes = codes.copy()
  for k in range(len(codes)):
    if count[k] > 0:
      codes[k] = total[k] / count[k]
      if normalise:
        codes[k] /= np.linalg.norm(codes[k])
  return (codes, count, total), ids


# float32 against float64 over five steps.
CLOSE = dict(rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("normalise", [False, True])
def test_codebook_follows_its_vectors_over_five_steps(rng, normalise):
  codes = rng.normal(size=(CODES, DIM))
  if normalise:
    codes /= np.linalg.norm(codes, axis=-1, keepdims=True)
  book = quantize.Codebook(jnp.float32(codes), jnp.zeros(CODES), jnp.zeros((CODES, DIM)))
  want = codes, np.zeros(CODES), np.zeros((CODES, DIM))
  valid = np.array([True, True, False, True, True])
  for _ in range(5):
    vectors = rng.normal(size=(ROWS, TOKENS, DIM))
    if normalise:
      vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    want, want_ids = numpy_step(*want, vectors, valid, 0.9, normalise)
    ids = quantize.nearest(jnp.float32(vectors), book.codes)
    np.testing.assert_array_equal(ids, want_ids)
    weight = jnp.broadcast_to(valid[:, None], ids.shape)
    book = quantize.moved(book, *quantize.uses(jnp.float32(vectors), ids, weight, CODES), 0.9,
                          normalise)
    for got, expected in zip(book, want):
      np.testing.assert_allclose(got, expected, **CLOSE)


def test_vectors_of_rows_that_do_not_count_may_be_anything():
  vectors = jnp.array([[[1.0, 2.0]], [[jnp.nan, jnp.inf]]])
  count, total = quantize.uses(vectors, jnp.array([[1], [1]]), jnp.array([[True], [False]]), 3)
  np.testing.assert_array_equal(count, [0, 1, 0])
  np.testing.assert_array_equal(total, [[0, 0], [1, 2], [0, 0]])


def test_a_code_that_was_never_used_keeps_its_place():
  book = quantize.start(jax.random.key(0), 4, 2)
  moved = quantize.moved(book, jnp.zeros(4), jnp.zeros((4, 2)), 0.99)
  np.testing.assert_array_equal(moved.codes, book.codes)


def test_straight_through_gives_the_code_and_passes_its_gradient_to_the_vector(rng):
  vector, code, upstream = (jnp.float32(rng.normal(size=(2, DIM))) for _ in range(3))
  value, pull = jax.vjp(quantize.straight_through, vector, code)
  np.testing.assert_allclose(value, code, atol=1e-6)
  np.testing.assert_array_equal(pull(upstream)[0], upstream)
  np.testing.assert_array_equal(pull(upstream)[1], np.zeros((2, DIM)))


def test_dead_codes_take_the_candidates_in_order_until_none_is_left(rng):
  codes = rng.normal(size=(6, 2)).astype(np.float32)
  count = np.float32([0.0, 9.0, 0.1, 6.0, 0.05, 8.85])  # the mean is 4, a hundredth of it 0.04
  candidates = rng.normal(size=(3, 2)).astype(np.float32)

  def revive(available, below):
    book = quantize.Codebook(jnp.array(codes), jnp.array(count), codes * count[:, None])
    return quantize.revived(book, jnp.array(candidates), available, below)

  want = codes.copy()
  want[0] = candidates[0]
  np.testing.assert_array_equal(revive(3, 0.01).codes, want)
  want[2], want[4] = candidates[1:]
  book = revive(3, 0.03)
  np.testing.assert_array_equal(book.codes, want)
  np.testing.assert_allclose(book.count, [4, 9, 4, 6, 4, 8.85], rtol=1e-6)
  np.testing.assert_allclose(book.sum, want * np.float32([4, 9, 4, 6, 4, 8.85])[:, None], rtol=1e-6)
  want[4] = codes[4]  # a batch with two valid rows
  np.testing.assert_array_equal(revive(2, 0.03).codes, want)


def test_perplexity_counts_the_codes_in_use():
  assert float(quantize.perplexity(jnp.array([2.0, 0, 2, 2, 0]))) == pytest.approx(3, rel=1e-6)
  share = np.array([0.5, 0.25, 0.25])
  want = np.exp(-np.sum(share * np.log(share)))
  assert float(quantize.perplexity(jnp.float32(share) * 8)) == pytest.approx(want, rel=1e-6)
  assert float(quantize.perplexity(jnp.zeros(4))) == 1


def test_unit_is_finite_at_zero():
  value, gradient = jax.value_and_grad(lambda x: quantize.unit(x)[0])(jnp.zeros(3))
  assert value == 0 and np.isfinite(gradient).all()
