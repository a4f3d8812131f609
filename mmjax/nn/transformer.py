"""The transformer trunk: a pre-norm block, and a stack of them with one parameter tree."""

import re

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from mmjax.nn.attention import BACKENDS, MultiHeadAttention
from mmjax.nn.linear import KERNEL_INITS, logical
from mmjax.nn.mlp import ACTIVATIONS, Mlp
from mmjax.nn.names import check_choice, check_heads
from mmjax.nn.norm import layer_norm
from mmjax.parallel import mesh as mesh_lib

# What the backward pass finds stored of each block; the rest it computes again.
REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,  # no rematerialisation at all
    "full": jax.checkpoint_policies.nothing_saveable,     # only each block's input
    "dots": jax.checkpoint_policies.dots_saveable,        # results of matrix multiplications
    # As "dots", but not attention's logits and weighted values: memory linear in length.
    "dots_no_batch": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    # The results of attention and MLP: the cheapest to keep that spares the backward pass both.
    "branches": jax.checkpoint_policies.save_only_these_names("attention", "mlp"),
}
# Under the other policies attention's [L, L] is computed again on its own, just before it is needed:
# else it would be alive while the block's MLP is differentiated. That costs q k^T, one product more.
KEEP_LOGITS = ("none", "dots")


def layer_numbers(want, depth, kind="layer"):
  """The blocks named in `want`: ("layer/3", ...) -> {"layer/3": 3, ...}; other names are left out.

  Args:
    kind: what stands before the number; alone it is the last block's.

  Raises:
    ValueError: there is no such block.
  """
  found = {name: re.fullmatch(rf"{kind}/(\d+)", name) for name in want}
  numbers = {name: int(match[1]) for name, match in found.items() if match}
  for name, number in numbers.items():
    if number >= depth:
      raise ValueError(f"want {name!r}: the last of {depth} blocks is {kind}/{depth - 1}.")
  return numbers | ({kind: depth - 1} if kind in want else {})


def drop_path(x, rate, keys):
  """Drops a residual branch for whole rows (Huang et al. 2016, arXiv:1603.09382, eq. 2).

  Args:
    x: the branch, [B, L, D].
    rate: float or float32 [], the probability of dropping it; rows that keep it are scaled up.
    keys: one PRNG key a row, [B].
  """
  kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(keys)[:, None, None]
  return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


def dropout(x, rate, keys):
  """Zeroes each element of [B, L, D] with probability `rate`; one PRNG key a row, [B].

  What is drawn for a token does not change when others are appended to the row.
  """
  kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[1:]))(keys)
  return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)


class Block(nn.Module):
  """Pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x)).

  Attributes: as in `Transformer`; and
    recompute_logits: see `KEEP_LOGITS`.
  """
  heads: int
  mlp_dim: int
  activation: str
  causal: bool
  qk_norm: bool
  layer_scale: float | None
  drop_path: float
  dropout: float
  norm_eps: float
  attention: str
  kernel_init: str
  dtype: str
  attention_bias: str
  mlp_bias: bool
  recompute_logits: bool = False

  @nn.compact
  def __call__(self, x, drop_rate, padding, rotary, segments, keys, weights=False):
    """One layer.

    Args:
      x: [B, L, D].
      drop_rate: float32 [], this block's drop-path rate.
      padding: bool [B, L] or None, True where a token may be seen.
      rotary: angles [L, d / 2] or [B, L, d / 2], or None.
      segments: int32 [B, L] or None, a token sees those with its own number.
      keys: PRNG keys of this layer, one a row [B], or None when nothing is random.
      weights: give attention's weights instead, float32 [B, H, L, L].

    Returns:
      [B, L, D].
    """
    init = dict(kernel_init=self.kernel_init, dtype=self.dtype)
    y = layer_norm(self.norm_eps, "attention_norm")(x)
    y = MultiHeadAttention(
        self.heads, self.causal, self.qk_norm, self.norm_eps, self.attention,
        bias=self.attention_bias, recompute=self.recompute_logits, name="attention", **init)(
            y, padding=padding, rotary=rotary, segments=segments, weights=weights)
    if weights:
      return y
    x = x + self._branch(y, "attention", drop_rate, keys)
    y = layer_norm(self.norm_eps, "mlp_norm")(x)
    y = Mlp(self.mlp_dim, self.activation, use_bias=self.mlp_bias, name="mlp", **init)(y)
    x = x + self._branch(y, "mlp", drop_rate, keys)
    return mesh_lib.constrain(x, ("batch", "length", "embed"))

  def _branch(self, y, name, drop_rate, keys):
    """Layer scale (Touvron et al. 2021, arXiv:2103.17239, eq. 1), dropout and drop-path."""
    y = checkpoint_name(y, name)
    if self.layer_scale is not None:
      init = logical(nn.initializers.constant(self.layer_scale), "embed")
      y = y * self.param(f"{name}_scale", init, (y.shape[-1],), jnp.float32).astype(y.dtype)
    if keys is None:
      return y
    fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
    place = 0 if name == "attention" else 2
    if self.dropout:
      y = dropout(y, self.dropout, fold(keys, place))
    if self.drop_path:
      y = drop_path(y, drop_rate, fold(keys, place + 1))
    return y


