"""Models against public implementations: `tests/data/conformance/{hf,big_vision}_*.npz`.

The values are those of Hugging Face transformers (torch) and big_vision (JAX), float32 on a CPU,
random weights. Bars: of the reference's largest entry, 1e-5 forward and 1e-4 for gradients, which
is what float32 leaves after a few layers; the Hugging Face files allow 2e-5 + 1e-5 * |value|.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.dual_encoder import DualEncoder
from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT
from tests.conformance import mapping

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "conformance"


def _case(name):
  with np.load(FOLDER / f"{name}.npz") as data:
    case = {key: data[key] for key in data}
  return case, json.loads(str(case.pop("meta")))


def _forward_close(got, want):
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def _grads_close(got, want):
  """Trees of the same structure; each leaf's bar is of its own largest entry."""
  def check(path, g, w):
    assert g.shape == w.shape, jax.tree_util.keystr(path)
    # A key's bias has no gradient in exact arithmetic: both values are rounding errors.
    atol = max(1e-4 * np.abs(w).max(), 1e-6)
    np.testing.assert_allclose(g, w, rtol=0, atol=atol, err_msg=jax.tree_util.keystr(path))
  jax.tree_util.tree_map_with_path(check, got, want)


def _nhwc(case):
  return jnp.asarray(case["in/pixel_values"].transpose(0, 2, 3, 1))


def _softmax_loss(logits):
  """(CE(text) + CE(image)) / 2, as CLIP."""
  def one(z):
    return -jnp.mean(jnp.diagonal(jax.nn.log_softmax(z, axis=-1)))
  return (one(logits) + one(logits.T)) / 2


def _sigmoid_loss(logits):
  z = 2 * jnp.eye(len(logits)) - 1
  return -jnp.mean(jnp.sum(jax.nn.log_sigmoid(z * logits), axis=-1))


def _logits(features):
  logits = features["logit_scale"] * features["image/embed"] @ features["text/embed"].T
  return logits + features.get("logit_bias", 0.0)


def _dual(model, params, image, text, mask, loss, want=()):
  """(loss, features), gradients."""
  def forward(params):
    features = model.apply({"params": params}, image, text, mask, want=want)
    return loss(_logits(features)), features
  return jax.jit(jax.value_and_grad(forward, has_aux=True))(params)


CLIP = {  # case: (image, text, projection)
    "hf_clip_gelu": (
        dict(width=32, depth=2, heads=4, mlp_dim=64, grid=(4, 4), activation="gelu"),
        dict(vocab=99, length=12, width=24, depth=2, heads=3, mlp_dim=48, activation="gelu",
             eos_id=98), 20),
    "hf_clip_quick_gelu": (
        dict(width=32, depth=2, heads=4, mlp_dim=48, grid=(3, 3), activation="quick_gelu"),
        dict(vocab=60, length=10, width=24, depth=3, heads=2, mlp_dim=40, activation="quick_gelu",
             eos_id=None), 16),
}


@pytest.mark.parametrize("name, scan", [("hf_clip_gelu", True), ("hf_clip_quick_gelu", False)])
def test_clip_equals_hugging_face(name, scan):
  case, _ = _case(name)
  image, text, out_dim = CLIP[name]
  common = dict(norm_eps=1e-5, out_dim=out_dim, scan=scan)
  model = DualEncoder(
      ViT(patch=8, class_token=True, class_position=True, pool="cls", pre_norm=True,
          patch_bias=False, **image, **common),
      TextTransformer(causal=True, pool="eos", **text, **common), bias_init=None)
  sizes = [(tower["depth"], tower["heads"]) for tower in (image, text)]
  params = mapping.hf_clip(mapping.under(case, "par/"), *sizes)
  mask = case["in/attention_mask"] > 0 if "in/attention_mask" in case else None
  last = f"image/layer/{image['depth'] - 1}"
  (loss, features), grads = _dual(model, params, _nhwc(case), case["in/input_ids"], mask,
                                  _softmax_loss, (last, "text/tokens", "image/pooled"))
  _forward_close(features["image/embed"], case["out/image_embeds"])
  _forward_close(features["text/embed"], case["out/text_embeds"])
  _forward_close(_logits(features), case["out/logits_per_image"])
  _forward_close(loss, case["out/loss"])
  if name == "hf_clip_gelu":
    _forward_close(features[last], case["out/vision_last_hidden"])
    _forward_close(features["text/tokens"], case["out/text_last_hidden"])
    _forward_close(features["image/pooled"], case["out/vision_pooled"])
  _grads_close(grads, mapping.hf_clip(mapping.under(case, "grad/"), *sizes))


