"""Attention: masks, precision and the options of the multi-head module."""

import jax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn.attention import MultiHeadAttention, attention


def _qkv(length=5, dtype=jnp.float32):
  return jax.random.normal(jax.random.key(0), (3, 2, length, 2, 4), dtype)


def _by_hand(q, k, v, visible):
  """Equation 1 with loops, in float64; visible bool [B, Q, K]."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  out = np.zeros_like(q)
  for b, i, h in np.ndindex(q.shape[:3]):
    logits = k[b, :, h] @ q[b, i, h] / np.sqrt(q.shape[-1])
    weights = np.exp(logits) * visible[b, i]
    out[b, i, h] = weights @ v[b, :, h] / weights.sum()
  return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_masks_hide_what_they_say(causal, padded):
  q, k, v = _qkv()
  padding = jnp.array([[True] * 3 + [False] * 2, [True] * 5]) if padded else None
  visible = np.ones((2, 5, 5), bool)
  if causal:
    visible &= np.tri(5, dtype=bool)
  if padded:
    visible &= np.asarray(padding)[:, None]
  got = attention(q, k, v, causal=causal, padding=padding)
  np.testing.assert_allclose(got, _by_hand(q, k, v, visible), atol=1e-6)


def test_a_row_without_any_real_token_has_finite_values_and_gradients():
  padding = jnp.zeros((2, 5), bool)
  value, grads = jax.value_and_grad(
      lambda qkv: jnp.sum(attention(*qkv, causal=True, padding=padding)))(_qkv())
  assert np.isfinite(value) and np.isfinite(grads).all()


def test_softmax_is_float32_in_bfloat16_compute():
  q, k, v = _qkv(dtype=jnp.bfloat16)
  jaxpr = jax.make_jaxpr(attention)(q, k, v)
  exponentials = [eqn for eqn in _equations(jaxpr.jaxpr) if eqn.primitive.name == "exp"]
  assert exponentials and all(e.outvars[0].aval.dtype == jnp.float32 for e in exponentials)
  assert attention(q, k, v).dtype == jnp.bfloat16


def _equations(jaxpr):
  for eqn in jaxpr.eqns:
    yield eqn
    for inner in jaxprs_in_params(eqn.params):
      yield from _equations(inner)


def test_unknown_backend_names_the_valid_ones():
  with pytest.raises(ValueError, match="'xlaa' is not one of 'xla'. Did you mean 'xla'"):
    attention(*_qkv(), backend="xlaa")


def test_heads_must_divide_the_width():
  with pytest.raises(ValueError, match="width 8 does not divide into 3 heads"):
    MultiHeadAttention(3).init(jax.random.key(0), jnp.ones((1, 2, 8)))


def test_qk_norm_makes_attention_blind_to_the_scale_of_queries_and_keys():
  x = jax.random.normal(jax.random.key(0), (2, 5, 8))
  module = MultiHeadAttention(2, qk_norm=True, norm_eps=1e-12)
  params = module.init(jax.random.key(1), x)
  larger = jax.tree.map(lambda p: p, params)
  for name in ("query", "key"):
    larger["params"][name] = jax.tree.map(lambda p: 3 * p, params["params"][name])
  np.testing.assert_allclose(module.apply(larger, x), module.apply(params, x), atol=1e-5)
