"""ViT: its sequence, positions, pooling and heads. Reference values: `tests/conformance`."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.vit import ViT

IMAGE = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))  # 2 x 3 patches
vit = functools.partial(ViT, patch=8, width=16, depth=1, heads=2)
KEEP = jnp.array([[0, 2, 5], [1, 3, 4]])


def _init(model, image=IMAGE):
  """Parameters, all of them random: a zero would hide what it multiplies."""
  params = nn.unbox(jax.jit(model.init)(jax.random.key(1), image))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return jax.tree.unflatten(
      tree, [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])


@functools.partial(jax.jit, static_argnums=0, static_argnames="want")
def _apply(model, params, image, keep=None, want=()):
  return model.apply(params, image, keep=keep, want=want)


def _close(got, want, atol=1e-5):
  np.testing.assert_allclose(got, want, atol=atol)


@pytest.mark.parametrize("fields", [
    dict(position="learned", grid=(2, 3)), dict(position="sincos"), dict(position="rotary"),
    dict(position="sincos_endpoint"),
])
def test_kept_patches_keep_their_positions(fields):
  """The order of `keep` carries nothing, since position is added before; all is no dropping."""
  model = vit(pool="none", class_token=True, registers=2, **fields)
  params = _init(model)
  want = ("tokens", "prefix")
  apply = functools.partial(_apply, model, want=want)
  order = jnp.array([[5, 2, 0], [4, 3, 1]])
  _, kept = apply(params, IMAGE, keep=KEEP)
  _, moved = apply(params, IMAGE, keep=order)
  assert kept["tokens"].shape == (2, 3, 16) and kept["prefix"].shape == (2, 3, 16)
  _close(moved["tokens"][0, ::-1], kept["tokens"][0])
  _close(moved["prefix"], kept["prefix"])
  _, whole = apply(params, IMAGE)
  every = jnp.broadcast_to(jnp.arange(6), (2, 6))
  _, all_kept = apply(params, IMAGE, keep=every)
  _close(all_kept["tokens"], whole["tokens"])
  _, mirrored = apply(params, IMAGE, keep=every[:, ::-1])
  _close(mirrored["tokens"][:, ::-1], whole["tokens"])


def test_dropped_patches_have_no_influence_and_no_gradient():
  model = vit(position="sincos")
  params = _init(model)
  grad = jax.grad(lambda image: _apply(model, params, image, KEEP)[0].sum())(IMAGE)
  by_patch = np.abs(grad).reshape(2, 2, 8, 3, 8, 3).sum((2, 4, 5)).reshape(2, 6)
  for row, keep in zip(by_patch, KEEP):
    assert (row[keep] > 0).all() and (np.delete(row, keep) == 0).all()


def test_positions_follow_the_grid_of_any_aspect():
  """Swapping two patches changes the result; without positions it does not."""
  swapped = IMAGE.at[:, :8].set(IMAGE[:, 8:]).at[:, 8:].set(IMAGE[:, :8])
  for position in ("sincos", "sincos_endpoint", "rotary", "none"):
    model = vit(position=position, pool="mean")
    params = _init(model)
    change = np.abs(_apply(model, params, IMAGE)[0] - _apply(model, params, swapped)[0]).max()
    assert (change < 1e-5) == (position == "none"), position
    square = jnp.ones((1, 32, 16, 3))
    assert _apply(model, params, square)[0].shape == (1, 16)  # the same parameters, another aspect


def test_class_token_and_registers_precede_the_patches():
  model = vit(position="sincos", pool="cls", class_token=True, registers=3)
  params = _init(model)
  pooled, features = _apply(model, params, IMAGE, want=("prefix", "tokens", "layer/0"))
  assert features["prefix"].shape == (2, 4, 16) and features["tokens"].shape == (2, 6, 16)
  assert features["layer/0"].shape == (2, 10, 16)
  _close(pooled, features["prefix"][:, 0])


def test_mean_pooling_leaves_the_prefix_out():
  model = vit(position="sincos", pool="mean", class_token=True, registers=1)
  pooled, features = _apply(model, _init(model), IMAGE, want=("tokens",))
  _close(pooled, features["tokens"].mean(axis=1))


def test_a_fresh_classifier_says_nothing():
  model = vit(position="sincos", classes=5)
  _, features = _apply(model, jax.jit(model.init)(jax.random.key(0), IMAGE), IMAGE)
  np.testing.assert_array_equal(features["logits"], np.zeros((2, 5), np.float32))


def test_rep_and_projection_set_the_width_of_the_result():
  model = vit(position="sincos", rep_dim=12, out_dim=6, classes=5)
  params = _init(model)
  pooled, features = _apply(model, params, IMAGE)
  assert pooled.shape == (2, 6) and features["logits"].shape == (2, 5)
  assert "bias" not in params["params"]["projection"]


@pytest.mark.parametrize("fields, message", [
    (dict(heads=3), "width 16 does not divide into 3 heads"),
    (dict(pool="class"), "ViT.pool = 'class' is not one of .*Did you mean 'cls'"),
    (dict(position="sincos2d"), "Did you mean 'sincos'"),
    (dict(activation="gelu_tanhh"), "Did you mean 'gelu_tanh'"),
    (dict(remat="dot"), "Did you mean 'dots'"),
    (dict(dtype="bf16"), "'float32', 'bfloat16'"),
    (dict(position="learned"), "ViT.grid"),
    (dict(grid=(2, 3)), "ViT.grid"),
    (dict(pool="cls"), "class_token=True"),
    (dict(pool="none", classes=3), "pool='none'"),
    (dict(drop_path=1.0), "ViT.drop_path = 1.0 is not in"),
    (dict(depth=0), "ViT.depth = 0"),
])
def test_a_bad_field_is_an_error_that_names_it(fields, message):
  with pytest.raises(ValueError, match=message):
    vit(**{"position": "sincos", **fields})


@pytest.mark.parametrize("shape, message", [
    ((1, 16, 25, 3), "16x25 is not a whole number of patches of 8x8"),
    ((16, 24, 3), r"must be \[B, H, W, C\]"),
    ((1, 16, 16, 3), "2x2 patches, but ViT.grid declares learned positions for 2x3"),
])
def test_an_image_that_does_not_fit_is_an_error(shape, message):
  with pytest.raises(ValueError, match=message):
    vit(grid=(2, 3)).init(jax.random.key(0), jnp.ones(shape))


def test_an_unknown_feature_is_an_error():
  with pytest.raises(ValueError, match="'layer/1' is not one of .*Did you mean 'layer/"):
    vit(position="sincos").init(jax.random.key(0), IMAGE, want=("layer/1",))


def _as_patches(image, patch, length):
  """The patches of an image [H, W, C], padded with noise to `length`; their mask and grid."""
  rows, columns = image.shape[0] // patch, image.shape[1] // patch
  cut = image.reshape(rows, patch, columns, patch, -1).swapaxes(1, 2).reshape(rows * columns, patch, patch, -1)
  padded = np.random.default_rng(9).normal(size=(length, *cut.shape[1:])).astype(np.float32)
  padded[:len(cut)] = cut
  return padded, np.arange(length) < len(cut), np.array([rows, columns], np.int32)


@pytest.mark.parametrize("pool", ["map", "mean"])
def test_images_given_as_patches_are_encoded_as_images_are(pool):
  """Of several shapes in one batch, the padding filled with noise that must not be seen."""
  rng = np.random.default_rng(0)
  images = [rng.normal(size=size).astype(np.float32) for size in ((16, 24, 3), (24, 8, 3), (16, 16, 3))]
  model = ViT(patch=8, width=16, depth=2, heads=2, pool=pool, grid=(3, 3), resample="bilinear")
  params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 24, 24, 3)))
  apply = jax.jit(functools.partial(model.apply, params, want=("tokens",)))
  patches, mask, grid = (np.stack(part) for part in zip(*(_as_patches(x, 8, 7) for x in images)))
  pooled, features = apply(patches, image_mask=mask, image_grid=grid)
  for i, image in enumerate(images):
    want, one = apply(image[None])
    np.testing.assert_allclose(pooled[i], want[0], atol=2e-6)
    count = grid[i].prod()
    np.testing.assert_allclose(features["tokens"][i, :count], one["tokens"][0], atol=2e-6)

  def loss(patches):
    return jnp.sum(apply(patches, image_mask=mask, image_grid=grid)[0] ** 2)

  gradient = np.abs(jax.jit(jax.grad(loss))(patches)).max(axis=(2, 3, 4))
  assert (gradient[mask] > 0).all() and (gradient[~mask] == 0).all()


def test_patches_without_a_grid_or_of_another_size_are_refused():
  model = ViT(patch=8, width=16, depth=1, heads=2, grid=(2, 2))
  with pytest.raises(ValueError, match="need `image_grid`"):
    model.init(jax.random.key(0), jnp.zeros((1, 4, 8, 8, 3)))
  with pytest.raises(ValueError, match="Patches of 4x4 pixels, but ViT.patch is 8"):
    model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 4, 3)), image_grid=jnp.full((1, 2), 2))


def test_another_grid_needs_a_method():
  image = jnp.ones((1, 16, 32, 3))
  plain = ViT(patch=8, width=16, depth=1, heads=2, grid=(2, 2))
  params = jax.eval_shape(plain.init, jax.random.key(0), image[:, :, :16])
  with pytest.raises(ValueError, match="2x4 patches.*2x2.*ViT.resample"):
    jax.eval_shape(plain.apply, params, image)
  assert jax.eval_shape(plain.clone(resample="bicubic").apply, params, image)[0].shape == (1, 16)


def test_biases_by_choice():
  model = ViT(patch=8, width=16, depth=1, heads=2, pool="mean", position="rotary_unit",
              attention_bias="qv", mlp_bias=False)
  params = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((1, 16, 24, 3)))["params"]["trunk"]["layers"]
  assert {name: "bias" in leaf for name, leaf in params["attention"].items()} == {
      "query": True, "key": False, "value": True, "out": False}
  assert not any("bias" in leaf for leaf in params["mlp"].values())
