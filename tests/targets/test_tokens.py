"""Ids as targets, and the palette that makes them without training."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.palette import Palette
from mmjax.models.patch_aggregation import PatchAggregation
from mmjax.parallel import mesh as mesh_lib
from mmjax.targets.tokens import Tokens


@pytest.fixture
def image():
  return np.random.default_rng(0).uniform(-1, 1, (2, 8, 4, 3)).astype(np.float32)


def test_ids_are_the_nearest_colours_of_each_patchs_mean(image):
  levels = np.linspace(-1, 1, 4)
  palette = np.array([[r, g, b] for r in levels for g in levels for b in levels])
  mean = image.reshape(2, 2, 4, 1, 4, 3).mean(axis=(2, 4)).reshape(2, 2, 3)
  want = np.square(mean[:, :, None] - palette).sum(-1).argmin(-1)
  target = Tokens(Palette(patch=4, levels=4))
  ids, guide = target(target.init(jax.random.key(0), {"image": image}), {"image": image}, (2, 1))
  np.testing.assert_array_equal(ids, want)
  assert guide is None and target.size({"image": image}, (2, 1)) == 64
  picture = target.tokenizer.picture({}, ids, (2, 1))
  np.testing.assert_allclose(picture[:, ::4, ::4].reshape(2, 2, 3), palette[want], atol=1e-6)
  np.testing.assert_array_equal(target.tokenizer.ids({}, picture), want)


def test_trivial_loss_is_that_of_equal_probabilities():
  assert Tokens(Palette(levels=2)).trivial("cross_entropy") == pytest.approx(math.log(8))
  assert Tokens(Palette(levels=2)).trivial("l2") is None


def test_another_grid_or_a_guide_is_an_error_that_names_the_key(image):
  target = Tokens(Palette(patch=4))
  with pytest.raises(ValueError, match="target.tokenizer: makes 2x1 tokens .* encoder 4x2"):
    target({}, {"image": image}, (4, 2))
  with pytest.raises(ValueError, match="target.tokenizer: makes 2x1 tokens .* encoder 4x2"):
    target.size({"image": image}, (4, 2))  # what `Masked.init` asks, before the first step
  with pytest.raises(ValueError, match="target: tokens have no attention"):
    target({}, {"image": image}, (2, 1), "attention")
  with pytest.raises(ValueError, match="levels: must be at least 2, not 1"):
    Palette(levels=1)


def test_aggregation_reads_class_token_and_early_tokens_only():
  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.float32(rng.normal(size=shape))
  features = {"tokens": draw(1, 4, 8), "prefix": draw(1, 2, 8), "layer/1": draw(1, 6, 8)}
  module = PatchAggregation(width=8, layer=1, depth=1, heads=2)
  assert module.want == ("layer/1",)
  params = mesh_lib.unbox(jax.jit(module.init)(jax.random.key(0), features, None, (2, 2)))
  apply = jax.jit(lambda features: module.apply(params, features, None, (2, 2)))
  whole = apply(features)
  np.testing.assert_array_equal(whole["prediction"], features["tokens"])
  assert whole["aggregated"].shape == (1, 4, 8)
  late = apply({**features, "tokens": draw(1, 4, 8)})
  np.testing.assert_array_equal(late["aggregated"], whole["aggregated"])
  for name in ("prefix", "layer/1"):
    other = apply({**features, name: draw(*features[name].shape)})
    assert np.abs(other["aggregated"] - whole["aggregated"]).max() > 1e-3
