"""Iterative decoding against NumPy: the schedule of MaskGIT, which ids stay, what is given."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.generate import masked_iterative
from mmjax.generate.logits import sample

TOKENS, CODES, MASK = 10, 5, 5


def test_schedule_is_the_cosine_of_maskgit():
  shares = masked_iterative.cosine_schedule(3)
  np.testing.assert_allclose(shares, [3 ** 0.5 / 2, 0.5, 0], atol=1e-12)
  with pytest.raises(ValueError, match="steps: at least 1, not 0"):
    masked_iterative.cosine_schedule(0)


def test_masked_after_a_step_is_the_schedule_within_what_is_left():
  def after(share, wanted, masked):
    return int(masked_iterative.masked_after(
        jnp.float32(share), jnp.array([wanted]), jnp.array([masked]))[0])

  assert after(0.5, 10, 8) == 5
  assert after(0.55, 10, 8) == 5
  assert after(0.9, 10, 4) == 3  # one at least is decoded
  assert after(0.01, 10, 4) == 1  # one at least is left for the last step
  assert after(0.0, 10, 4) == 0
  assert after(0.5, 0, 0) == 0  # a row that is complete


def numpy_decode(logits, ids, keys, steps, choice_temperature):
  """MaskGIT's loop (arXiv:2202.04200, sec. 3.2), id by id, with the same random numbers."""
  ids = np.array(ids)
  wanted = (ids == MASK).sum(1)
  for step in range(steps):
    per_row = [jax.random.split(jax.random.fold_in(key, step)) for key in keys]
    drawn, _ = sample(jnp.stack([k[0] for k in per_row]), logits, 1.0)
    drawn, probability = np.asarray(drawn), np.asarray(jax.nn.softmax(logits))
    share = np.cos(np.pi / 2 * (step + 1) / steps)
    for b in range(len(ids)):
      noise = np.asarray(jax.random.gumbel(per_row[b][1], (TOKENS,)))
      places = [n for n in range(TOKENS) if ids[b, n] == MASK]
      sure = {n: np.log(probability[b, n, drawn[b, n]])
                 + choice_temperature * (1 - (step + 1) / steps) * noise[n] for n in places}
      left = max(1, min(len(places) - 1, int(wanted[b] * share))) if step + 1 < steps else 0
      for n in sorted(places, key=sure.get)[left:]:
        ids[b, n] = drawn[b, n]
  return ids


@pytest.fixture(scope="module")
def case():
  """Logits that do not depend on the ids, two rows of which the second has four ids given."""
  logits = jax.random.normal(jax.random.key(0), (2, TOKENS, CODES)) * 2
  ids = jnp.full((2, TOKENS), MASK).at[1, :4].set(jnp.array([3, 1, 4, 1]))
  keys = jax.random.split(jax.random.key(1), 2)
  trace = []

  def predict(ids):
    jax.debug.callback(lambda x: trace.append(np.array(x)), ids, ordered=True)
    return logits

  decode = jax.jit(lambda ids, keys: masked_iterative.decode(
      predict, ids, keys, mask_id=MASK, steps=4, temperature=1.0, choice_temperature=2.0))
  result = np.asarray(decode(ids, keys))
  jax.effects_barrier()
  return logits, ids, keys, result, trace


def test_decoding_is_that_of_the_loop_in_numpy(case):
  logits, ids, keys, result, _ = case
  np.testing.assert_array_equal(result, numpy_decode(logits, ids, keys, 4, 2.0))


def test_nothing_stays_masked_and_what_is_given_stays(case):
  *_, result, trace = case
  assert result.max() < CODES
  np.testing.assert_array_equal(result[1, :4], [3, 1, 4, 1])
  for before, after in zip(trace, [*trace[1:], result]):  # nor does what was decoded ever change
    known = before != MASK
    np.testing.assert_array_equal(before[known], after[known])


def test_every_step_has_as_many_masked_ids_as_the_schedule_says(case):
  *_, trace = case
  share = np.cos(np.pi / 2 * np.arange(4) / 4)
  np.testing.assert_array_equal([(x == MASK).sum(1) for x in trace],
                                [[int(10 * s), int(6 * s)] for s in share])
