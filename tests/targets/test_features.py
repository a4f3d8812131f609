"""Features of a frozen teacher: which, at which size, normalised how, and what guides a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.aligner import Aligner
from mmjax.models.vit import ViT
from mmjax.targets.features import Features

GRID = (2, 3)
VIT = dict(patch=8, width=16, depth=3, heads=2, pool="mean", position="sincos", class_token=True,
           out_dim=5)


@pytest.fixture(scope="module")
def batch():
  return {"image": jax.random.normal(jax.random.key(0), (2, 16, 24, 3))}


@pytest.fixture(scope="module")
def state(batch):
  shapes = jax.eval_shape(lambda: Features(ViT(**VIT)).init(jax.random.key(1), batch))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.25).astype(np.float32),
                      _unboxed(shapes))


@pytest.fixture(scope="module")
def whole(state, batch):
  """What the teacher itself says of the batch."""
  want = ("tokens", "layer/0", "layer/2", "attention/2")
  pooled, found = jax.jit(lambda: ViT(**VIT).apply({"params": state["teacher"]}, batch["image"], want=want))()
  return {name: np.asarray(x) for name, x in {**found, "pooled": pooled}.items()}


def _unboxed(tree):
  return jax.tree.map(lambda x: x.unbox(), tree, is_leaf=lambda x: hasattr(x, "unbox"))


def run(state, batch, guide=None, vit=None, grid=GRID, **fields):
  target = Features(ViT(**{**VIT, **(vit or {})}), **fields)
  found, guide = jax.jit(lambda: target(state, batch, grid, guide))()
  assert found.shape == (2, 6, target.size(batch, grid)) and found.dtype == np.float32
  return np.asarray(found), guide


def standardised(x):
  return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)


def test_each_token_is_normalised_and_several_layers_stand_beside_each_other(state, batch, whole):
  last, _ = run(state, batch)
  np.testing.assert_allclose(last, standardised(whole["tokens"]), atol=2e-5)
  raw, _ = run(state, batch, normalise=False)
  np.testing.assert_allclose(raw, whole["tokens"], atol=2e-5)
  both, _ = run(state, batch, layers=(0, -1))
  beside = [standardised(whole[name][:, 1:]) for name in ("layer/0", "layer/2")]
  np.testing.assert_allclose(both, np.concatenate(beside, -1), atol=2e-5)


def test_projected_tokens_have_the_pooled_image_as_their_mean(state, batch, whole):
  """Since pooling by the mean and a linear projection commute."""
  tokens, _ = run(state, batch, project=True, normalise=False)
  np.testing.assert_allclose(tokens.mean(1), whole["pooled"], atol=2e-5)


def test_the_guide_is_the_class_tokens_attention_in_the_last_block(state, batch, whole):
  _, guide = run(state, batch, guide="attention")
  weights = whole["attention/2"]
  np.testing.assert_allclose(guide, weights.mean(1)[:, 0, 1:], atol=1e-6)
  np.testing.assert_allclose(guide.sum(1) + weights.mean(1)[:, 0, 0], 1, atol=1e-5)


def test_a_teacher_of_other_patches_sees_the_image_at_another_size(state, batch):
  """Blank images look the same at any size: those of 8 x 12 pixels are what patches of 4 see."""
  smaller = {**state["teacher"], "patch_embed": {
      "kernel": state["teacher"]["patch_embed"]["kernel"][:4, :4],
      "bias": state["teacher"]["patch_embed"]["bias"]}}
  blank = jnp.full((2, 16, 24, 3), 0.3)
  found, _ = run({"teacher": smaller}, {"image": blank}, vit={"patch": 4})
  vit = ViT(**{**VIT, "patch": 4})
  _, want = jax.jit(lambda: vit.apply({"params": smaller}, blank[:, :8, :12], want=("tokens",)))()
  np.testing.assert_allclose(found, standardised(np.asarray(want["tokens"])), atol=1e-4)


@pytest.mark.parametrize("vit, fields, guide, message", [
    ({}, {"layers": (3,)}, None, r"layers: expected numbers of the teacher's 3 blocks"),
    ({}, {"layers": ()}, None, r"layers: expected"),
    ({"out_dim": None}, {"project": True}, None, r"project: .* teacher\.out_dim=None"),
    ({}, {"project": True, "layers": (0,)}, None, r"project: .* layers=\(0,\)"),
    ({"class_token": False}, {}, "attention", r"target\.teacher\.class_token: there is none"),
    ({}, {}, "text", r"target: a teacher of images has no text"),
    ({"position": "learned", "grid": (2, 2)}, {}, None, r"target\.teacher\.grid: .* 2x2 .* 2x3"),
    ({"patch": (2, 8, 8)}, {}, None, r"target\.teacher\.patch: \(2, 8, 8\)"),
])
def test_a_teacher_that_does_not_fit_is_named_by_its_key(batch, state, vit, fields, guide, message):
  with pytest.raises(ValueError, match=message):
    target = Features(ViT(**{**VIT, **vit}), **fields)
    target(state, batch, GRID, guide)


def test_images_given_as_patches_are_refused():
  with pytest.raises(ValueError, match=r"images of one size .* not \[2, 6, 8, 8, 3\]"):
    Features(ViT(**VIT)).size({"image": jnp.zeros((2, 6, 8, 8, 3))}, GRID)


def test_the_aligner_mixes_the_students_blocks_before_each_head():
  rng = np.random.default_rng(0)
  features = {"tokens": rng.normal(size=(2, 4, 6)), **{
      f"layer/{i}": rng.normal(size=(2, 5, 6)).astype(np.float32) for i in (0, 1, 2)}}
  aligner = Aligner(layers=(0, 1, 2), outputs=2, width=3)
  assert aligner.want == ("layer/0", "layer/1", "layer/2")
  params = _unboxed(aligner.init(jax.random.key(0), features, None, None)["params"])
  np.testing.assert_allclose(params["mixing"], [[.01, 1.01, .01], [.01, .01, 1.01]], rtol=1e-6)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)
  blocks = np.stack([features[name][:, 1:] for name in aligner.want])
  want = [np.tensordot(params["mixing"][j], blocks, 1) @ params[f"head_{j}"]["kernel"]
          + params[f"head_{j}"]["bias"] for j in range(2)]
  np.testing.assert_allclose(aligner.apply({"params": params}, features, None, None),
                             np.concatenate(want, -1), atol=1e-4)
  with pytest.raises(ValueError, match=r"Aligner\.outputs = 4"):
    Aligner(layers=(0, 1, 2), outputs=4, width=3)
