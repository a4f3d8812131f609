"""FLOPs of whole steps against formulas written by hand, and what is said of kernels."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mmjax import config as config_lib
from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT
from mmjax.plan import flops as plan_flops
from mmjax.plan import hlo
from mmjax.training import flops
from mmjax.training.assemble import assemble


def shape(*dims, dtype=jnp.float32):
  return jax.ShapeDtypeStruct(dims, dtype)


def layer(tokens, width, hidden):
  """Products of one transformer layer, forward, of one row."""
  projections = 4 * 2 * tokens * width**2
  attention = 2 * 2 * tokens**2 * width
  return projections + attention + 2 * 2 * tokens * width * hidden


def gradient_flops(model, *batch, recompute=False):
  """Of the model's forward and backward pass with respect to its parameters."""
  params = jax.eval_shape(model.init, jax.random.key(0), *batch)
  loss = lambda params: jnp.sum(model.apply(params, *batch)[0])
  jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(params)
  return flops.work(jaxpr, recompute).flops


ROWS = 2


def vit_l(remat="none"):
  return ViT(patch=16, width=1024, depth=24, heads=16, grid=(14, 14), pool="mean", remat=remat,
             dtype="bfloat16")


@pytest.mark.parametrize("recompute", [False, True])
def test_vit_l_takes_three_forwards_and_with_full_remat_nearly_four(recompute):
  tokens, width, image = 196, 1024, jnp.zeros((ROWS, 224, 224, 3))
  trunk = ROWS * 24 * layer(tokens, width, 4 * width)
  # The backward pass of a layer does not need what it gives: its last product is not repeated.
  again = trunk - ROWS * 24 * 2 * tokens * width * 4 * width if recompute else 0
  patches = ROWS * 2 * tokens * 16 * 16 * 3 * width    # the image needs no gradient: two, not three
  found = gradient_flops(vit_l("full" if recompute else "none"), image, recompute=recompute)
  assert found == pytest.approx(3 * trunk + again + 2 * patches, rel=0.005)


def test_text_tower_takes_three_forwards():
  tokens, width, vocab = 64, 768, 32_000     # looking up embeddings is no product
  model = TextTransformer(width=width, depth=12, heads=12, length=tokens, vocab=vocab, out_dim=512)
  found = gradient_flops(model, jnp.zeros((ROWS, tokens), jnp.int32))
  forward = ROWS * (12 * layer(tokens, width, 4 * width) + 2 * width * 512)
  assert found == pytest.approx(3 * forward, rel=0.005)


@functools.cache
def counted(name, *changes):
  """The FLOPs of a config's step on eight devices, and its run."""
  run = assemble(config_lib.load(name, dict(changes)))
  with run.use():
    traced = run.step_fn().trace(run.abstract, run.abstract_batch)
  return plan_flops.count(run, traced.jaxpr), run


def test_one_pass_without_remat_has_the_models_flops():
  found, _ = counted("contrastive/siglip:smoke")
  assert found.hardware == pytest.approx(found.model, rel=0.005)


def test_micro_batches_look_at_the_batch_once_more():
  """The features of the whole batch come first (a forward pass), for the loss couples its rows."""
  found, _ = counted("contrastive/siglip:smoke", ("micro_batches", "2"))
  assert found.hardware == pytest.approx(4 / 3 * found.model, rel=0.02)


def test_full_remat_runs_the_trunk_once_more():
  found, _ = counted("supervised/vit:smoke", ("objective.model.remat", "full"))
  assert 1.2 < found.hardware / found.model < 4 / 3


def test_flops_are_those_of_one_device():
  found, run = counted("contrastive/siglip:smoke")
  assert found.model * run.mesh.size == run.model_flops()


def dot_in_kernel(grid, **kwargs):
  from jax.experimental import pallas as pl

  def kernel(x, out):
    @pl.when(pl.program_id(0) < 1)
    def _():
      out[...] = x[...] @ x[...]

  return pl.pallas_call(kernel, grid=grid, out_shape=shape(8, 8), interpret=True, name="mine",
                        **kwargs)


def kernels(fn, *args):
  work = flops.work(jax.make_jaxpr(fn)(*args), True, plan_flops.look_into)
  return work


def test_a_pallas_kernel_is_its_jaxpr_times_its_grid():
  work = kernels(dot_in_kernel((3, 5)), shape(8, 8))
  (kernel, calls), = work.kernels.items()
  assert (kernel.name, kernel.flops, calls) == ("mine", 15 * 2 * 8**3, 1)


