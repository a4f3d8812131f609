"""Exponential moving averages of parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.optim import ema

OLD = {"w": jax.random.normal(jax.random.key(0), (64,)) * 1e3}
NEW = {"w": jax.random.normal(jax.random.key(1), (64,)) * 1e-3}


def test_exact_at_decay_zero_and_one():
  update = jax.jit(ema.update)
  np.testing.assert_array_equal(update(OLD, NEW, 0.0)["w"], NEW["w"])
  np.testing.assert_array_equal(update(OLD, NEW, 1.0)["w"], OLD["w"])


def test_equals_the_weighted_sum_of_all_parameters():
  average, expected = ema.init({"w": jnp.float32(1)}), 1.0
  for value in (2.0, 5.0, 3.0):
    average = ema.update(average, {"w": jnp.float32(value)}, 0.9)
    expected = 0.9 * expected + 0.1 * value
  assert float(average["w"]) == pytest.approx(expected, rel=1e-6)


def test_average_of_bfloat16_is_float32_and_does_not_stall():
  params = {"w": jnp.asarray([2.0], jnp.bfloat16)}
  average = ema.init({"w": jnp.asarray([1.0], jnp.bfloat16)})
  moved = ema.update(average, params, 0.9999)["w"]
  assert moved.dtype == jnp.float32 and not moved.weak_type
  assert float(moved[0]) == pytest.approx(1.0001, abs=1e-6)      # bfloat16 would round it to 1


def test_initial_average_survives_donation_of_the_parameters():
  params = {"w": jnp.ones(8)}
  average = ema.init(params)
  jax.jit(lambda p: jax.tree.map(jnp.sin, p), donate_argnums=0)(params)
  np.testing.assert_array_equal(average["w"], np.ones(8))


def test_constant_cosine_and_warmed_decay():
  assert float(ema.schedule(0.99)(7)) == pytest.approx(0.99)
  ramp = ema.schedule(0.9, final=1.0, total_steps=100)
  np.testing.assert_allclose([ramp(t) for t in (0, 50, 100, 200)], [0.9, 0.95, 1, 1], rtol=1e-6)
  warm = ema.schedule(0.99, warmup=True)
  np.testing.assert_allclose([warm(0), warm(90), warm(10_000)], [0.1, 0.91, 0.99], rtol=1e-6)


def test_schedule_works_on_traced_steps():
  value = jax.jit(ema.schedule(0.9, final=1.0, total_steps=10, warmup=True))(jnp.int32(5))
  assert value.dtype == jnp.float32 and not value.weak_type


@pytest.mark.parametrize("bad, message", [
    (dict(decay=1.5), r"\[0, 1\]"), (dict(decay=0.9, final=2.0), r"\[0, 1\]"),
    (dict(decay=0.9, final=1.0), "total_steps")])
def test_bad_decays_are_refused(bad, message):
  with pytest.raises(ValueError, match=message):
    ema.schedule(**bad)


def test_a_config_describes_a_constant_and_a_cosine_decay():
  assert float(ema.from_config({"start": 0.99})(7)) == pytest.approx(0.99)
  ramp = ema.from_config({"start": 0.9, "final": 1.0, "ramp_steps": 100})
  np.testing.assert_allclose([ramp(t) for t in (0, 50, 100, 200)], [0.9, 0.95, 1, 1], rtol=1e-6)


@pytest.mark.parametrize("bad, message", [
    ({"final": 1.0, "ramp_steps": 5}, "momentum.start: is missing"),
    ({"start": 0.9, "final": 1.0}, "momentum: final and ramp_steps come together"),
    ({"start": 0.9, "ramp": 5}, "momentum.ramp: unknown key"),
    ({"start": 1.9}, "momentum.start: must be from 0 to 1, not 1.9"),
    ({"start": 0.9, "final": 1.0, "ramp_steps": 0}, "momentum.ramp_steps: must be at least 1")])
def test_what_is_wrong_in_a_config_is_named(bad, message):
  with pytest.raises(ValueError, match=message):
    ema.from_config(bad)