def pad_to_devices(x, padding, rotary, segments, causal):
  """Appends tokens that nobody sees, so that the devices that share the length divide it.

  Args:
    x: [B, L, D].
    padding, rotary, segments: as in `Transformer.__call__`.
    causal: tokens see only what stands before them, so what is appended needs no mask.

  Returns:
    x, padding, rotary, segments for a length of L or a little more.
  """
  extra = -x.shape[1] % mesh_lib.device_count(mesh_lib.axes_of("length"))
  if not extra:
    return x, padding, rotary, segments
  if padding is None and not causal:
    padding = jnp.ones(x.shape[:2], bool)

  def longer(y, axis):
    if y is None:
      return None
    return jnp.pad(y, [(0, extra if i == axis % y.ndim else 0) for i in range(y.ndim)])

  x = mesh_lib.constrain(longer(x, 1), ("batch", "length", "embed"))
  return x, longer(padding, 1), longer(rotary, -2), longer(segments, 1)


class Transformer(nn.Module):
  """`depth` blocks whose parameters are stacked on a leading axis: `layers/...` [depth, ...].

  Where the mesh shards `length`, tokens are appended on entry until its devices divide it, hidden,
  and cut off at the end. The results do not depend on the mesh.

  Attributes:
    depth, heads: number of blocks, and of attention heads in each.
    mlp_dim, activation: hidden width and name of the MLP's non-linearity, see `Mlp`.
    causal: a token sees itself and what stands before it.
    qk_norm: see `MultiHeadAttention`.
    layer_scale: initial value of a learned scale on each branch; None for no scale.
    drop_path: rate of the last block; it grows linearly from 0 at the first.
    dropout: rate on each branch's result.
    norm_eps: of all layer norms.
    scan: True compiles one block and loops over it; False unrolls the same loop, which takes
      longer to compile and may run faster. Parameters and results are the same.
    remat: a name of `REMAT_POLICIES`.
    attention: backend, see `attention.attention`.
    kernel_init: a name of `KERNEL_INITS`.
    dtype: of the computation.
    attention_bias: which of query, key, value and out have a bias, by their initials.
    mlp_bias: the MLPs have biases.
  """
  depth: int
  heads: int
  mlp_dim: int
  activation: str = "gelu_tanh"
  causal: bool = False
  qk_norm: bool = False
  layer_scale: float | None = None
  drop_path: float = 0.0
  dropout: float = 0.0
  norm_eps: float = 1e-6
  scan: bool = True
  remat: str = "none"
  attention: str = "auto"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"
  attention_bias: str = "qkvo"
  mlp_bias: bool = True

  @nn.compact
  def __call__(self, x, *, padding=None, rotary=None, segments=None, keys=None, train=False,
               want=()):
    """Applies all blocks.

    Args:
      x: [B, L, D].
      padding: bool [B, L], True where a token may be seen; None for all.
      rotary: angles for `rotate`, [L, d / 2] or [B, L, d / 2].
      segments: int32 [B, L], a token sees those with its own number (packed rows); None for all.
      keys: one PRNG key a row, [B]; needed for drop-path and dropout in training.
      train: False turns drop-path and dropout off.
      want: names "layer/i" of blocks whose result is wanted too, "attention/i" of blocks whose
        attention weights are ("attention": the last one's).

    Returns:
      The last block's result [B, L, D], and {"layer/i": block i's result [B, L, D]; "attention/i":
      its weights float32 [B, H, L, L]}.

    Raises:
      ValueError: `want` names a block that is not there, or `keys` are missing.
    """
    random = train and (self.drop_path > 0 or self.dropout > 0)
    if random and keys is None:
      raise ValueError("drop_path and dropout in training need `keys`, one PRNG key a row.")
    layers = layer_numbers(want, self.depth)
    attention = layer_numbers(want, self.depth, "attention")
    numbers = sorted({*layers.values(), *(number - 1 for number in attention.values() if number)})
    length = x.shape[1]
    x, padding, rotary, segments = pad_to_devices(x, padding, rotary, segments, self.causal)
    first = x
    rates = jnp.linspace(0.0, self.drop_path, self.depth, dtype=jnp.float32)

    def body(block, carry, layer):
      x, taps = carry
      number, rate = layer
      fold = jax.vmap(jax.random.fold_in, in_axes=(0, None))
      x = block(x, rate, padding, rotary, segments, fold(keys, number) if random else None)
      # Carried rather than stacked: it costs only what is wanted, not `depth` copies.
      taps = [jnp.where(number == wanted, x, tap) for wanted, tap in zip(numbers, taps)]
      return (x, taps), None

    scan = nn.scan(
        body, variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth,
        unroll=1 if self.scan else self.depth, metadata_params={nn.PARTITION_NAME: "layers"})
    numbered = jnp.arange(self.depth, dtype=jnp.int32), rates
    (x, taps), _ = scan(self._block(), (x, [jnp.zeros_like(x) for _ in numbers]), numbered)
    taps = dict(zip(numbers, taps)) | {-1: first}  # -1: what the first block gets
    features = {name: taps[number][:, :length] for name, number in layers.items()}
    for name, number in attention.items():
      weights = self._attention_weights(number, taps[number - 1], padding, rotary, segments)
      features[name] = weights[:, :, :length, :length]
    return x[:, :length], features

  def _attention_weights(self, number, x, padding, rotary, segments):
    """Those of a block from what it gets, once more: the loop itself holds none of [B, H, L, L]."""
    layers = mesh_lib.unbox(self.variables["params"]["layers"])
    params = jax.tree.map(lambda stacked: stacked[number], layers)
    block = self._block(parent=None)  # of its own, since the name in here is taken
    return block.apply({"params": params}, x, 0.0, padding, rotary, segments, None, weights=True)

  def _block(self, **place):
    block = Block
    if self.remat != "none":
      # Inside a loop nothing can be merged with the forward pass, so no barrier is needed.
      block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan)
    return block(self.heads, self.mlp_dim, self.activation, self.causal, self.qk_norm,
                 self.layer_scale, self.drop_path, self.dropout, self.norm_eps, self.attention,
                 self.kernel_init, self.dtype, self.attention_bias, self.mlp_bias,
                 self.remat not in KEEP_LOGITS, name="layers", **place)


def check_trunk(what, module):
  """Raises ValueError for bad values in the fields that `ViT` and `TextTransformer` share."""
  check_heads(what, module.width, module.heads)
  check_choice(f"{what}.activation", module.activation, ACTIVATIONS)
  check_choice(f"{what}.kernel_init", module.kernel_init, KERNEL_INITS)
  check_choice(f"{what}.remat", module.remat, REMAT_POLICIES)
  check_choice(f"{what}.attention", module.attention, BACKENDS)
  check_choice(f"{what}.dtype", module.dtype, ("float32", "bfloat16"))
  for rate in ("drop_path", "dropout"):
    if not 0 <= getattr(module, rate) < 1:
      raise ValueError(f"{what}.{rate} = {getattr(module, rate)} is not in [0, 1).")
  if module.depth < 1:
    raise ValueError(f"{what}.depth = {module.depth} is less than 1.")
