"""Budgets over modalities and masked spans, on their own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.masking import budgets, spans

ROWS = 64
LENGTH, FIRST = 11, 100  # of sequences; the first sentinel


@pytest.fixture(scope="module")
def keys():
  return jax.random.split(jax.random.key(1), ROWS)


def test_budgets_sum_exactly_and_never_exceed_what_is_there(keys):
  alpha = jnp.array([0.3, 0.0, 1.0, 0.3])
  most = np.random.default_rng(0).integers(0, 24, (ROWS, 4))
  counts, _ = jax.jit(jax.vmap(lambda *row: budgets.draw(row[0], alpha, 20, row[1])))(keys, most)
  available = np.where(alpha > 0, most, 0)
  assert (counts <= available).all() and (counts >= 0).all()
  np.testing.assert_array_equal(counts.sum(1), np.minimum(20, available.sum(1)))
  assert len(np.unique(counts, axis=0)) > ROWS // 2  # they differ from row to row


def test_a_budget_of_more_tokens_than_there_are_names_its_key():
  with pytest.raises(ValueError, match="input_tokens=90: must be at least 1 and at most 64"):
    budgets.check("input_tokens", 90, 64)


@pytest.fixture(scope="module")
def masked(keys):
  """Sequences of different lengths, and their parts for different budgets."""
  size = np.arange(ROWS) % (LENGTH + 1)
  ids = np.random.default_rng(0).integers(1, FIRST, (ROWS, LENGTH)).astype(np.int32)
  real = np.arange(LENGTH) < size[:, None]
  budget = np.arange(ROWS) // 8
  parts = jax.jit(jax.vmap(lambda *row: spans.mask_spans(*row, FIRST)))(keys, ids, real, budget)
  return ids, size, budget, jax.tree.map(np.asarray, parts)


def test_sentinels_and_their_spans_give_the_sequence_back(masked):
  ids, size, budget, parts = masked
  for row in range(ROWS):
    told = parts.target[row][:parts.target_size[row]]
    seen = parts.seen[row][:parts.seen_size[row]] if budget[row] else [FIRST] * int(size[row] > 0)
    stands_for = {}
    for token in told:
      if token >= FIRST:
        stands_for[token] = []
        last = token
      else:
        stands_for[last].append(token)
    assert stands_for.pop(last) == []  # the end
    whole = [x for token in seen for x in stands_for.pop(token, [token])]
    assert whole == list(ids[row][:size[row]]) and not stands_for
  assert len({tuple(x) for x in parts.target}) > ROWS // 2


def test_the_input_fits_its_budget(masked):
  _, size, budget, parts = masked
  assert (parts.seen_size <= np.minimum(budget, size)).all()
  assert (parts.seen_size[(budget > 0) & (size > 0)] > 0).all()
  assert parts.target.shape[1] == spans.target_length(LENGTH)
  assert parts.target.max() < FIRST + spans.sentinels(LENGTH)


def test_a_window_begins_at_a_sentinel_and_is_as_long_as_it_can(keys, masked):
  *_, parts = masked
  room = 4
  find = jax.jit(jax.vmap(lambda *row: spans.window(*row, room, FIRST)))
  begin = find(keys, parts.target, parts.target_size)
  assert (np.take_along_axis(parts.target, np.asarray(begin)[:, None], 1) >= FIRST).all()
  fits = parts.target_size <= room + 1
  assert (begin[fits] == 0).all() and (begin[~fits] < parts.target_size[~fits] - 1).all()
