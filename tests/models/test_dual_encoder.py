"""Dual encoder: its features, the parameters' names and dtypes, eight devices against one."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from mmjax.models.dual_encoder import DualEncoder, unit
from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT
from mmjax.parallel import mesh as mesh_lib

IMAGE = jax.random.normal(jax.random.key(0), (8, 16, 16, 3))
TEXT = jax.random.randint(jax.random.key(1), (8, 6), 0, 10)
MASK = jnp.arange(6) < jnp.arange(8)[:, None]  # the first row has no token at all
LOGICAL_AXES = {"embed", "mlp", "heads", "kv", "vocab", "layers", "norm", "position", "rows", "columns", "token",
                "patch_height", "patch_width", "channels", "joint", "classes"}


def _model(dtype="float32", out_dim=12, **fields):
  trunk = dict(width=16, depth=2, heads=2, out_dim=out_dim, dtype=dtype, qk_norm=True,
               layer_scale=0.5, drop_path=0.2)
  image = ViT(patch=8, grid=(2, 2), class_token=True, class_position=True, registers=2, classes=3,
              rep_dim=16, activation="swiglu", **trunk)
  return DualEncoder(image, TextTransformer(vocab=10, length=8, out_bias=True, **trunk), **fields)


@functools.cache
def _init(model):
  return jax.jit(model.init)(jax.random.key(2), IMAGE, TEXT)["params"]


@functools.partial(jax.jit, static_argnums=0, static_argnames="want")
def _apply(model, params, image=None, text=None, mask=None, want=()):
  return model.apply({"params": params}, image, text, mask, want=want)


def test_every_parameter_names_all_its_axes():
  params = _init(_model())
  leaves = jax.tree.leaves(params, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  for leaf in leaves:
    assert isinstance(leaf, nn.LogicallyPartitioned)
    assert len(leaf.names) == leaf.value.ndim and set(leaf.names) <= LOGICAL_AXES
  specs = nn.get_partition_spec(params)
  trunk = jax.tree.leaves([specs[tower]["trunk"] for tower in ("image", "text")],
                          is_leaf=lambda x: isinstance(x, P))
  assert trunk and all(spec[0] == "layers" for spec in trunk)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_are_float32_and_nothing_is_weakly_typed(dtype):
  model = _model(dtype)
  params = _init(model)
  features = jax.eval_shape(lambda p: _apply(model, p, IMAGE, TEXT, MASK), params)
  for leaf in jax.tree.leaves((nn.unbox(params), features)):
    assert leaf.dtype == jnp.float32 and not leaf.weak_type


def test_bfloat16_computes_in_bfloat16_and_normalises_in_float32():
  model, exact = _model("bfloat16"), _model()
  params = nn.unbox(_init(model))
  want = ("image/layer/1", "text/layer/0", "text/tokens")
  features = _apply(model, params, IMAGE, TEXT, want=want)
  assert all(features[name].dtype == jnp.bfloat16 for name in want)
  text = str(jax.make_jaxpr(lambda p: model.apply({"params": p}, IMAGE, TEXT))(params))
  assert "rsqrt" in text and not any("bf16" in line and " rsqrt " in line
                                     for line in text.splitlines())
  reference = _apply(exact, params, IMAGE, TEXT)
  for name in ("image/embed", "text/embed"):  # 8 bits of mantissa, a few layers
    np.testing.assert_allclose(features[name], reference[name], atol=0.05)


def test_embeddings_are_unit_vectors_and_scale_is_exponentiated():
  model = _model(scale_init=7.0, bias_init=-3.0)
  features = _apply(model, _init(model), IMAGE, TEXT, MASK, want=("image/pooled",))
  assert sorted(features) == ["image/embed", "image/logits", "image/pooled", "logit_bias",
                              "logit_scale", "text/embed"]
  for name in ("image/embed", "text/embed"):
    np.testing.assert_allclose(jnp.linalg.norm(features[name], axis=-1), 1, atol=1e-5)
  np.testing.assert_allclose(features["logit_scale"], 7, rtol=1e-6)
  assert features["logit_bias"] == -3 and features["logit_bias"].shape == ()
  np.testing.assert_allclose(unit(features["image/pooled"]), features["image/embed"], atol=1e-6)


def test_a_modality_that_is_absent_is_left_out():
  model = _model()
  params = _init(model)
  both = _apply(model, params, IMAGE, TEXT, MASK)
  image = _apply(model, params, IMAGE, want=("text/tokens",))
  text = _apply(model, params, text=TEXT, mask=MASK)
  assert sorted(image) == ["image/embed", "image/logits", "logit_bias", "logit_scale"]
  assert sorted(text) == ["logit_bias", "logit_scale", "text/embed"]
  np.testing.assert_allclose(image["image/embed"], both["image/embed"], atol=1e-6)
  np.testing.assert_allclose(text["text/embed"], both["text/embed"], atol=1e-6)


def test_no_bias_and_a_bounded_scale():
  model = _model(scale_init=50.0, scale_max=20.0, bias_init=None)
  params = _init(model)
  assert "logit_bias" not in params
  features = _apply(model, params, IMAGE)
  assert "logit_bias" not in features and features["logit_scale"] == 20


def test_zero_vector_has_a_finite_gradient():
  assert np.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros((1, 4)))).all()


def _shapes(model, want=()):
  """Traces the model without computing anything."""
  return jax.eval_shape(functools.partial(model.init, want=want), jax.random.key(0), IMAGE, TEXT)


@pytest.mark.parametrize("make, message", [
    (lambda: _model(scale_init=0.0), "scale_init = 0.0 must be positive"),
    (lambda: _shapes(_model(), want=("tokens",)), "begin with 'image/'"),
    (lambda: _shapes(_model(), want=("text/token",)), "Did you mean 'tokens'"),
    (lambda: _shapes(DualEncoder(ViT(8, 16, 1, 2, position="sincos"),
                                 TextTransformer(10, 8, 32, 1, 2))),
     "image embedding has width 16, the text embedding 32"),
])
def test_a_mistake_is_an_error_that_names_it(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.slow  # tests/parallel/test_recipes_sharded.py has quick ones
def test_eight_devices_equal_one():
  """Parameters split in four by `embed`, rows in eight; with drop-path; values and gradients."""
  model = _model()
  boxed = _init(model)
  params, keys = nn.unbox(boxed), jax.random.split(jax.random.key(3), 8)

  def loss(params, image, text, mask, keys):
    features = model.apply({"params": params}, image, text, mask, keys=keys, train=True)
    logits = features["logit_scale"] * features["image/embed"] @ features["text/embed"].T
    return jnp.mean(jnp.sin(logits)), features

  def run(*args):
    return jax.jit(jax.value_and_grad(loss, has_aux=True))(*args)

  want = run(params, IMAGE, TEXT, MASK, keys)
  mesh = mesh_lib.make_mesh(data=2, fsdp=4)
  with mesh_lib.use(mesh):
    shardings, _ = mesh_lib.tree_shardings(mesh, None, boxed)
    rows = mesh_lib.batch_sharding(mesh)
    got = run(jax.device_put(params, shardings),
              *jax.device_put((IMAGE, TEXT, MASK, keys), rows))
  (_, features), grads = got
  assert features["image/embed"].sharding.spec[0] == ("data", "fsdp")
  np.testing.assert_allclose(got[0][0], want[0][0], atol=1e-5)
  for name, value in want[0][1].items():
    np.testing.assert_allclose(features[name], value, atol=1e-5, err_msg=name)
  # Float32 sums in another order: relative to the largest element, and absolute below one.
  jax.tree.map(lambda g, w: np.testing.assert_allclose(
      g, w, rtol=0, atol=1e-5 * max(1, np.abs(w).max())), grads, want[1])
