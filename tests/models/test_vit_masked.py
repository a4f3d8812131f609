"""What masked and self-distilled pretraining asks of ViT: mask token, videos, attention weights."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.vit import ViT
from mmjax.nn.positions import sincos, sincos_2d

IMAGE = jax.random.normal(jax.random.key(0), (2, 16, 24, 3))      # 2 x 3 patches
VIDEO = jax.random.normal(jax.random.key(0), (2, 4, 16, 8, 3))    # 2 x 2 x 1 patches of 2 frames
vit = functools.partial(ViT, patch=8, width=16, depth=2, heads=2, pool="mean")


pytestmark = pytest.mark.usefixtures("quick_compilation")


def random_params(model, x):
  params = nn.unbox(jax.jit(model.init)(jax.random.key(1), x))["params"]
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(2), len(leaves))
  return jax.tree.unflatten(
      tree, [leaf + 0.1 * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves)])


@pytest.fixture(scope="module")
def masking_vit():
  model = vit(position="learned", grid=(2, 3), mask_token=True, class_token=True)
  return model, random_params(model, IMAGE)


def test_masked_patches_are_not_seen_but_their_positions_are(masking_vit):
  model, params = masking_vit
  masked = jnp.array([[True, False, True, False, False, False], [False] * 5 + [True]])
  run = jax.jit(lambda image, masked: model.apply({"params": params}, image, masked=masked,
                                                  want=("tokens",)))
  gradient = jax.grad(lambda image: jnp.sum(run(image, masked)[0] ** 2))(IMAGE)
  gradient = np.abs(gradient).reshape(2, 2, 8, 3, 8, 3).max(axis=(2, 4, 5)).reshape(2, 6)
  assert (gradient[masked] == 0).all() and (gradient[~masked] > 0).all()
  tokens = run(IMAGE, masked)[1]["tokens"]
  assert np.abs(tokens[0, 0] - tokens[0, 2]).max() > 1e-3  # two mask tokens in two places


def test_the_mask_token_changes_nothing_where_nothing_is_masked(masking_vit):
  model, params = masking_vit
  plain = {name: p for name, p in params.items() if name != "mask_token"}
  got, _ = model.apply({"params": params}, IMAGE, masked=jnp.zeros((2, 6), bool))
  want, _ = model.clone(mask_token=False).apply({"params": plain}, IMAGE)
  np.testing.assert_allclose(got, want, atol=1e-6)
  with pytest.raises(ValueError, match="need ViT.mask_token=True"):
    model.clone(mask_token=False).apply({"params": plain}, IMAGE, masked=jnp.zeros((2, 6), bool))


def test_attention_weights_are_those_that_the_block_uses():
  """Of NumPy in float64 from the block's input; "attention" is the last block's."""
  model = vit(position="none", class_token=True, layer_scale=0.5, final_norm=False)
  params = random_params(model, IMAGE)
  want = ("layer/0", "attention", "attention/0", "attention/1")
  _, found = jax.jit(lambda: model.apply({"params": params}, IMAGE, want=want))()
  block = jax.tree.map(lambda p: np.asarray(p[1], np.float64), params["trunk"]["layers"])
  x = np.asarray(found["layer/0"], np.float64)
  x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  x = x * block["attention_norm"]["scale"] + block["attention_norm"]["bias"]
  q, k = (np.einsum("bld,dhe->bhle", x, block["attention"][name]["kernel"])
          + block["attention"][name]["bias"][:, None] for name in ("query", "key"))
  logits = q @ k.swapaxes(2, 3) / np.sqrt(8)
  weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(found["attention"], weights, atol=1e-5)
  np.testing.assert_array_equal(found["attention"], found["attention/1"])
  assert found["attention/0"].shape == (2, 2, 7, 7)
  assert np.abs(found["attention/0"] - found["attention/1"]).max() > 1e-3
  assert found["attention"].dtype == jnp.float32
  with pytest.raises(ValueError, match="'attention/2' is not one of"):
    model.apply({"params": params}, IMAGE, want=("attention/2",))


@pytest.mark.parametrize("fields", [
    dict(position="learned", grid=(2, 2, 1)),
    pytest.param(dict(position="sincos"), marks=pytest.mark.slow)])
def test_videos_are_encoded_in_space_time_patches(fields):
  """Frames, rows and columns are told apart, and a dropped patch has no influence."""
  model = vit(patch=(2, 8, 8), **fields)
  params = random_params(model, VIDEO)
  keep = jnp.array([[0, 3], [1, 2]])
  run = jax.jit(lambda video, keep: model.apply({"params": params}, video, keep=keep)[0])
  gradient = jax.grad(lambda video: jnp.sum(run(video, keep) ** 2))(VIDEO)
  gradient = np.abs(gradient).reshape(2, 2, 2, 2, 8, 8, 3).max(axis=(2, 4, 5, 6)).reshape(2, 4)
  for row, kept in zip(gradient, keep):
    assert (row[kept] > 0).all() and (np.delete(row, kept) == 0).all()
  every = jnp.tile(jnp.arange(4), (2, 1))
  backwards = VIDEO.reshape(2, 2, 2, 16, 8, 3)[:, ::-1].reshape(VIDEO.shape)
  assert np.abs(run(VIDEO, every) - run(backwards, every)).max() > 1e-3


def test_positions_of_videos_are_a_sum_over_time_and_space():
  table = np.asarray(sincos((3, 2, 2), 8)).reshape(3, 4, 8)
  np.testing.assert_allclose(table - table[:1], (table - table[:1])[:, :1].repeat(4, 1), atol=1e-6)
  omega = 10000.0 ** -(np.arange(4) / 4)
  for frame in range(3):
    want = np.concatenate([np.sin(frame * omega), np.cos(frame * omega)])
    got = table[frame] - sincos_2d((2, 2), 8)
    np.testing.assert_allclose(got, np.tile(want, (4, 1)), atol=1e-6)


@pytest.mark.parametrize("fields, message", [
    (dict(patch=(2, 8, 8), position="rotary"), "'rotary' has no form for videos"),
    (dict(patch=(2, 8, 8), position="learned", grid=(2, 1)), "must both be of images"),
    (dict(position="learned", grid=(2, 2, 1)), "must both be of images"),
])
def test_settings_that_do_not_go_together_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    vit(**fields)


@pytest.mark.parametrize("shape, message", [
    ((1, 3, 16, 8, 3), "a video of 3x16x8 is not a whole number of patches of 2x8x8"),
    ((1, 16, 8, 3), r"Videos must be \[B, T, H, W, C\]"),
])
def test_a_video_that_does_not_fit_is_an_error(shape, message):
  with pytest.raises(ValueError, match=message):
    vit(patch=(2, 8, 8), position="sincos").grid_of(shape)
