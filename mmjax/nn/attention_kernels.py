"""Attention by kernels of the accelerators: Pallas splash attention on TPU, cuDNN's on GPU.

The compiler cannot partition a kernel, so each runs inside a `shard_map` on its device's own rows
and heads; the length is whole.
"""

import functools

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as pallas_splash
import jax.numpy as jnp

from mmjax.nn.attention_masks import UNSEEN, visible, zero_where_nothing_is_seen
from mmjax.parallel import ring_attention

LANES = 128  # lengths of a TPU kernel are multiples of a vector register's width
# Queries and keys that a kernel meets at once. 512 is MaxText's default (base.yml, sa_block_q); the
# others are for lengths that 512 would pad more. All compile for v5e, which has the least memory.
BLOCKS = (640, 512, 384, 256)


def splash(q, k, v, ids=None, *, causal=False, interpret=False):
  """Splash attention, JAX's Pallas kernel for TPUs; memory is linear in length.

  Lengths are padded to a multiple of its block. The softmax is float32; the scale 1 / sqrt(d) is
  multiplied into the queries beforehand, in float32.

  Args:
    q: [B, Q, H, d].
    k, v: [B, K, H, d].
    ids: (int32 [B, Q], int32 [B, K]): a query sees the keys that have its own id. None for all.
    causal: query i sees the keys j <= i only.
    interpret: run the kernel's operations one by one on any platform, for tests.

  Returns:
    [B, Q, H, d] in v's dtype; zero for a query that sees no key.
  """
  return _on_rows_and_heads(functools.partial(_splash, causal, interpret), q, k, v, ids)


def _splash(causal, interpret, q, k, v, ids):
  queries, keys = q.shape[1], k.shape[1]
  sizes = {"q": _block(queries), "kv": _block(keys)}
  padded = {"q": -queries % sizes["q"], "kv": -keys % sizes["kv"]}
  if ids is None and padded["kv"] and not (causal and queries <= keys):
    ids = jnp.zeros(q.shape[:2], jnp.int32), jnp.zeros(k.shape[:2], jnp.int32)
  shape = queries + padded["q"], keys + padded["kv"]
  mask = pallas_splash.CausalMask(shape) if causal else pallas_splash.FullMask(shape)
  kernel = pallas_splash.make_splash_mha(
      pallas_splash.MultiHeadMask([mask] * q.shape[2]), head_shards=1, q_seq_shards=1,
      interpret=interpret, block_sizes=pallas_splash.BlockSizes(
          **{f"block_q{of}": sizes["q"] for of in ("", "_dq", "_dkv")},
          **{f"block_kv{of}": sizes["kv"] for of in ("", "_dq", "_dkv")}))

  def laid_out(x, padding):  # [B, L, H, d] -> [B, H, L, d]
    return jnp.pad(x.swapaxes(1, 2), ((0, 0), (0, 0), (0, padding), (0, 0)))

  scaled = (q.astype(jnp.float32) * q.shape[-1] ** -0.5).astype(q.dtype)
  arrays = laid_out(scaled, padded["q"]), laid_out(k, padded["kv"]), laid_out(v, padded["kv"])
  padded_ids = None if ids is None else pallas_splash.SegmentIds(
      jnp.pad(ids[0], ((0, 0), (0, padded["q"]))),
      jnp.pad(ids[1], ((0, 0), (0, padded["kv"])), constant_values=UNSEEN))
  out = jax.vmap(kernel)(*arrays, padded_ids)[:, :, :queries].swapaxes(1, 2)
  return zero_where_nothing_is_seen(out.astype(v.dtype), ids, causal, keys)


def _block(length):
  """The kernel's block for a length: the one that pads least, and of such the largest."""
  single = length + -length % LANES
  if single <= BLOCKS[0]:
    return single
  return min(BLOCKS, key=lambda block: -length % block)


def cudnn(q, k, v, ids=None, *, causal=False):
  """cuDNN's fused attention; without ids memory is linear in length.

  With ids their mask is an array [B, Q, K] of q's dtype, the same for all heads.

  Args, returns: as `splash`. bfloat16 or float16.
  """
  return _on_rows_and_heads(functools.partial(_cudnn, causal), q, k, v, ids)


def _cudnn(causal, q, k, v, ids):
  mask = visible(ids, False, q.shape[1], k.shape[1])
  out = jax.nn.dot_product_attention(
      q, k, v, mask=mask, is_causal=causal, implementation="cudnn")
  return zero_where_nothing_is_seen(out, ids, causal, k.shape[1])


def _on_rows_and_heads(kernel, q, k, v, ids):
  batch, _, heads = ring_attention.axes_of_tokens(len(q), 1, q.shape[2])
  return ring_attention.on_shards(kernel, batch, (), heads, q, k, v, ids)
