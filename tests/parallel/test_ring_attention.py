"""Attention in blocks and round a ring of devices, against the dense one on one device."""

import json
import pathlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.vit import ViT
from mmjax.nn.attention import attention
from mmjax.nn.transformer import Transformer
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel import ring_attention

SHAPE = (4, 48, 2, 8)  # rows, length, heads, width of a head
MESHES = {
    "2": dict(data=4, sequence=2), "4": dict(data=2, sequence=4), "8": dict(data=1, sequence=8),
    "2 with heads": dict(data=2, sequence=2, tensor=2)}


def _arrays():
  """q, k, v and a weight of the result; the padding hides a whole row and the start of another."""
  qkvw = jax.random.normal(jax.random.key(0), (4, *SHAPE))
  padding = jax.random.uniform(jax.random.key(1), SHAPE[:2]) > 0.3
  padding = padding.at[0].set(False).at[1, :5].set(False)
  starts = jax.random.uniform(jax.random.key(2), SHAPE[:2]) > 0.8
  return *qkvw, padding, jnp.cumsum(starts, axis=1, dtype=jnp.int32)


def _step(fn):
  """(q, k, v, w) -> gradients of a weighted sum of the result, and the result."""
  def loss(q, k, v, w):
    out = fn(q, k, v)
    return jnp.sum(out * w), out
  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def _close(got, want, forward=1e-5, backward=1e-4):
  """Relative to the largest entry: sums of float32 in another order."""
  for x, y, bar in ((got[1], want[1], forward), *zip(got[0], want[0], [backward] * 3)):
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    np.testing.assert_allclose(x, y, rtol=0, atol=bar * np.abs(y).max())


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_ring_gives_value_and_gradients_of_dense_attention(mesh, causal, masked):
  *qkvw, padding, segments = _arrays()
  masks = dict(padding=padding, segments=segments) if masked else {}
  dense = _step(lambda *qkv: attention(*qkv, causal=causal, backend="xla", **masks))(*qkvw)
  with mesh_lib.use(mesh_lib.make_mesh(**MESHES[mesh])):
    ring = _step(lambda *qkv: attention(*qkv, causal=causal, backend="ring", **masks))
    compiled = ring.lower(*qkvw).compile().as_text()
    _close(ring(*qkvw), dense)
  assert "collective-permute" in compiled


@pytest.mark.parametrize("block", [7, 16, 1000])
@pytest.mark.parametrize("causal", [False, True])
def test_blocks_on_one_device_change_nothing(block, causal):
  *qkvw, padding, segments = _arrays()
  dense = lambda *qkv: attention(*qkv, causal=causal, padding=padding, segments=segments)
  ids = segments, jnp.where(padding, segments, -1)
  blocks = lambda *qkv: ring_attention.attention(*qkv, ids, causal=causal, block=block)
  _close(_step(blocks)(*qkvw), _step(dense)(*qkvw))


def test_blocks_serve_attention_to_another_sequence():
  q, k, v, w, *_ = _arrays()
  dense, blocks = (_step(lambda *qkv: attention(*qkv, backend=name)) for name in ("xla", "blockwise"))
  _close(blocks(q[:, :20], k, v, w[:, :20]), dense(q[:, :20], k, v, w[:, :20]))


def test_bfloat16_is_as_close_to_float32_as_dense_attention_is():
  qkvw = _arrays()[:4]
  low = [x.astype(jnp.bfloat16) for x in qkvw]
  exact = _step(lambda *qkv: attention(*qkv, causal=True))(*qkvw)
  got = _step(lambda *qkv: ring_attention.attention(*qkv, causal=True, block=16))(*low)
  assert got[1].dtype == jnp.bfloat16 and got[0][1].dtype == jnp.bfloat16
  _close(got, exact, forward=0.02, backward=0.02)  # bfloat16 has 8 bits


