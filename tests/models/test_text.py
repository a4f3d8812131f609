"""TextTransformer: masks, pooling and direction. Reference values: `tests/conformance`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.text import TextTransformer

TEXT = jnp.array([[3, 4, 9, 1, 1, 1], [5, 6, 7, 8, 3, 9]])
MASK = jnp.array([[True] * 3 + [False] * 3, [True] * 6])
text = functools.partial(TextTransformer, vocab=10, length=8, width=16, depth=1, heads=2)


def _init(model):
  return nn.unbox(jax.jit(model.init)(jax.random.key(1), TEXT))


@functools.partial(jax.jit, static_argnums=0, static_argnames="want")
def _apply(model, params, text, mask=None, want=()):
  return model.apply(params, text, mask, want=want)


def _close(got, want):
  np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("pool, causal", [
    ("last", False), ("eos", True), ("mean", False), ("map", True), ("first", False)])
def test_what_stands_in_the_padding_has_no_influence(pool, causal):
  model = text(pool=pool, causal=causal, eos_id=9)
  params = _init(model)
  other = jnp.where(MASK, TEXT, 2)
  _close(_apply(model, params, TEXT, MASK)[0], _apply(model, params, other, MASK)[0])
  # A shorter batch without padding gives the same.
  _close(_apply(model, params, TEXT, MASK)[0][0], _apply(model, params, TEXT[:1, :3])[0][0])


def test_padding_is_seen_where_the_model_was_trained_to():
  model = text(mask_padding=False)
  params = _init(model)
  _close(_apply(model, params, TEXT, MASK)[0], _apply(model, params, TEXT)[0])
  other = jnp.where(MASK, TEXT, 2)
  change = _apply(model, params, other, MASK)[0] - _apply(model, params, TEXT, MASK)[0]
  assert np.abs(change[0]).max() > 1e-3


def test_pools_read_the_tokens_they_name():
  model = text()
  params = _init(model)
  pooled, features = _apply(model, params, TEXT, MASK, want=("tokens", "layer/0"))
  tokens = features["tokens"]
  assert features["layer/0"].shape == tokens.shape == (2, 6, 16)
  _close(pooled, jnp.stack([tokens[0, 2], tokens[1, 5]]))
  for pool, want in dict(first=tokens[:, 0], eos=jnp.stack([tokens[0, 2], tokens[1, 5]]),
                         mean=jnp.stack([tokens[0, :3].mean(0), tokens[1].mean(0)])).items():
    _close(_apply(text(pool=pool, eos_id=9), params, TEXT, MASK)[0], want)
  assert _apply(text(pool="none"), params, TEXT, MASK)[0] is None


@pytest.mark.parametrize("pool", ["last", "mean", "map"])
def test_a_row_without_any_token_is_finite(pool):
  """A bad record has no text; its weight is zero, but zero times NaN is NaN."""
  model = text(pool=pool, causal=True)
  value, grads = jax.value_and_grad(
      lambda p: _apply(model, p, jnp.zeros_like(TEXT), jnp.zeros_like(MASK))[0].sum())(_init(model))
  assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


def test_an_id_outside_the_vocabulary_is_not_read_silently():
  model = text()
  assert np.isnan(_apply(model, _init(model), TEXT.at[0, 0].set(10))[0][0]).all()


@pytest.mark.parametrize("fields, message", [
    (dict(pool="eoss"), "TextTransformer.pool = 'eoss' is not one of .*Did you mean 'eos'"),
    (dict(heads=5), "width 16 does not divide into 5 heads"),
    (dict(pool="none", out_dim=4), "pool='none'"),
])
def test_a_bad_field_is_an_error_that_names_it(fields, message):
  with pytest.raises(ValueError, match=message):
    text(**fields)


def test_a_text_longer_than_the_positions_is_an_error():
  with pytest.raises(ValueError, match="9 tokens, but TextTransformer.length is 8"):
    text().init(jax.random.key(0), jnp.zeros((1, 9), jnp.int32))
