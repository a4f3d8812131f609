"""Features of a frozen teacher: which, at which size, normalised how, and what guides a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.masking.text_guided import TextGuided
from mmjax.models.aligner import Aligner
from mmjax.models.dual_encoder import DualEncoder
from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT
from mmjax.targets.features import Features

GRID = (2, 3)
VIT = dict(patch=8, width=16, depth=3, heads=2, pool="mean", position="sincos", class_token=True,
           out_dim=5)
TEXT = dict(vocab=20, length=6, width=8, depth=1, heads=2, out_dim=5)


@pytest.fixture(scope="module")
def batch():
  text = np.array([[3, 4, 5, 0], [6, 7, 8, 9]], np.int32)
  return {"image": jax.random.normal(jax.random.key(0), (2, 16, 24, 3)), "text": text,
          "text_mask": text > 0}


@pytest.fixture(scope="module")
def state(batch):
  return drawn(Features(ViT(**VIT), text=TextTransformer(**TEXT)), batch)


def drawn(target, batch):
  """A state of random weights, all far from zero."""
  shapes = jax.eval_shape(lambda: target.init(jax.random.key(1), batch))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda x: jnp.float32(rng.normal(size=x.shape, scale=0.25)), _unboxed(shapes))


@pytest.fixture(scope="module")
def whole(state, batch):
  """What the teacher itself says of the batch."""
  want = ("tokens", "layer/0", "layer/2", "attention/2")
  pooled, found = jax.jit(lambda: ViT(**VIT).apply({"params": state["teacher"]}, batch["image"], want=want))()
  return {name: np.asarray(x) for name, x in {**found, "pooled": pooled}.items()}


def _unboxed(tree):
  return jax.tree.map(lambda x: x.unbox(), tree, is_leaf=lambda x: hasattr(x, "unbox"))


def run(state, batch, guide=None, vit=None, grid=GRID, **fields):
  text = TextTransformer(**TEXT) if guide == "text" else None
  target = Features(ViT(**{**VIT, **(vit or {})}), text=text, **fields)
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


def test_the_guide_of_a_text_is_the_cosine_of_each_projected_patch_with_it(state, batch, whole):
  """By hand; whatever the target is, so also of several layers."""
  _, guide = run(state, batch, guide="text", layers=(0, 1))
  texts, _ = jax.jit(lambda: TextTransformer(**TEXT).apply(
      {"params": state["text"]}, batch["text"], batch["text_mask"]))()
  patches = np.float64(whole["tokens"]) @ state["teacher"]["projection"]["kernel"]
  length = np.linalg.norm(patches, axis=-1) * np.linalg.norm(texts, axis=-1)[:, None]
  np.testing.assert_allclose(guide, np.einsum("bnd,bd->bn", patches, texts) / length, atol=1e-5)


@pytest.mark.parametrize("vit", [{"pool": "mean"}, {"pool": "map"}, {"pool": "map", "out_dim": None}])
def test_a_patch_that_is_all_of_a_picture_is_as_close_to_a_text_as_the_dual_encoder_says(batch, vit):
  """For both pools that read no class token: CLIP-like and SigLIP's, which has no projection."""
  vit = ViT(**{**VIT, **vit})
  text = TextTransformer(**{**TEXT, "out_dim": vit.out_dim or vit.width})
  target, one = Features(vit, text=text), {**batch, "image": batch["image"][:, :8, :8]}
  state = drawn(target, one)
  _, guide = jax.jit(lambda: target(state, one, (1, 1), "text"))()
  model = DualEncoder(vit, text)
  params = {"image": state["teacher"], "text": state["text"], "logit_scale": 0.0, "logit_bias": 0.0}
  both = jax.jit(lambda: model.apply({"params": params}, one["image"], one["text"], one["text_mask"]))()
  want = (both["image/embed"] * both["text/embed"]).sum(-1)
  np.testing.assert_allclose(guide[:, 0], want, atol=1e-5)
  assert np.abs(want).max() > 0.05


def test_another_caption_masks_other_patches_of_the_same_picture(state, batch):
  """And the same caption the same ones, however it is padded; as many with each."""
  same = {"image": jnp.tile(batch["image"][:1], (3, 1, 1, 1)),
          "text": np.array([[3, 4, 5, 0], [3, 4, 5, 1], [15, 2, 19, 0]], np.int32),
          "text_mask": np.array([[1, 1, 1, 0]] * 3, bool)}
  target = Features(ViT(**VIT), text=TextTransformer(**TEXT))
  keys = jax.random.split(jax.random.key(0), 3)
  mask = jax.jit(lambda: TextGuided(0.5)(keys, GRID, target(state, same, GRID, "text")[1]))()
  assert mask.drop.shape == (3, 3)
  np.testing.assert_array_equal(mask.drop[0], mask.drop[1])
  assert (mask.drop[0] != mask.drop[2]).any()


def test_only_a_teacher_with_a_text_tower_has_one_in_its_state(state, batch):
  alone = jax.eval_shape(lambda: Features(ViT(**VIT)).init(jax.random.key(1), {"image": batch["image"]}))
  assert set(alone) == {"teacher"} and set(state) == {"teacher", "text"}


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
    ({}, {}, "text", r"target\.text: is missing, and the mask goes by the text"),
    ({}, {}, "loss", r"target: a teacher has no loss for the mask"),
    ({"pool": "cls_mean"}, {"text": TEXT}, "text", r"text: .* not pool='cls_mean', rep_dim=None"),
    ({"rep_dim": 4}, {"text": TEXT}, "text", r"text: .* no rep_dim, not pool='mean', rep_dim=4"),
    ({}, {"text": {**TEXT, "out_dim": 6}}, "text", r"text\.out_dim: texts have 6 .* pictures 5"),
    ({}, {"text": {**TEXT, "length": 3}}, "text",
     r"target\.text\.length: 3 positions for captions of 4 tokens"),
    ({"position": "learned", "grid": (2, 2)}, {}, None, r"target\.teacher\.grid: .* 2x2 .* 2x3"),
    ({"patch": (2, 8, 8)}, {}, None, r"target\.teacher\.patch: \(2, 8, 8\)"),
])
def test_a_teacher_that_does_not_fit_is_named_by_its_key(batch, state, vit, fields, guide, message):
  fields = {key: TextTransformer(**x) if key == "text" else x for key, x in fields.items()}
  with pytest.raises(ValueError, match=message) as error:
    target = Features(ViT(**{**VIT, **vit}), **fields)
    target(state, batch, GRID, guide)
  assert "\n" not in str(error.value)


def test_records_without_a_caption_are_refused_before_the_first_step(batch):
  with pytest.raises(ValueError, match=r"target\.text: the batch has no tokens `text`"):
    Features(ViT(**VIT), text=TextTransformer(**TEXT)).init(
        jax.random.key(0), {"image": batch["image"]})


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
