"""FLOPs against formulas written by hand."""

import types

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec as P
import pytest

from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT
from mmjax.objectives.contrastive import Contrastive
from mmjax.parallel import contrastive
from mmjax.training import flops

B, D, F, DEPTH = 8, 16, 64, 5


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def mlp(params, x):
  up, down = params
  return x + jax.nn.gelu(x @ up) @ down


def scanned(params, x):
  return jax.lax.scan(lambda x, layer: (mlp(layer, x), None), x, params)[0].sum()


def looped(params, x):
  for i in range(DEPTH):
    x = mlp(jax.tree.map(lambda p: p[i], params), x)
  return x.sum()


STACK = (shape(DEPTH, D, F), shape(DEPTH, F, D))
FORWARD = DEPTH * 2 * (2 * B * D * F)      # two products of 2 m n k a layer


def test_mlp_forward_is_2mnk():
  assert flops.count(looped, STACK, shape(B, D)) == FORWARD


def test_scan_counts_its_body_times_its_length():
  assert flops.count(scanned, STACK, shape(B, D)) == FORWARD


@pytest.mark.parametrize("fn", [scanned, looped])
def test_gradient_with_respect_to_weights_and_input_costs_three_forwards(fn):
  assert flops.count(jax.value_and_grad(fn, argnums=(0, 1)), STACK, shape(B, D)) == 3 * FORWARD


def test_gradient_spares_what_only_the_input_would_need():
  chain = lambda params, x: ((x @ params[0]) @ params[1]).sum()
  first, second = 2 * B * D * F, 2 * B * F * D
  args = ((shape(D, F), shape(F, D)), shape(B, D))
  assert flops.count(jax.value_and_grad(chain), *args) == 2 * first + 3 * second


def test_attention():
  heads, length, kv = 4, 32, 8

  def attention(q, k, v):
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v)

  qkv = [shape(B, length, heads, kv)] * 3
  assert flops.count(attention, *qkv) == 2 * (2 * B * heads * length * length * kv)


@pytest.mark.parametrize("groups", [1, 4])
def test_convolution_and_its_gradient(groups):
  patch, grid, c_in, c_out = 4, 3, 8, 16
  numbers = ("NHWC", "HWIO", "NHWC")

  def conv(x, kernel):
    return jax.lax.conv_general_dilated(
        x, kernel, (patch, patch), "VALID", dimension_numbers=numbers,
        feature_group_count=groups).sum()

  args = (shape(B, patch * grid, patch * grid, c_in), shape(patch, patch, c_in // groups, c_out))
  forward = 2 * B * grid * grid * patch * patch * (c_in // groups) * c_out
  assert flops.count(conv, *args) == forward
  assert flops.count(jax.value_and_grad(conv, argnums=(0, 1)), *args) == 3 * forward


def test_ragged_product_counts_each_row_once():
  fn = lambda x, w, sizes: jax.lax.ragged_dot(x, w, sizes).sum()
  args = (shape(B, D), shape(3, D, F), jax.ShapeDtypeStruct((3,), jnp.int32))
  assert flops.count(fn, *args) == 2 * B * D * F
  assert flops.count(jax.value_and_grad(fn, argnums=(0, 1)), *args) == 3 * 2 * B * D * F


def test_cond_counts_its_costliest_branch():
  fn = lambda x, w: jax.lax.cond(x.sum() > 0, lambda: (x @ w) @ w.T, lambda: x)
  assert flops.count(fn, shape(B, D), shape(D, F)) == 4 * B * D * F


def test_calls_are_looked_into():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
  fn = jax.jit(lambda x, w: product(x, w).sum())
  assert flops.count(fn, shape(B, D), shape(D, F)) == 2 * B * D * F
  assert flops.count(jax.value_and_grad(fn, argnums=(0, 1)), shape(B, D), shape(D, F)) == 3 * 2 * B * D * F


def test_shard_map_counts_all_its_devices():
  mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
  fn = jax.shard_map(lambda x, w: x @ w, mesh=mesh, in_specs=(P(("data", "fsdp")), P()),
                     out_specs=P(("data", "fsdp")))
  assert flops.count(fn, shape(B, D), shape(D, F)) == 2 * B * D * F


def test_recomputation_is_refused_or_counted():
  fn = jax.value_and_grad(lambda params, x: jax.checkpoint(looped)(params, x), argnums=(0, 1))
  with pytest.raises(ValueError, match="remat off"):
    flops.count(fn, STACK, shape(B, D))
  assert flops.count(fn, STACK, shape(B, D), recompute=True) > 3 * FORWARD


def test_checkpoint_without_gradient_is_no_recomputation():
  assert flops.count(jax.checkpoint(looped), STACK, shape(B, D)) == FORWARD


def test_while_of_unknown_length_is_refused_only_around_products():
  loop = lambda body: lambda x, times: jax.lax.fori_loop(0, times, lambda i, x: body(x), x)
  args = (shape(D, D), jax.ShapeDtypeStruct((), jnp.int32))
  assert flops.count(loop(jnp.sin), *args) == 0
  with pytest.raises(ValueError, match="while"):
    flops.count(loop(lambda x: x @ x), *args)


def test_kernels_are_refused():
  from jax.experimental import pallas as pl

  def kernel(x, out):
    out[...] = x[...] @ x[...]

  fn = lambda x: pl.pallas_call(kernel, out_shape=x, interpret=True)(x)
  with pytest.raises(ValueError, match="xla"):
    flops.count(fn, jnp.ones((D, D)))


def test_mfu_is_none_where_the_peak_is_unknown():
  assert flops.mfu(1e12, 1.0) is None      # a CPU


def test_mfu_is_the_share_of_all_devices():
  chips = [types.SimpleNamespace(device_kind="TPU v5 lite")] * 4
  assert flops.mfu(4 * 197e12, 2.0, chips) == 0.5


def test_a_gradient_that_nobody_asks_for_is_not_counted():
  @jax.custom_vjp
  def product(x, w):
    return x @ w

  product.defvjp(lambda x, w: (x @ w, (x, w)), lambda r, g: (g @ r[1].T, r[0].T @ g))
  of_weights = jax.value_and_grad(lambda w, x: product(x, w).sum())
  assert flops.count(of_weights, shape(D, F), shape(B, D)) == 2 * 2 * B * D * F


def test_rematerialisation_and_kernels_of_every_tower_are_set_aside():
  trunk = dict(width=32, depth=1, heads=2, remat="full", attention="blockwise")
  objective = Contrastive(ViT(patch=8, grid=(2, 2), **trunk),
                          TextTransformer(vocab=50, length=8, out_dim=32, **trunk), losses={"softmax": 1.0})
  plain = flops.mathematics(objective)
  assert type(plain) is Contrastive and plain.losses == objective.losses
  for tower, ours in (plain.image, objective.image), (plain.text, objective.text):
    assert (tower.remat, tower.attention) == ("none", "xla")
    assert (ours.remat, ours.attention) == ("full", "blockwise")  # the run's own is as it was
    assert tower.clone(remat="full", attention="blockwise") == ours


def test_the_pairs_of_a_contrastive_loss_are_three_products():
  image, text = shape(8, 16), shape(8, 16)

  def loss(image, text):
    return contrastive.sigmoid(image, text, 10.0, -10.0, block=4).sum()

  step = jax.value_and_grad(loss, argnums=(0, 1))
  product = 2 * 8 * 8 * 16
  assert flops.count(loss, image, text) == product
  assert flops.count(step, image, text) == 3 * product
  assert flops.count(step, image, text, recompute=True) == 4 * product