def test_siglip_equals_hugging_face():
  case, _ = _case("hf_siglip")
  model = DualEncoder(
      ViT(patch=8, width=32, depth=2, heads=4, mlp_dim=64, grid=(4, 4)),
      TextTransformer(vocab=99, length=12, width=32, depth=2, heads=4, mlp_dim=48, out_dim=32,
                      out_bias=True))
  params = mapping.hf_siglip(mapping.under(case, "par/"), (2, 4), (2, 4))
  (loss, features), grads = _dual(model, params, _nhwc(case), case["in/input_ids"], None,
                                  _sigmoid_loss, ("image/tokens", "text/tokens"))
  _forward_close(features["image/embed"], case["out/image_embeds"])
  _forward_close(features["text/embed"], case["out/text_embeds"])
  _forward_close(features["image/tokens"], case["out/vision_last_hidden"])
  _forward_close(features["text/tokens"], case["out/text_last_hidden"])
  _forward_close(_logits(features), case["out/logits_per_image"])
  _forward_close(loss, case["out/loss"])
  _grads_close(grads, mapping.hf_siglip(mapping.under(case, "grad/"), (2, 4), (2, 4)))


DINOV2 = {
    "hf_dinov2_reg": dict(heads=4, mlp_dim=64, registers=3, grid=(4, 4), activation="gelu"),
    # int(64 * 2 / 3) up to a multiple of 8
    "hf_dinov2_swiglu": dict(heads=2, mlp_dim=48, registers=2, grid=(3, 3), activation="swiglu"),
}


@pytest.mark.parametrize("name", DINOV2)
def test_dinov2_with_registers_equals_hugging_face(name):
  case, _ = _case(name)
  model = ViT(patch=8, width=32, depth=2, class_token=True, class_position=True, pool="cls",
              layer_scale=1.0, **DINOV2[name])
  heads = DINOV2[name]["heads"]

  def forward(params):
    pooled, features = model.apply({"params": params}, _nhwc(case), want=("prefix", "tokens"))
    hidden = jnp.concatenate([features["prefix"], features["tokens"]], axis=1)
    return jnp.mean(jnp.square(hidden)), (pooled, hidden)

  params = mapping.hf_dinov2(mapping.under(case, "par/"), 2, heads)
  (_, (pooled, hidden)), grads = jax.jit(jax.value_and_grad(forward, has_aux=True))(params)
  _forward_close(hidden, case["out/last_hidden_state"])
  _forward_close(pooled, case["out/pooler_output"])
  _grads_close(grads, mapping.hf_dinov2(mapping.under(case, "grad/"), 2, heads))


def test_two_towers_equal_big_vision():
  case, _ = _case("big_vision_two_towers_siglip")
  trunk = dict(width=16, depth=2, heads=2, mlp_dim=32)
  model = DualEncoder(
      ViT(patch=8, grid=(4, 4), **trunk),
      TextTransformer(vocab=50, length=8, out_dim=16, out_bias=True, **trunk))
  params = mapping.big_vision_two_towers(mapping.under(case, "params/"), 2)
  (loss, features), grads = _dual(model, params, case["in/image"], case["in/labels"], None,
                                  _sigmoid_loss)
  _forward_close(features["image/embed"], case["out/zimg"])
  _forward_close(features["text/embed"], case["out/ztxt"])
  _forward_close(features["logit_scale"], case["out/t"].reshape(()))
  _forward_close(loss, case["out/siglip_loss"])
  _grads_close(grads, mapping.big_vision_two_towers(mapping.under(case, "grads/"), 2))


def test_vit_with_attention_pooling_equals_big_vision():
  case, _ = _case("big_vision_vit_map_learn")
  model = ViT(patch=8, width=16, depth=2, heads=2, mlp_dim=32, grid=(4, 4), classes=7)
  params = mapping.big_vision_vit(mapping.under(case, "params/"), 2)

  def forward(params):
    pooled, features = model.apply({"params": params}, case["in/image"],
                                   want=("tokens", "layer/0", "layer/1"))
    # The file does not name its loss: cross entropy with the labels 0, 1, 2, 3 gives its gradients.
    loss = -jnp.mean(jnp.diagonal(jax.nn.log_softmax(features["logits"])))
    return loss, (pooled, features)

  (_, (pooled, features)), grads = jax.jit(jax.value_and_grad(forward, has_aux=True))(params)
  _forward_close(features["layer/0"], case["out/encoder/block00/+mlp"])
  _forward_close(features["layer/1"], case["out/encoder/block01/+mlp"])
  _forward_close(features["tokens"], case["out/encoded"])
  _forward_close(pooled, case["out/head_input"])
  _forward_close(features["logits"], case["out/logits"])
  _grads_close(grads, mapping.big_vision_vit(mapping.under(case, "grads/"), 2))