def test_calls_of_a_kernel_in_a_scan_are_as_many_as_its_rounds():
  call = dot_in_kernel((1,))
  work = kernels(lambda x: jax.lax.scan(lambda x, _: (call(x), None), x, length=7)[0], shape(8, 8))
  assert list(work.kernels.values()) == [7]
  assert work.flops == 7 * 2 * 8**3


def test_a_kernel_with_a_loop_of_unknown_length_has_its_authors_estimate_or_is_unknown():
  from jax.experimental import pallas as pl

  def kernel(x, out):
    def body(i, y):
      return y @ x[...]
    out[...] = jax.lax.fori_loop(0, x[0, 0].astype(jnp.int32), body, x[...])

  call = functools.partial(pl.pallas_call, kernel, out_shape=shape(8, 8), interpret=True, name="k")
  estimate = pl.CostEstimate(flops=1234, transcendentals=0, bytes_accessed=0)
  (known,), (unknown,) = (kernels(fn, shape(8, 8)).kernels
                          for fn in (call(cost_estimate=estimate), call()))
  assert known.flops == 1234 and "estimate" in known.how
  assert unknown.flops is None
  calls = tuple(plan_flops.KernelCalls(k.name, 1, k.flops, k.how) for k in (known, unknown))
  assert plan_flops.Flops(1.0, 1.0, calls).at_least
  assert not plan_flops.Flops(1.0, 1.0, calls[:1]).at_least


def test_splash_attention_forward_is_4bhqkd_and_backward_three_and_a_half_times_that():
  """Backward in two kernels, which both compute the weights again: 3 + 4 products, not 2."""
  from mmjax.nn import attention_kernels
  rows, heads, length, width = 2, 3, 256, 64
  qkv = [shape(rows, length, heads, width, dtype=jnp.bfloat16)] * 3
  loss = lambda *qkv: attention_kernels.splash(*qkv).astype(jnp.float32).sum()
  work = kernels(jax.value_and_grad(loss, argnums=(0, 1, 2)), *qkv)
  forward = 4 * rows * heads * length**2 * width
  assert sum(k.flops * n for k, n in work.kernels.items()) == forward + 3.5 * forward


@pytest.mark.parametrize("line, expected", [
    ("dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}", 2 * 6 * 10 * 4),
    # A product as XLA:TPU writes it: no spatial dimension, or a batch dimension as a spatial one.
    ("convolution(%a, %b), dim_labels=bf_io->bf", 2 * 6 * 10 * 4),
])
def test_matrix_products_in_a_compiled_program(line, expected):
  text = f"""HloModule m
ENTRY %main (a: f32[6,4], b: f32[4,10]) -> f32[6,10] {{
  %a = f32[6,4]{{1,0}} parameter(0)
  %b = f32[4,10]{{1,0}} parameter(1)
  ROOT %c = f32[6,10]{{1,0}} {line}
}}
"""
  assert plan_flops.products(hlo.parse(text)) == expected


def test_a_batched_product_written_as_a_dilated_convolution_counts_no_holes():
  batch, m, k, n = 32, 6, 4, 10
  text = f"""HloModule m
ENTRY %main (a: f32[32,6,4], b: f32[32,4,10]) -> f32[32,6,10] {{
  %a = f32[32,6,4]{{2,1,0}} parameter(0)
  %b = f32[32,4,10]{{2,1,0}} parameter(1)
  ROOT %c = f32[32,6,10]{{2,1,0}} convolution(%a, %b), window={{size=32 stride=31 lhs_dilate=32}}, \
dim_labels=0bf_0io->0bf
}}
"""
  assert plan_flops.products(hlo.parse(text)) == batch * 2 * m * k * n


def test_executed_products_of_a_compiled_program_are_those_of_its_jaxpr():
  def step(weights, x):
    body = lambda x, w: (jnp.tanh(x @ w), None)
    loss = lambda weights: jnp.sum(jax.lax.scan(body, x, weights)[0] ** 2)
    return jax.value_and_grad(loss)(weights)

  args = shape(6, 32, 32), shape(8, 32)
  text = jax.jit(step).lower(*args).compile().as_text()
  assert plan_flops.products(hlo.parse(text)) == flops.count(step, *args)
