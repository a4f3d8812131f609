"""Attention: one function with a backend, and the multi-head module around it."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn import attention_kernels
from mmjax.nn.attention_masks import visibility_ids, visible, zero_where_nothing_is_seen
from mmjax.nn.linear import KERNEL_INITS, Linear
from mmjax.nn.names import check_choice, check_heads
from mmjax.nn.norm import layer_norm
from mmjax.nn.positions import rotate
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel import ring_attention

BACKENDS = ("auto", "xla", "blockwise", "splash", "cudnn", "ring")

# Lengths (the longer of Q and K) from which "auto" takes a platform's kernel; reasoned, not measured.
# TPU: a token's float32 logits are 4 H L bytes, its MLP's bfloat16 activations 8 D = 512 H bytes
#   (heads of 64), so that at 512 the logits are four times those and worth sparing. Short lengths
#   lose: the kernel multiplies 9 times where XLA multiplies 6, and pads 196 to 256.
# GPU: a tile of flash attention has up to 128 queries (Dao 2023, arXiv:2307.08691, sec. 3.3).
KERNEL_LENGTH = {"tpu": 512, "gpu": 128}
KERNEL = {"tpu": "splash", "gpu": "cudnn"}
CUDNN_HEAD_DIM = 128  # of all GPUs from Ampere on; Hopper's limit is 256


def attention(q, k, v, *, causal=False, padding=None, segments=None, backend="auto",
              recompute=False):
  """softmax(q k^T / sqrt(d)) v (Vaswani et al. 2017, arXiv:1706.03762, eq. 1).

  A query that may see no key at all (a row of padding only) gets zeros.

  Args:
    q: [B, Q, H, d].
    k, v: [B, K, H, d].
    causal: query i sees the keys j <= i only.
    padding: bool [B, K], True where a key may be seen; None for all.
    segments: int32 [B, L], of self-attention: a token sees those with its own number; None for all.
    backend: a name of `BACKENDS`. "xla" makes an array [B, H, Q, K]; the others do not:
      "blockwise": `parallel.ring_attention` on each device alone; any platform.
      "splash": a Pallas kernel; TPU.
      "cudnn": cuDNN's; GPU.
      "ring": `parallel.ring_attention`, where the length is sharded.
      "auto": see `pick_backend`.

    recompute: the backward pass of "xla" computes [B, H, Q, K] again just before it needs it; the
      others always do.

  Returns:
    [B, Q, H, d] in v's dtype; the softmax is float32.

  Raises:
    ValueError: unknown backend, or one that cannot be had here; shapes that do not fit.
  """
  ids = visibility_ids(padding, segments, len(q), q.shape[1], k.shape[1])
  backend = pick_backend(q, k, ids is not None, backend)
  if backend == "xla":
    dense = jax.checkpoint(_xla, static_argnums=4) if recompute else _xla
    return dense(q, k, v, ids, causal)
  if backend == "splash":
    return attention_kernels.splash(q, k, v, ids, causal=causal)
  # Where other devices stand for GPUs, in a plan, "blockwise" is compiled in cuDNN's place.
  if backend == "cudnn" and not mesh_lib.stands_in():
    return attention_kernels.cudnn(q, k, v, ids, causal=causal)
  return ring_attention.attention(q, k, v, ids, causal=causal, ring=backend == "ring")


def pick_backend(q, k, masked=False, backend="auto"):
  """The backend that `attention` takes, decided while tracing from shapes and the mesh in context.

  "auto" is the ring for self-attention whose length is sharded; from `KERNEL_LENGTH` on the kernel
  of the mesh's platform; "xla" for what is short and where that cannot be had.

  Args:
    q, k: arrays or shapes with dtype, [B, Q, H, d] and [B, K, H, d].
    masked: there is padding, or segments.
    backend: a name of `BACKENDS`.

  Returns:
    A name of `BACKENDS`, not "auto".

  Raises:
    ValueError: unknown backend, or one that cannot be had here.
  """
  check_choice("attention backend", backend, BACKENDS)
  if backend == "auto":
    platform = mesh_lib.platform()
    wanted = ["ring"] if q.shape[1] == k.shape[1] else []
    if platform in KERNEL and max(q.shape[1], k.shape[1]) >= KERNEL_LENGTH[platform]:
      wanted.append(KERNEL[platform])
    return next((name for name in wanted if _obstacle(name, q, k, masked) is None), "xla")
  obstacle = _obstacle(backend, q, k, masked)
  if obstacle:
    raise ValueError(f"attention backend {backend!r} cannot be had: {obstacle}. "
                     "Choose 'auto', 'xla' or 'blockwise'.")
  return backend


def _obstacle(backend, q, k, masked):
  """Why `backend` cannot be had for these arrays on the mesh in context, or None."""
  platform, lengths, head_dim = mesh_lib.platform(), (q.shape[1], k.shape[1]), q.shape[-1]
  if backend == "ring":
    axes = mesh_lib.axes_of("length")
    count = mesh_lib.device_count(axes)
    if not axes:
      return "no mesh axis of more than one device shards the length (mesh.sequence)"
    if lengths[0] != lengths[1]:
      return f"it is self-attention, and there are {lengths[0]} queries and {lengths[1]} keys"
    if lengths[0] % count:
      return f"the {count} devices of {', '.join(axes)} do not divide the length {lengths[0]}"
  for platform_of_kernel, kernel in KERNEL.items():
    if backend == kernel and platform != platform_of_kernel:
      return f"it is for {platform_of_kernel}, and the devices are {platform}"
  if backend == "cudnn":
    if q.dtype not in (jnp.bfloat16, jnp.float16):
      return f"it computes in bfloat16 or float16, not {q.dtype}: set dtype='bfloat16'"
    if head_dim % 8 or head_dim > CUDNN_HEAD_DIM:
      return f"heads of {head_dim} are not a multiple of 8 up to {CUDNN_HEAD_DIM}"
    if masked and (lengths[0] % 2 or lengths[1] % 2):
      return f"with padding or segments it needs even lengths, not {lengths[0]} and {lengths[1]}"
  return None


def _xla(q, k, v, ids, causal):
  keys = k.shape[1]
  # Heads before length: XLA:CPU multiplies [B, H, L, d] faster than [B, L, H, d].
  v = v.swapaxes(1, 2)
  weights = attention_weights(q, k, ids, causal).astype(v.dtype)
  return zero_where_nothing_is_seen(jnp.matmul(weights, v).swapaxes(1, 2), ids, causal, keys)


def attention_weights(q, k, ids=None, causal=False):
  """softmax(q k^T / sqrt(d)), float32 [B, H, Q, K]; see `attention`.

  Args:
    ids: what `visibility_ids` gives, None where all is visible.
  """
  queries, keys = q.shape[1], k.shape[1]
  q, k = q.swapaxes(1, 2), k.swapaxes(1, 2)
  logits = jnp.matmul(q, k.swapaxes(2, 3), preferred_element_type=jnp.float32)  # [B, H, Q, K]
  logits = logits * q.shape[-1] ** -0.5
  mask = visible(ids, causal, queries, keys)
  if mask is not None:
    # Finite, so that a row without any visible key has no NaN in value or gradient.
    logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
  return jax.nn.softmax(logits, axis=-1)


class MultiHeadAttention(nn.Module):
  """Multi-head attention of x over itself or over `context`.

  Parameters, float32: `query`, `key`, `value` kernels [D, H, d] and biases [H, d]; `out` kernel
  [H, d, D] and bias [D]; with `qk_norm` the scales `query_norm`, `key_norm` [d].

  Attributes:
    heads: H; must divide D.
    causal: a token sees itself and what stands before it.
    qk_norm: layer norm without bias on each head's queries and keys (Dehghani et al. 2023,
      arXiv:2302.05442, sec. 2).
    norm_eps: of that norm.
    backend: see `attention`.
    kernel_init: a name of `KERNEL_INITS`.
    dtype: of the computation.
    bias: which of query, key, value and out have a bias, by their initials: "qkvo" for all.
    recompute: see `attention`.
  """
  heads: int
  causal: bool = False
  qk_norm: bool = False
  norm_eps: float = 1e-6
  backend: str = "auto"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"
  bias: str = "qkvo"
  recompute: bool = False

  @nn.compact
  def __call__(self, x, context=None, padding=None, rotary=None, segments=None, weights=False):
    """Attends.

    Args:
      x: [B, Q, D].
      context: [B, K, D], what is attended to; None for x itself.
      padding: bool [B, K], True where a token may be seen; None for all.
      rotary: angles for `rotate`, [L, d / 2] or [B, L, d / 2]; None for none.
      segments: int32 [B, Q], a token sees those with its own number; None for all.
      weights: give the softmax instead, float32 [B, H, Q, K].

    Returns:
      [B, Q, D].
    """
    width = x.shape[-1]
    check_heads("attention", width, self.heads)
    check_choice("kernel_init", self.kernel_init, KERNEL_INITS)
    context = x if context is None else context
    init = dict(kernel_init=KERNEL_INITS[self.kernel_init], dtype=self.dtype)

    def project(y, name):
      y = Linear((self.heads, width // self.heads), ("embed", "heads", "kv"),
                 name[0] in self.bias, name=name, **init)(y)
      return mesh_lib.constrain(y, ("batch", "length", "heads", "kv"))

    q, k, v = project(x, "query"), project(context, "key"), project(context, "value")
    if self.qk_norm:
      q = layer_norm(self.norm_eps, "query_norm", "kv", use_bias=False)(q).astype(v.dtype)
      k = layer_norm(self.norm_eps, "key_norm", "kv", use_bias=False)(k).astype(v.dtype)
    if rotary is not None:
      q, k = rotate(q, rotary), rotate(k, rotary)
    if weights:
      ids = visibility_ids(padding, segments, len(q), q.shape[1], k.shape[1])
      return attention_weights(q, k, ids, self.causal)
    # Parameters are the same for all backends, and their shapes are asked for before there is a mesh.
    backend = "xla" if self.is_initializing() else self.backend
    y = attention(q, k, v, causal=self.causal, padding=padding, segments=segments, backend=backend,
                  recompute=self.recompute)
    return Linear((width,), ("heads", "kv", "embed"), "o" in self.bias, name="out", **init)(y)
