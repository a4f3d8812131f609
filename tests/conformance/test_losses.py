"""Losses against OpenCLIP's (torch, float32, CPU): `tests/data/conformance/open_clip_losses.npz`.

Tolerances are the file's own: rtol 1e-5, atol 1e-6 (gradients: of their largest entry, 1e-5).
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.losses import classification
from mmjax.losses import contrastive
from mmjax.parallel import contrastive as ring
from mmjax.parallel import mesh as mesh_lib

FILE = pathlib.Path(__file__).parents[1] / "data" / "conformance" / "open_clip_losses.npz"
RANKS = 4


@pytest.fixture(scope="module")
def case():
  with np.load(FILE) as data:
    return {key: data[key] for key in data}


def _value_close(got, want):
  np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def _grad_close(got, want):
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max() + 1e-7)


def _mean_and_grads(loss, *arguments):
  return jax.value_and_grad(lambda *a: jnp.mean(loss(*a)), range(len(arguments)))(*arguments)


def _inputs(case, name):
  pair = case["in/image"], case["in/text"]
  if name == "clip":
    return (*pair, case["in/clip_scale"])
  return (*pair, case["in/siglip_scale"], case["in/bias"])


SINGLE = {
    "clip": contrastive.softmax,
    "clip blocked": lambda *a: ring.softmax(*a, block=5),
    "siglip": contrastive.sigmoid,
    "siglip blocked": lambda *a: ring.sigmoid(*a, block=5),
}


@pytest.mark.parametrize("name", SINGLE)
def test_single_device_losses_and_gradients_are_open_clips(case, name):
  key = name.split()[0]
  value, grads = _mean_and_grads(SINGLE[name], *_inputs(case, key))
  _value_close(value, case[f"out/{key}"])
  for argument, grad in zip(("image", "text", "scale", "bias"), grads):
    _grad_close(grad, case[f"grad/{key}/{argument}"])


def test_a_bias_of_the_softmax_logits_cancels(case):
  _value_close(case["out/clip_bias"], jnp.mean(contrastive.softmax(*_inputs(case, "clip"))))


def test_chunks_of_the_reference_are_blocks_here(case):
  value, grads = _mean_and_grads(SINGLE["siglip blocked"], *_inputs(case, "siglip"))
  _value_close(value, case["out/siglip_chunk5"])
  for argument, grad in zip(("image", "text", "scale", "bias"), grads):
    _grad_close(grad, case[f"grad/siglip_chunk5/{argument}"])


# Four torch ranks hold four rows each. A rank's `local` loss is the mean of its rows, a `global`
# loss the mean of all. Embedding gradients that cross ranks arrive summed over the four losses,
# where ours is the gradient of their mean: four times ours. `nograd` modes gather constants.
MODES = {
    "clip_local_gwg": ("clip", True, RANKS),
    "clip_global_gwg": ("clip", False, RANKS),
    "clip_global_nograd": ("clip", False, 1),
    "siglip_bidir": ("siglip", True, RANKS),
    "siglip_shift": ("siglip", True, RANKS),
    "siglip_reduce": ("siglip", True, RANKS),
    "siglip_gather": ("siglip", True, RANKS),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("data, fsdp", [(4, 1), (2, 2)])
def test_four_devices_are_open_clips_four_ranks(case, mode, data, fsdp):
  key, local, factor = MODES[mode]
  loss = {"clip": ring.softmax, "siglip": ring.sigmoid}[key]
  image, text, *scalars = _inputs(case, key)
  mesh = mesh_lib.make_mesh(data, fsdp, devices=jax.devices()[:RANKS])

  @jax.jit
  def step(*arguments):
    value, pullback = jax.vjp(loss, *arguments)
    ranks = value.reshape(RANKS, -1)
    grads = pullback(jnp.full(value.shape, 1 / value.size))
    # What each rank's own loss says of scale and bias, which no rank sums over the others.
    one_rank = jnp.repeat(jnp.eye(RANKS), ranks.shape[1], axis=1) / ranks.shape[1]
    return ranks, grads, jax.lax.map(lambda weight: pullback(weight)[2:], one_rank)

  with mesh_lib.use(mesh):
    rows = jax.device_put((image, text), mesh_lib.batch_sharding(mesh))
    ranks, grads, of_ranks = step(*rows, *scalars)
  mean = jnp.mean(ranks, axis=1) if local else jnp.full(RANKS, jnp.mean(ranks))
  _value_close(mean, case[f"out/dist4/{mode}/loss"])
  for argument, grad in zip(("image", "text"), grads):
    _grad_close(factor * grad, case[f"grad/dist4/{mode}/{argument}"])
  for argument, whole, parts in zip(("scale", "bias"), grads[2:], of_ranks):
    _grad_close(parts if local else jnp.full(RANKS, whole), case[f"grad/dist4/{mode}/{argument}"])


def test_local_loss_against_constants_is_two_one_way_losses(case):
  """OpenCLIP's cheapest mode: each rank's rows are anchors, all gathered rows constants."""

  def loss(image, text, scale):
    constant = jax.lax.stop_gradient
    return 0.5 * (contrastive.one_way(image, constant(text), scale)
                  + contrastive.one_way(text, constant(image), scale))

  value, pullback = jax.vjp(loss, *_inputs(case, "clip"))
  _value_close(value.reshape(RANKS, -1).mean(axis=1), case["out/dist4/clip_local_nograd/loss"])
  d_image, d_text, d_scale = pullback(jnp.full(value.shape, RANKS / value.size))
  _grad_close(d_image, case["grad/dist4/clip_local_nograd/image"])
  _grad_close(d_text, case["grad/dist4/clip_local_nograd/text"])
  _grad_close(d_scale / RANKS, case["grad/dist4/clip_local_nograd/scale"].mean())


def test_caption_loss_is_a_masked_mean_of_token_cross_entropies(case):
  labels = jnp.asarray(case["in/coca_labels"], jnp.int32)
  mask = labels != 0  # the reference's padding id
  weight = 2.0  # the reference's weight of the caption loss

  def caption(logits):
    values = classification.softmax_cross_entropy(logits, labels)
    return weight * jnp.sum(jnp.where(mask, values, 0)) / jnp.sum(mask)

  value, grad = jax.value_and_grad(caption)(case["in/coca_logits"])
  _value_close(value, case["out/coca_caption"])
  _grad_close(grad, case["grad/coca/logits"])


def test_contrastive_part_of_the_captioner_is_the_softmax_loss(case):
  value, grads = _mean_and_grads(contrastive.softmax, *_inputs(case, "clip"))
  _value_close(value, case["out/coca_contrastive"])
  _grad_close(grads[0], case["grad/coca/image"])


@pytest.mark.parametrize("block", [32, 101])
def test_fused_linear_cross_entropy(case, block):
  targets = jnp.asarray(case["in/lce_target"], jnp.int32)
  mask = targets != -100  # the reference's value for tokens to leave out

  def mean(hidden, weight):
    values = classification.token_cross_entropy(hidden, weight, jnp.where(mask, targets, 0), block)
    return jnp.sum(jnp.where(mask, values, 0)) / jnp.sum(mask)

  value, grads = jax.value_and_grad(mean, (0, 1))(case["in/lce_hidden"], case["in/lce_weight"])
  _value_close(value, case["out/fused_linear_ce"])
  _grad_close(grads[0], case["grad/fused_linear_ce/hidden"])
  _grad_close(grads[1], case["grad/fused_linear_ce/weight"])


def test_distillation_from_a_teachers_pairs(case):
  teacher = case["in/teacher_image"], case["in/teacher_text"], case["in/teacher_scale"]

  def student(image, text, scale):
    return contrastive.distill(image, text, scale, *teacher)

  arguments = _inputs(case, "clip")
  _value_close(jnp.mean(student(*arguments)), case["out/distill_distill"])
  _value_close(jnp.mean(contrastive.softmax(*arguments)), case["out/distill_contrastive"])
  # The reference differentiates the sum of both losses.
  _, grads = _mean_and_grads(lambda *a: contrastive.softmax(*a) + student(*a), *arguments)
  for argument, grad in zip(("image", "text", "scale"), grads):
    _grad_close(grad, case[f"grad/distill/{argument}"])
