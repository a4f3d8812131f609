"""The trunk: scanned or unrolled, rematerialised, random per row, read at any depth."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn.mlp import Mlp, quick_gelu
from mmjax.nn.transformer import REMAT_POLICIES, Transformer, drop_path, dropout

X = jax.random.normal(jax.random.key(0), (4, 6, 16))
KEYS = jax.random.split(jax.random.key(2), 4)
trunk = functools.partial(Transformer, depth=3, heads=2, mlp_dim=32)


@functools.cache
def _params(**fields):
  return nn.unbox(trunk(**fields).init(jax.random.key(1), X))


def _loss(module, params, **kwargs):
  return jnp.sum(jnp.sin(module.apply(params, X, **kwargs)[0]))


def _close(got, want):
  jax.tree.map(lambda g, w: np.testing.assert_allclose(g, w, rtol=1e-4, atol=1e-4), got, want)


def test_scanned_and_unrolled_have_the_same_parameters_and_gradients():
  scanned, unrolled = _params(scan=True), _params(scan=False)
  jax.tree.map(np.testing.assert_array_equal, scanned, unrolled)
  assert all(leaf.shape[0] == 3 for leaf in jax.tree.leaves(scanned))
  grads = [jax.jit(jax.grad(functools.partial(_loss, trunk(scan=scan))))(scanned)
           for scan in (True, False)]
  _close(*grads)


@pytest.mark.parametrize("scan", [True, False])
def test_only_the_scanned_trunk_has_a_loop(scan):
  program = jax.jit(jax.grad(functools.partial(_loss, trunk(scan=scan)))).lower(_params())
  assert ("stablehlo.while" in program.as_text()) == scan


@pytest.mark.parametrize("remat", ["full", *(
    pytest.param(name, marks=pytest.mark.slow) for name in sorted(set(REMAT_POLICIES) - {"none", "full"}))])
def test_remat_does_not_change_gradients(remat):
  kwargs = dict(keys=KEYS, train=True)
  fields = dict(drop_path=0.3, dropout=0.1, layer_scale=0.5)
  want = jax.jit(jax.grad(lambda p: _loss(trunk(**fields), p, **kwargs)))(_params(**fields))
  got = jax.jit(jax.grad(lambda p: _loss(trunk(remat=remat, **fields), p, **kwargs)))(
      _params(**fields))
  _close(got, want)


def test_remat_policies_store_as_much_as_their_names_say():
  def stored(remat):
    _, backward = jax.vjp(lambda p: _loss(trunk(remat=remat), p), _params())
    return sum(leaf.size for leaf in jax.tree.leaves(backward))

  sizes = [stored(name) for name in ("full", "branches", "dots_no_batch", "dots", "none")]
  assert sizes == sorted(sizes) and len(set(sizes)) == 5


def test_features_of_every_block_are_those_of_a_shallower_trunk():
  out, features = trunk().apply(_params(), X, want=("layer/0", "layer/2"))
  assert sorted(features) == ["layer/0", "layer/2"]
  first = jax.tree.map(lambda p: p[:1], _params())
  _close(features["layer/0"], trunk(depth=1).apply(first, X)[0])
  _close(features["layer/2"], out)


def test_features_that_are_not_wanted_cost_nothing():
  def size(want):
    return len(str(jax.make_jaxpr(lambda p: trunk().apply(p, X, want=want)[0])(_params())))
  assert size(()) < size(("layer/1",))
  assert trunk().apply(_params(), X)[1] == {}


def test_a_block_that_is_not_there_is_an_error():
  with pytest.raises(ValueError, match="layer/7.*the last of 3 blocks is layer/2"):
    trunk().apply(_params(), X, want=("layer/7",))


def test_drop_path_drops_whole_rows_and_keeps_the_mean():
  keys = jax.random.split(jax.random.key(0), 4000)
  y = drop_path(jnp.ones((4000, 2, 3)), 0.25, keys)
  assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
  assert (y == y[:, :1, :1]).all()
  assert abs(y.mean() - 1) < 4 * np.sqrt(0.25 / 0.75 / 4000)  # four standard errors


def test_dropout_drops_single_elements_and_keeps_the_mean():
  keys = jax.random.split(jax.random.key(0), 400)
  y = np.asarray(dropout(jnp.ones((400, 5, 4)), 0.25, keys))
  assert set(np.unique(y)) == {0.0, np.float32(1 / 0.75)}
  assert abs(y.mean() - 1) < 4 * np.sqrt(0.25 / 0.75 / y.size)  # four standard errors
  dropped = (y == 0).reshape(400, -1).astype(float)
  among = np.corrcoef(dropped.T)[np.triu_indices(20, 1)]
  assert np.abs(among).max() < 5 / np.sqrt(400)                 # elements are independent


@pytest.mark.parametrize("fields", [dict(drop_path=0.5), dict(dropout=0.5)])
def test_nothing_is_dropped_outside_of_training(fields):
  y = trunk(**fields).apply(_params(), X, keys=KEYS, train=False)[0]
  np.testing.assert_array_equal(y, trunk().apply(_params(), X)[0])


def test_drop_path_grows_linearly_with_depth():
  """With a rate near 1 the last block is dropped for (almost) all rows, the first for none."""
  module = trunk(drop_path=0.999)
  features = module.apply(_params(), X, keys=KEYS, train=True, want=("layer/0", "layer/1"))
  plain = trunk().apply(_params(), X, want=("layer/0",))[1]
  _close(features[1]["layer/0"], plain["layer/0"])
  _close(features[0], features[1]["layer/1"])


@pytest.mark.parametrize("fields", [dict(drop_path=0.5), dict(dropout=0.5)])
def test_randomness_belongs_to_the_row_and_not_to_its_place(fields):
  module, order = trunk(**fields), jnp.array([2, 0, 3, 1])
  y = module.apply(_params(), X, keys=KEYS, train=True)[0]
  moved = module.apply(_params(), X[order], keys=KEYS[order], train=True)[0]
  _close(moved, y[order])
  assert np.abs(module.apply(_params(), X)[0] - y).max() > 1e-2


def test_randomness_without_keys_is_an_error():
  with pytest.raises(ValueError, match="need `keys`"):
    trunk(dropout=0.1).apply(_params(), X, train=True)


def test_causal_trunk_does_not_look_ahead():
  later = X.at[:, 4:].set(0)
  y, z = (trunk(causal=True).apply(_params(), x)[0] for x in (X, later))
  _close(y[:, :4], z[:, :4])
  assert np.abs(y[:, 4:] - z[:, 4:]).max() > 1e-2


def test_swiglu_is_its_formula():
  mlp = Mlp(8, "swiglu")
  p = nn.unbox(mlp.init(jax.random.key(0), X))["params"]
  gate = X @ p["gate"]["kernel"] + p["gate"]["bias"]
  up = X @ p["up"]["kernel"] + p["up"]["bias"]
  want = (gate / (1 + jnp.exp(-gate)) * up) @ p["down"]["kernel"] + p["down"]["bias"]
  _close(mlp.apply({"params": p}, X), want)


def test_quick_gelu_is_its_formula():
  np.testing.assert_allclose(quick_gelu(X), X / (1 + np.exp(-1.702 * X)), atol=1e-6)


def test_unknown_activation_names_the_nearest():
  with pytest.raises(ValueError, match="Did you mean 'gelu_tanh'"):
    Mlp(8, "gelu_tan")