@pytest.mark.parametrize("case", ["full", "causal", "causal_seg", "causal_pad"])
def test_reference_ring_attention(case):
  """Values and gradients of the package `ringattention` 0.1.2 and of its dense counterpart."""
  data = np.load(pathlib.Path(__file__).parents[1] / "data/conformance/ring_attention.npz")
  meta = json.loads(str(data["meta"]))
  valid = data[f"out/{case}/valid"][..., None, None]  # the others see nothing; the loss skips them
  masks = {"causal_seg": dict(segments=data["in/segment_ids"]),
           "causal_pad": dict(padding=data["in/pad"] == 1)}.get(case, {})
  masks = {name: jnp.asarray(mask) for name, mask in masks.items()}
  fn = lambda *qkv: attention(*qkv, causal=case != "full", backend="ring", **masks)
  with mesh_lib.use(mesh_lib.make_mesh(data=2, sequence=4)):
    grads, out = _step(fn)(*(data[f"in/{name}"] for name in "qkv"), data["in/w"] * valid)
  np.testing.assert_allclose(out * valid, data[f"out/{case}/o"] * valid,
                             atol=meta["atol"], rtol=meta["rtol"])
  for name, grad in zip("qkv", grads):
    want = data[f"grad/{case}/{name}"]
    np.testing.assert_allclose(grad, want, rtol=0, atol=1e-4 * np.abs(want).max())


def _temporary_bytes(length, causal=True, **mesh):
  x = jax.ShapeDtypeStruct((1, length, 2, 8), jnp.float32)
  backend = "ring" if mesh else "blockwise"
  step = _step(lambda *qkv: attention(*qkv, causal=causal, backend=backend))
  with mesh_lib.use(mesh_lib.make_mesh(data=1, devices=jax.devices()[:mesh.get("sequence", 1)],
                                       **mesh)):
    return step.lower(x, x, x, x).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_a_device_does_not_grow_with_the_ring():
  """At a fixed length a device, forward and backward."""
  two, eight = (_temporary_bytes(1024 * n, sequence=n) for n in (2, 8))
  assert eight < 1.05 * two


def test_memory_grows_with_the_length_and_not_with_its_square():
  once, twice, four_times = (_temporary_bytes(length) for length in (1024, 2048, 4096))
  assert four_times - twice < 2.2 * (twice - once)
  assert four_times < 4096**2 * 4  # half of the logits


def test_a_length_that_the_ring_does_not_divide_is_an_error_that_names_both():
  q, k, v, *_ = _arrays()
  with mesh_lib.use(mesh_lib.make_mesh(data=1, sequence=8)):
    with pytest.raises(ValueError, match="8 devices of sequence do not divide the length 47"):
      attention(q[:, 1:], k[:, 1:], v[:, 1:], backend="ring")
    with pytest.raises(ValueError, match="47 cannot be split evenly over the 8 devices.*sequence"):
      ring_attention.attention(q[:, 1:], k[:, 1:], v[:, 1:], ring=True)


def _sharded_and_whole(module, x, **arguments):
  """Gradients and values of a model on one device, and with its length over eight."""
  params = nn.unbox(module.init(jax.random.key(1), x))

  def step(params, x):
    def loss(params):
      out, features = module.apply(params, x, **arguments)
      return jnp.sum(jnp.sin(out)), (out, features)
    return jax.grad(loss, has_aux=True)(params)

  whole = jax.jit(step)(params, x)
  with mesh_lib.use(mesh_lib.make_mesh(data=1, sequence=8)):
    sharded = jax.jit(step)
    compiled = sharded.lower(params, x).compile().as_text()
    got = jax.device_get(sharded(params, x))
  assert "collective-permute" in compiled  # it was the ring
  return got, whole


def _all_close(got, want):
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * max(1, np.abs(y).max()))


@pytest.mark.slow
def test_an_image_whose_patches_the_ring_does_not_divide_is_encoded_as_on_one_device():
  """26 tokens on 8 devices, with rotary angles."""
  vit = ViT(patch=4, width=16, depth=2, heads=2, pool="cls", class_token=True, position="rotary")
  image = jax.random.normal(jax.random.key(0), (2, 20, 20, 3))
  _all_close(*_sharded_and_whole(vit, image, want=("tokens", "layer/0")))


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_a_trunk_appends_tokens_that_change_nothing(causal):
  """Dropout's draws neither: they belong to the token."""
  trunk = Transformer(depth=2, heads=2, mlp_dim=16, causal=causal, dropout=0.5, drop_path=0.3)
  x = jax.random.normal(jax.random.key(0), (3, 11, 16))
  padding = jnp.arange(11) < jnp.array([[11], [3], [0]])
  segments = jnp.broadcast_to(jnp.arange(11) // 4, (3, 11))
  _all_close(*_sharded_and_whole(trunk, x, padding=padding, segments=segments, train=True,
                                 keys=jax.random.split(jax.random.key(2), 3)))
