"""Distillation and Sinkhorn in blocks and on eight devices, against all logits at once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel import prototypes as sharded

B, P, D, K = 16, 3, 8, 13
STUDENT, TEACHER = 0.1, 0.05
# float32 sums in another order.
CLOSE = dict(rtol=2e-5, atol=2e-6)


def unit(x, axis=-1):
  return (x / np.linalg.norm(x, axis=axis, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def case():
  rng = np.random.default_rng(0)
  normal = lambda *shape: rng.normal(size=shape)
  weight = rng.integers(0, 3, (B, P)).astype(np.float32)
  weight[5] = 0
  return dict(teacher=unit(normal(B, P, D)), student=unit(normal(B, P, D)),
              teacher_prototypes=unit(normal(D, K), 0), prototypes=unit(normal(D, K), 0),
              weight=weight, bias=normal(K).astype(np.float32))


def dense(student, prototypes, teacher, teacher_prototypes, weight, bias):
  """All three results with every logit at once, differentiated by JAX."""
  targets = jax.nn.softmax(teacher @ teacher_prototypes / TEACHER + bias)
  log_p = jax.nn.log_softmax(student @ prototypes / STUDENT)
  return (-jnp.sum(targets * log_p, -1), -jnp.sum(targets * jnp.log(targets), -1),
          jnp.einsum("bp,bpk->k", weight, jnp.exp(log_p)))


def blocked(student, prototypes, teacher, teacher_prototypes, weight, bias, block):
  return sharded.distil(teacher, student, teacher_prototypes, prototypes, weight, bias, TEACHER,
                        STUDENT, block=block)


def with_gradients(fn, case):
  """Results, and the gradient of a sum in which every loss and every use counts differently."""
  inputs = {key: jnp.asarray(value) for key, value in case.items()}

  def scalar(student, prototypes, rest):
    out = fn(student, prototypes, **rest)
    factors = jnp.arange(B * P, dtype=jnp.float32).reshape(B, P) / 10
    return jnp.sum(out[0] * factors) + jnp.sum(jnp.sin(out[2])), out

  student, prototypes = inputs.pop("student"), inputs.pop("prototypes")
  grads, out = jax.jit(jax.grad(scalar, (0, 1), has_aux=True))(student, prototypes, inputs)
  return jax.device_get((tuple(out), grads))


def same(got, want):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **CLOSE), got, want)


@pytest.mark.parametrize("block", [7, 512])
def test_blocks_of_rows_give_values_and_gradients_of_all_logits(block, case):
  same(with_gradients(functools.partial(blocked, block=block), case), with_gradients(dense, case))


def test_eight_devices_give_values_and_gradients_of_one(case):
  mesh = mesh_lib.make_mesh(data=2, fsdp=2, tensor=2)
  with mesh_lib.use(mesh):
    rows = mesh_lib.batch_sharding(mesh)
    placed = {key: jax.device_put(value, rows) if len(value) == B else value
              for key, value in case.items()}
    got = with_gradients(functools.partial(blocked, block=5), placed)
  same(got, with_gradients(dense, case))


def test_the_teacher_gets_no_gradient(case):
  def loss(teacher, kernel):
    case_of = {**case, "teacher": teacher, "teacher_prototypes": kernel}
    return jnp.sum(blocked(**case_of, block=512)[0])

  for gradient in jax.grad(loss, (0, 1))(case["teacher"], case["teacher_prototypes"]):
    assert np.abs(gradient).max() == 0


def sinkhorn_numpy(logits, weight, iterations):
  """The assignment itself, [rows, K], float64: columns, then rows, each to equal sums."""
  q = np.exp(logits.astype(np.float64)) * weight[:, None]
  for _ in range(iterations):
    q = q / q.sum(0) / q.shape[1]
    q = q / np.where(weight > 0, q.sum(1), 1)[:, None] * weight[:, None]
  return q / np.where(weight > 0, weight, 1)[:, None]


@pytest.mark.parametrize("iterations, block", [(1, 7), (3, 7), (3, 512), (10, 512)])
def test_sinkhorn_is_that_of_the_whole_matrix(iterations, block, case):
  logits = (case["teacher"] @ case["teacher_prototypes"] / TEACHER).reshape(-1, K)
  weight = case["weight"].reshape(-1)
  want = sinkhorn_numpy(logits, weight, iterations)
  bias = sharded.sinkhorn(case["teacher"], case["teacher_prototypes"], case["weight"], TEACHER,
                          iterations, block=block)
  got = np.asarray(jax.nn.softmax(logits + bias))
  np.testing.assert_allclose(got[weight > 0], want[weight > 0], **CLOSE)
  if iterations == 10:  # all prototypes are used equally, and without it they are not
    usage = weight @ got / weight.sum() * K
    assert np.abs(usage - 1).max() < 0.1 < 0.3 < np.abs(
        weight @ np.asarray(jax.nn.softmax(logits)) / weight.sum() * K - 1).max()


def test_sinkhorn_on_eight_devices_sees_all_rows(case):
  inputs = case["teacher"], case["teacher_prototypes"], case["weight"]
  want = sharded.sinkhorn(*inputs, TEACHER)
  mesh = mesh_lib.make_mesh(data=4, fsdp=2)
  with mesh_lib.use(mesh):
    rows = mesh_lib.batch_sharding(mesh)
    placed = jax.device_put(inputs[0], rows), inputs[1], jax.device_put(inputs[2], rows)
    got = jax.jit(lambda *x: sharded.sinkhorn(*x, TEACHER))(*placed)
  np.testing.assert_allclose(got, want, **CLOSE)


def test_sinkhorn_of_rows_without_weight_is_no_bias(case):
  bias = sharded.sinkhorn(case["teacher"], case["teacher_prototypes"], 0 * case["weight"], TEACHER)
  np.testing.assert_array_equal(bias, 0)


def test_a_batch_that_devices_do_not_divide_is_named(case):
  mesh = mesh_lib.make_mesh(data=8)
  with mesh_lib.use(mesh), pytest.raises(ValueError, match="a batch of 12 rows .* 8 devices"):
    sharded.sinkhorn(case["teacher"][:12], case["teacher_prototypes"], case["weight"][:12], TEACHER)
