"""Distillation over very many prototypes, for sharded and for large batches.

A logit is the inner product of a unit-norm feature with a prototype. Of K = 65,536 prototypes the
logits of one row take 256 KiB, those of the masked patches of 32 views 800 MiB. So they are made
block of rows by block of rows on the device that has the rows, as often as they are needed, and
thrown away: a device holds [block, K] at once (three such arrays), the prototypes [D, K] and their
gradient, and nothing of size [rows, K]. Devices exchange vectors of K numbers, and the gradient of
the prototypes once.

The products are of the given dtype with float32 sums; everything after them is float32.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.losses import self_distillation as losses
from mmjax.parallel import mesh as mesh_lib

BLOCK = 512  # rows whose logits a device holds: enough to fill a matrix unit; 128 MiB of 65,536


class Distilled(NamedTuple):
  """What `distil` gives.

  Attributes:
    loss: float32 [B, P], cross-entropy of each pair.
    entropy: float32 [B, P], of the targets, in nats; no gradient.
    usage: float32 [K], weighted sum of the student's probabilities over pairs.
  """

  loss: jax.Array
  entropy: jax.Array
  usage: jax.Array


def distil(teacher, student, teacher_prototypes, prototypes, weight, bias, teacher_temperature,
           student_temperature, *, dtype="float32", block=BLOCK):
  """Cross-entropy of pairs of rows over the prototypes, `losses.cross_entropy` without [B, P, K].

  The target is softmax(t / teacher_temperature + bias), the prediction softmax(s / temperature), t
  and s the inner products with the prototypes. Only `student` and `prototypes` get a gradient.

  Args:
    teacher, student: [B, P, D], the two sides of P pairs a row. The batch is sharded as the rules
      say for `batch` in the context of `parallel.mesh.use`; outside of it, it lies on one device.
    teacher_prototypes, prototypes: float32 [D, K].
    weight: float32 [B, P], of each pair in the usage; what weighs 0 may hold anything finite.
    bias: float32 [K]: of Sinkhorn, or -centre / temperature, or zeros.
    teacher_temperature, student_temperature: float32 [].
    dtype: of the products' factors.
    block: rows visited at once on a device.

  Returns:
    `Distilled`.

  Raises:
    ValueError: the devices do not divide the batch.
  """
  axes = _batch_axes(len(student))
  constants = jax.tree.map(lax.stop_gradient, (teacher, teacher_prototypes, weight, bias,
                                               jnp.float32(teacher_temperature)))
  loss, entropy, usage = _distil(
      axes, block, dtype, student, prototypes, jnp.float32(student_temperature), *constants)
  return Distilled(loss, lax.stop_gradient(entropy), usage)


def sinkhorn(features, prototypes, weight, temperature, iterations=3, *, dtype="float32",
             block=BLOCK):
  """Bias with which a softmax uses all prototypes equally: Sinkhorn-Knopp over the whole batch.

  SwAV (Caron et al. 2020, arXiv:2006.09882, sec. 3.1) in the order of DINOv2 (arXiv:2304.07193,
  sec. 4): the matrix exp(logits / temperature) is scaled to equal sums of its columns (prototypes),
  then of its rows, `iterations` times. The last scaling of the rows is the softmax in which the
  bias is used. In logarithms, and one pass over the logits an iteration.

  Args:
    features: [B, P, D]. Sharded as in `distil`.
    prototypes: float32 [D, K].
    weight: float32 [B, P], mass of each row; those of weight 0 have no influence.
    temperature: float32 [].
    iterations: at least 1.
    dtype, block: as in `distil`.

  Returns:
    float32 [K]; no gradient. Zeros where no row has weight.
  """
  axes = _batch_axes(len(features))

  def local(features, weight, prototypes, temperature):
    rows = _blocks((features, weight), block)

    def column(bias, first):
      """log sum over all rows of row scale * exp(logit): float32 [K]."""
      def visit(total, rows):
        features, weight = rows
        logits = recomputed_logits(features, prototypes, dtype) / temperature
        scale = jnp.where(first, 0, -jax.nn.logsumexp(logits + bias, axis=1))
        scale += jnp.where(weight > 0, jnp.log(jnp.where(weight > 0, weight, 1)), -jnp.inf)
        return jnp.logaddexp(total, jax.nn.logsumexp(logits + scale[:, None], axis=0)), None

      total, _ = lax.scan(visit, jnp.full(prototypes.shape[1], -jnp.inf), rows)
      if not axes:
        return total
      most = lax.pmax(total, axes)
      most = jnp.where(jnp.isfinite(most), most, 0)
      return jnp.log(lax.psum(jnp.exp(total - most), axes)) + most

    def iterate(i, bias):
      total = column(bias, i == 0)
      return jnp.where(jnp.isfinite(total), -total, 0)

    return lax.fori_loop(0, iterations, iterate, jnp.zeros(prototypes.shape[1]))

  inputs = jax.tree.map(lax.stop_gradient, (features, weight, prototypes))
  return _on_shards(axes, local, inputs[:2], (inputs[2], jnp.float32(temperature)), PartitionSpec())


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _distil(axes, block, dtype, student, prototypes, temperature, *constants):
  return _distil_forward(axes, block, dtype, student, prototypes, temperature, *constants)[0]


def _distil_forward(axes, block, dtype, student, prototypes, temperature, *constants):
  teacher, teacher_prototypes, weight, bias, teacher_temperature = constants

  def local(student, teacher, weight, prototypes, temperature, teacher_prototypes, bias,
            teacher_temperature):
    def visit(usage, rows):
      student, teacher, weight = rows
      logits = _logits(student, prototypes, dtype) / temperature
      targets = _logits(teacher, teacher_prototypes, dtype) / teacher_temperature + bias
      loss, entropy = (losses.cross_entropy(targets, x) for x in (logits, targets))
      return usage + weight @ jax.nn.softmax(logits), (loss, entropy)

    rows = _blocks((student, teacher, weight), block)
    usage, of_rows = lax.scan(visit, jnp.zeros(prototypes.shape[1]), rows)
    loss, entropy = (_unblocked(x, weight.shape) for x in of_rows)
    return loss, entropy, usage[None]

  whole = prototypes, temperature, teacher_prototypes, bias, teacher_temperature
  loss, entropy, usage = _on_shards(axes, local, (student, teacher, weight), whole)
  result = loss, entropy, jnp.sum(usage, axis=0)
  return result, (student, prototypes, temperature, *constants)


# With p = softmax(s / tau) and target q, the loss sum_r g_r loss_r + sum_k h_k usage_k has the
# derivative (g_r (p_rk - q_rk) + w_r p_rk (h_k - sum_j p_rj h_j)) / tau with respect to s_rk.


def _distil_backward(axes, block, dtype, saved, grads):
  student, prototypes, temperature, *constants = saved
  teacher, teacher_prototypes, weight, bias, teacher_temperature = constants

  def local(student, teacher, weight, grad, prototypes, temperature, teacher_prototypes, bias,
            teacher_temperature, usage_grad):
    def visit(total, rows):
      student, teacher, weight, grad = rows
      p = jax.nn.softmax(recomputed_logits(student, prototypes, dtype) / temperature)
      q = jax.nn.softmax(recomputed_logits(teacher, teacher_prototypes, dtype) / teacher_temperature
                         + bias)
      d_logits = grad[:, None] * (p - q)
      d_logits += weight[:, None] * p * (usage_grad - (p @ usage_grad)[:, None])
      d_logits /= temperature
      return (total + _product("rd,rk->dk", student, d_logits, dtype),
              _product("rk,dk->rd", d_logits, prototypes, dtype))

    total, d_student = lax.scan(visit, jnp.zeros(prototypes.shape),
                                _blocks((student, teacher, weight, grad), block))
    return _unblocked(d_student, student.shape), total[None]

  whole = (prototypes, temperature, teacher_prototypes, bias, teacher_temperature, grads[2])
  d_student, d_prototypes = _on_shards(axes, local, (student, teacher, weight, grads[0]), whole)
  return (d_student.astype(student.dtype), jnp.sum(d_prototypes, axis=0), None,
          *[None] * len(constants))


_distil.defvjp(_distil_forward, _distil_backward)


def _product(spec, a, b, dtype):
  """A product of factors in `dtype`, summed in float32; float32 factors are not rounded."""
  precision = "highest" if jnp.dtype(dtype) == jnp.float32 else None
  return jnp.einsum(spec, a.astype(dtype), b.astype(dtype), precision=precision,
                    preferred_element_type=jnp.float32)


def _logits(features, prototypes, dtype):
  """[R, D], [D, K] -> float32 [R, K]."""
  return _product("rd,dk->rk", features, prototypes, dtype)


@functools.partial(jax.jit, static_argnums=2)
def recomputed_logits(features, prototypes, dtype):
  """`_logits` once more. Its name tells `training/flops.py` that this is no work of the model."""
  return _logits(features, prototypes, dtype)


def _blocks(tree, block):
  """Leaves [b, P, ...] -> [blocks, block, ...], padded with zeros: padding has no weight."""
  def cut(x):
    x = x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])
    size = min(block, len(x))
    x = jnp.pad(x, [(0, -len(x) % size)] + [(0, 0)] * (x.ndim - 1))
    return x.reshape(-1, size, *x.shape[1:])

  return jax.tree.map(cut, tree)


def _unblocked(x, shape):
  """[blocks, block, ...] -> `shape` [b, P, ...], without the padding."""
  return x.reshape(-1, *x.shape[2:])[:shape[0] * shape[1]].reshape(shape)


def _batch_axes(length):
  axes = mesh_lib.batch_axes()
  count = mesh_lib.device_count(axes) if axes else 1
  if length % count:
    raise ValueError(f"self-distillation: a batch of {length} rows cannot be split evenly over the "
                     f"{count} devices of mesh axes {', '.join(axes)}")
  return axes


def _on_shards(axes, local, sharded, whole, out=None):
  """Runs `local(*sharded, *whole)` on every device's share of the batch.

  `out` says how its results lie, by default as the batch does.
  """
  if not axes:
    return local(*sharded, *whole)
  batch = PartitionSpec(axes)
  # check_vma would ask to mark each sum that starts as zeros as differing between devices. What it
  # guards, the transposition of collectives, does not happen here: both passes are written out.
  return jax.shard_map(local, in_specs=(batch,) * len(sharded) + (PartitionSpec(),) * len(whole),
                       out_specs=batch if out is None else out, check_vma=False)(*sharded, *whole)
