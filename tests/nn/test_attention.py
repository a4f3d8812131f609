"""Attention: masks, precision and the options of the multi-head module."""

import jax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn.attention import MultiHeadAttention, attention, pick_backend
from mmjax.parallel import mesh as mesh_lib


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


def test_tokens_see_their_own_segment_only():
  q, k, v = _qkv()
  segments = jnp.array([[0, 0, 1, 1, 1], [4, 2, 2, 4, 2]])
  visible = np.asarray(segments)[:, :, None] == np.asarray(segments)[:, None]
  np.testing.assert_allclose(attention(q, k, v, segments=segments), _by_hand(q, k, v, visible),
                             atol=1e-6)


def test_masks_of_another_shape_are_an_error():
  q, k, v = _qkv()
  with pytest.raises(ValueError, match=r"padding \(2, 4\) is not .*\(2, 5\)"):
    attention(q, k, v, padding=jnp.ones((2, 4), bool))
  with pytest.raises(ValueError, match="2 rows of 3 queries and 5 keys"):
    attention(q[:, :3], k, v, segments=jnp.zeros((2, 5), jnp.int32))


@pytest.mark.parametrize("backend", ["xla", "blockwise"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_query_that_sees_nothing_gets_zero_and_gives_no_gradient(backend, causal):
  padding = jnp.array([[False] * 5, [False] * 2 + [True] * 3])
  fn = lambda qkv: attention(*qkv, causal=causal, padding=padding, backend=backend)
  blind = np.array([[True] * 5, [causal] * 2 + [False] * 3])
  out = np.asarray(fn(_qkv()))
  assert np.isfinite(out).all() and (out[blind] == 0).all() and (out[~blind] != 0).all()
  weight = blind[:, :, None, None]
  assert (jax.grad(lambda qkv: jnp.sum(fn(qkv) * weight))(_qkv()) == 0).all()


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
  with pytest.raises(ValueError, match="'xlaa' is not one of 'auto', 'xla', .*Did you mean 'xla'"):
    attention(*_qkv(), backend="xlaa")


def _shapes(queries, keys=None, width=64, dtype=jnp.bfloat16):
  shape = lambda length: jax.ShapeDtypeStruct((8, length, 4, width), dtype)
  return shape(queries), shape(keys or queries)


@pytest.mark.parametrize("platform, arrays, masked, picked", [
    ("cpu", _shapes(4096), False, "xla"),
    ("tpu", _shapes(4096), True, "splash"),
    ("tpu", _shapes(64, 4096, 72), False, "splash"),  # the longer one counts
    ("tpu", _shapes(196), False, "xla"),              # too short to gain
    ("gpu", _shapes(196), False, "cudnn"),
    ("gpu", _shapes(77), False, "xla"),
    ("gpu", _shapes(256, dtype=jnp.float32), False, "xla"),
    ("gpu", _shapes(256, width=72), True, "cudnn"),
    ("gpu", _shapes(256, width=36), False, "xla"),
    ("gpu", _shapes(256, width=256), False, "xla"),
    ("gpu", _shapes(197), True, "xla"),
])
def test_auto_picks_the_platforms_kernel_where_it_applies(
    monkeypatch, platform, arrays, masked, picked):
  monkeypatch.setattr(mesh_lib, "platform", lambda: platform)
  assert pick_backend(*arrays, masked) == picked


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_auto_picks_the_ring_for_self_attention_of_a_sharded_length(monkeypatch, platform):
  monkeypatch.setattr(mesh_lib, "platform", lambda: platform)
  kernel = "splash" if platform == "tpu" else "xla"
  with mesh_lib.use(mesh_lib.make_mesh(data=-1, sequence=4)):
    assert pick_backend(*_shapes(1024)) == "ring"
    assert pick_backend(*_shapes(1024, 2048)) == kernel
    assert pick_backend(*_shapes(1025)) == kernel  # not divided: the trunk pads, others do not
    assert pick_backend(*_shapes(1024), backend="blockwise") == "blockwise"
  assert pick_backend(*_shapes(1024)) == kernel


@pytest.mark.parametrize("platform, backend, arrays, reason", [
    ("cpu", "splash", _shapes(1024), "it is for tpu, and the devices are cpu.*Choose 'auto'"),
    ("tpu", "cudnn", _shapes(1024), "it is for gpu, and the devices are tpu"),
    ("gpu", "cudnn", _shapes(1024, dtype=jnp.float32), "bfloat16 or float16, not float32: set dtype"),
    ("gpu", "cudnn", _shapes(1024, width=36), "heads of 36 are not a multiple of 8 up to 128"),
    ("cpu", "ring", _shapes(1024), "no mesh axis .* shards the length"),
])
def test_a_backend_that_cannot_be_had_is_an_error_that_says_why(
    monkeypatch, platform, backend, arrays, reason):
  monkeypatch.setattr(mesh_lib, "platform", lambda: platform)
  with pytest.raises(ValueError, match=f"'{backend}' cannot be had: .*{reason}"):
    pick_backend(*arrays, backend=backend)


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
