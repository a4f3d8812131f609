"""Kernels of TPU and GPU: interpreted on the CPU, lowered, and compiled for absent TPUs."""

import os

import jax
from jax._src.cudnn import fused_attention_stablehlo as jax_cudnn
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn import attention_kernels
from mmjax.nn.attention import attention
from mmjax.nn.attention_masks import visibility_ids
from mmjax.parallel import mesh as mesh_lib
from tests.conftest import needs


def _gradients(fn):
  """(q, k, v, ...) -> gradients of a sum of squares, and the result."""
  def loss(q, k, v, *rest):
    out = fn(q, k, v, *rest)
    return jnp.sum(out.astype(jnp.float32)**2), out
  return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


def _close(got, want):
  for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max())


def _masks(rows, length, which):
  padding = (jnp.arange(length) + 1) % 7 > 1
  padding = jnp.broadcast_to(padding, (rows, length)).at[0].set(False)  # a row of padding only
  segments = jnp.broadcast_to(jnp.arange(length) // 50, (rows, length))
  return {name: mask for name, mask in dict(padding=padding, segments=segments).items()
          if name in which}


@pytest.mark.parametrize("causal, which", [
    (False, ()), (False, ("padding",)), (True, ()), (True, ("padding",)), (True, ("segments",)),
    (False, ("padding", "segments"))])
def test_splash_gives_value_and_gradients_of_xla(causal, which):
  """150 tokens: padded to two vector registers. The kernel is interpreted, in float32."""
  q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 150, 2, 8))
  masks = _masks(2, 150, which)
  ids = visibility_ids(masks.get("padding"), masks.get("segments"), 2, 150, 150)
  kernel = lambda *qkv: attention_kernels.splash(*qkv, ids, causal=causal, interpret=True)
  xla = lambda *qkv: attention(*qkv, causal=causal, backend="xla", **masks)
  got = _gradients(kernel)(q, k, v)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
  _close(got, _gradients(xla)(q, k, v))


def test_splash_serves_several_blocks_and_another_sequence(monkeypatch):
  monkeypatch.setattr(attention_kernels, "BLOCKS", (128,))
  q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 300, 1, 8))
  _close(attention_kernels.splash(q[:, :140], k, v, interpret=True), attention(q[:, :140], k, v))
  _close(attention_kernels.splash(q, k, v, causal=True, interpret=True),
         attention(q, k, v, causal=True))


@pytest.mark.slow
def test_splash_runs_on_each_devices_rows_and_heads():
  """Two rows over four devices, and three heads over two, stay whole."""
  mesh = mesh_lib.make_mesh(data=4, tensor=2)
  for shape, local in (((4, 5, 2, 8), (1, 1)), ((2, 5, 3, 8), (2, 3))):
    q, k, v = jax.random.normal(jax.random.key(0), (3, *shape))
    with mesh_lib.use(mesh):
      step = _gradients(lambda *qkv: attention_kernels.splash(*qkv, interpret=True))
      assert f"f32[{local[0]},{local[1]},128,8]" in str(jax.make_jaxpr(step)(q, k, v))
      got = jax.device_get(step(q, k, v))
    _close(got, _gradients(attention)(q, k, v))


@pytest.mark.parametrize("length, padded", [
    (64, 128), (77, 128), (196, 256), (577, 640), (640, 640), (729, 768), (1024, 1024),
    (1025, 1152), (4096, 4096)])
def test_a_length_is_padded_by_less_than_a_block(length, padded):
  block = attention_kernels._block(length)
  assert length + -length % block == padded


def _compile_for_tpu(topology, shape, causal, which, dtype=jnp.bfloat16, **mesh):
  """The compiled gradient of attention with backend "splash", for absent devices."""
  needs("libtpu")
  os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # other tests load it beside this one
  from jax.experimental import topologies
  devices = topologies.get_topology_desc(topology, platform="tpu").devices
  mesh = mesh_lib.make_mesh(**mesh, devices=list(devices))
  rows = mesh_lib.batch_sharding(mesh)
  shapes = [jax.ShapeDtypeStruct(shape, dtype, sharding=rows)] * 3
  masks = {name: jax.ShapeDtypeStruct(mask.shape, mask.dtype, sharding=rows)
           for name, mask in _masks(*shape[:2], which).items()}
  with mesh_lib.use(mesh):
    step = _gradients(lambda q, k, v, masks: attention(
        q, k, v, causal=causal, backend="splash", **masks))
    return step.lower(*shapes, masks).compile()


def test_splash_compiles_for_absent_tpus():
  """Three kernels: forward, gradient of queries, gradients of keys and values."""
  compiled = _compile_for_tpu("v5e:2x2", (4, 196, 4, 72), True, ("padding",), data=2, tensor=2)
  assert compiled.as_text().count('custom_call_target="tpu_custom_call"') == 3


@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("length, width, causal, which, dtype", [
    (64, 64, False, (), jnp.bfloat16), (77, 64, True, (), jnp.bfloat16),
    (196, 72, False, (), jnp.bfloat16), (256, 88, False, ("padding",), jnp.bfloat16),
    (640, 128, True, ("segments",), jnp.float32), (1024, 64, True, (), jnp.bfloat16),
    (4096, 128, False, ("padding", "segments"), jnp.bfloat16)])
def test_splash_compiles_for_lengths_and_heads_of_published_models(
    topology, length, width, causal, which, dtype):
  _compile_for_tpu(topology, (4, length, 4, width), causal, which, dtype, data=2, tensor=-1)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("which", [(), ("padding",)])
def test_cudnn_lowers_to_its_kernels(monkeypatch, causal, which):
  """On a machine without CUDA; the version of cuDNN is all that JAX asks of it."""
  monkeypatch.setattr(jax_cudnn, "check_cudnn_version", lambda: 91100)
  monkeypatch.setattr(mesh_lib, "platform", lambda: "gpu")
  shape = jax.ShapeDtypeStruct((2, 128, 2, 64), jnp.bfloat16)
  step = _gradients(lambda *qkv: attention(*qkv, causal=causal, **_masks(2, 128, which)))
  text = step.trace(shape, shape, shape).lower(lowering_platforms=("cuda",)).as_text()
  name = "__cudnn$fmhaScaleBiasSoftmax" if which else "__cudnn$fmhaSoftmax"
  assert f"{name}(" in text and f"{name}Backward(" in text
  assert ("CAUSAL" in text) == causal
