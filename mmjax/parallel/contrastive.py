"""The contrastive losses of `mmjax.losses.contrastive` for sharded and for large batches.

Each device keeps its own images. The texts travel round a ring of all devices that share the batch,
one neighbour at a time (the scheme of SigLIP, Zhai et al. 2023, arXiv:2303.15343, sec. 3.3), with
whatever must be summed per text travelling along. Inside a device the pairs are visited in blocks
of images. A device so holds [block, b] pairs at once, where b is its share of the batch, and never
an array of the whole batch. The gradients make the same journey again instead of storing pairs.

Embeddings travel in their own dtype; logits, sums and gradients are float32.
"""

import functools
import math

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.parallel import mesh as mesh_lib

BLOCK = 1024  # images visited at once: large enough to fill a matrix unit, [BLOCK, b] stays small


def softmax(image, text, scale, valid=None, *, block=BLOCK):
  """`losses.contrastive.softmax`, same arguments and values, without its [B, B].

  The batch is sharded as the rules say for `batch` in the context of `parallel.mesh.use`; outside
  of it, it lies on one device.

  Args:
    image, text: unit-norm embeddings [B, D].
    scale: float32 [].
    valid: bool [B]; None means all.
    block: images visited at once on a device.

  Returns:
    float32 [B].

  Raises:
    ValueError: the devices do not divide the batch.
  """
  axes = _batch_axes(image)
  valid = jnp.ones(len(image), bool) if valid is None else valid
  return _softmax(axes, block, image, text, jnp.asarray(scale, jnp.float32), valid)


def sigmoid(image, text, scale, bias, valid=None, *, block=BLOCK):
  """`losses.contrastive.sigmoid`, same arguments and values, without its [B, B].

  Args:
    image, text: unit-norm embeddings [B, D].
    scale, bias: float32 [].
    valid: bool [B]; None means all.
    block: images visited at once on a device.

  Returns:
    float32 [B].

  Raises:
    ValueError: the devices do not divide the batch.
  """
  axes = _batch_axes(image)
  valid = jnp.ones(len(image), bool) if valid is None else valid
  scale, bias = jnp.asarray(scale, jnp.float32), jnp.asarray(bias, jnp.float32)
  return _sigmoid(axes, block, image, text, scale, bias, valid)


def _batch_axes(image):
  axes = mesh_lib.batch_axes()
  mesh = jax.sharding.get_abstract_mesh()
  count = math.prod(mesh.shape[axis] for axis in axes)
  if len(image) % count:
    raise ValueError(f"contrastive loss: a batch of {len(image)} rows cannot be split evenly over "
                     f"the {count} devices of mesh axes {', '.join(axes)}")
  return axes


# Softmax. With s_ij = scale * image_i . text_j, the loss of row i is
#   (log sum_j exp s_ij + log sum_j exp s_ji) / 2 - s_ii,
# and the derivative of sum_i g_i loss_i with respect to s_ij is
#   (g_i p_ij + g_j q_ij) / 2 - [i = j] g_i,
# where p_ij = exp(s_ij - lse_i) along the row and q_ij = exp(s_ij - lse_j) along the column.


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _softmax(axes, block, image, text, scale, valid):
  return _softmax_forward(axes, block, image, text, scale, valid)[0]


def _softmax_forward(axes, block, image, text, scale, valid):

  def local(image, text, valid, scale):
    rows, columns = _sides(axes, image, text, valid)
    start = jnp.full(len(image), -jnp.inf, jnp.float32)

    def tile(rows, row_lse, columns, column_lse):
      pair, _ = _pairs(rows, columns)
      logits = jnp.where(pair, scale * _dots(rows, columns), -jnp.inf)
      return (jnp.logaddexp(row_lse, jax.nn.logsumexp(logits, axis=1)),
              jnp.logaddexp(column_lse, jax.nn.logsumexp(logits, axis=0)))

    row_lse, column_lse = _visit_pairs(axes, block, tile, rows, start, columns, start)
    own = scale * jnp.einsum("id,id->i", image, text, precision="highest",
                             preferred_element_type=jnp.float32)
    return jnp.where(valid, 0.5 * (row_lse + column_lse) - own, 0), row_lse, column_lse

  loss, row_lse, column_lse = _on_shards(axes, local, (image, text, valid), scale)
  return loss, (image, text, scale, valid, row_lse, column_lse)


def _softmax_backward(axes, block, saved, grad):

  def local(image, text, valid, row_lse, column_lse, grad, scale):
    rows, columns = _sides(axes, image, text, valid)
    grad = jnp.where(valid, grad, 0)
    rows = {**rows, "lse": row_lse, "grad": grad}
    columns = {**columns, "lse": column_lse, "grad": grad}

    def tile(rows, row_grads, columns, text_grad):
      pair, same = _pairs(rows, columns)
      dots = recomputed_dots(rows, columns)
      along_row = jnp.exp(scale * dots - rows["lse"][:, None]) * rows["grad"][:, None]
      along_column = jnp.exp(scale * dots - columns["lse"]) * columns["grad"]
      d_logits = jnp.where(pair, 0.5 * (along_row + along_column), 0)
      d_logits -= jnp.where(same, rows["grad"][:, None], 0)
      row_grads, text_grad = _add_grads(d_logits, scale, dots, rows, row_grads, columns, text_grad)
      return row_grads, text_grad

    row_grads, text_grad = _visit_pairs(
        axes, block, tile, rows, _zero_row_grads(image), columns, jnp.zeros(text.shape))
    return row_grads["image"], text_grad, row_grads["scale"]

  image, text, scale, valid, row_lse, column_lse = saved
  sharded = (image, text, valid, row_lse, column_lse, grad)
  d_image, d_text, d_scale = _on_shards(axes, local, sharded, scale)
  return d_image.astype(image.dtype), d_text.astype(text.dtype), jnp.sum(d_scale), None


_softmax.defvjp(_softmax_forward, _softmax_backward)


# Sigmoid. With l_ij = scale * image_i . text_j + bias and z_ij = 1 if i = j else -1, the loss of
# row i is sum_j softplus(-z_ij l_ij); its derivative with respect to l_ij is
#   -z_ij sigmoid(-z_ij l_ij).


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sigmoid(axes, block, image, text, scale, bias, valid):
  return _sigmoid_forward(axes, block, image, text, scale, bias, valid)[0]


def _sigmoid_forward(axes, block, image, text, scale, bias, valid):

  def local(image, text, valid, scale, bias):
    rows, columns = _sides(axes, image, text, valid)

    def tile(rows, loss, columns, nothing):
      pair, same = _pairs(rows, columns)
      logits = scale * _dots(rows, columns) + bias
      terms = jax.nn.softplus(jnp.where(same, -logits, logits))
      return loss + jnp.sum(jnp.where(pair, terms, 0), axis=1), nothing

    loss, _ = _visit_pairs(axes, block, tile, rows, jnp.zeros(len(image)), columns, ())
    return loss

  loss = _on_shards(axes, local, (image, text, valid), scale, bias)
  return loss, (image, text, scale, bias, valid)


def _sigmoid_backward(axes, block, saved, grad):

  def local(image, text, valid, grad, scale, bias):
    rows, columns = _sides(axes, image, text, valid)
    rows = {**rows, "grad": grad}

    def tile(rows, row_grads, columns, text_grad):
      pair, same = _pairs(rows, columns)
      dots = recomputed_dots(rows, columns)
      logits = scale * dots + bias
      d_terms = jnp.where(same, -jax.nn.sigmoid(-logits), jax.nn.sigmoid(logits))
      d_logits = jnp.where(pair, d_terms * rows["grad"][:, None], 0)
      bias_grad = row_grads["bias"] + jnp.sum(d_logits, axis=1)
      row_grads, text_grad = _add_grads(d_logits, scale, dots, rows, row_grads, columns, text_grad)
      return {**row_grads, "bias": bias_grad}, text_grad

    start = {**_zero_row_grads(image), "bias": jnp.zeros(len(image))}
    row_grads, text_grad = _visit_pairs(
        axes, block, tile, rows, start, columns, jnp.zeros(text.shape))
    return row_grads["image"], text_grad, row_grads["scale"], row_grads["bias"]

  image, text, scale, bias, valid = saved
  d_image, d_text, d_scale, d_bias = _on_shards(
      axes, local, (image, text, valid, grad), scale, bias)
  return (d_image.astype(image.dtype), d_text.astype(text.dtype), jnp.sum(d_scale),
          jnp.sum(d_bias), None)


_sigmoid.defvjp(_sigmoid_forward, _sigmoid_backward)


# What both have in common: the two sides of a block of pairs, and the journey over all pairs.


def _sides(axes, image, text, valid):
  """This device's images (rows of the pair matrix) and texts (columns), each with its place."""
  place = jnp.arange(len(image), dtype=jnp.int32)
  if axes:
    place += lax.axis_index(axes) * len(image)
  return ({"embed": image, "valid": valid, "place": place},
          {"embed": text, "valid": valid, "place": place})


def _pairs(rows, columns):
  """bool [r, c], twice: pairs of two valid rows; those of them that belong together."""
  pair = rows["valid"][:, None] & columns["valid"]
  return pair, pair & (rows["place"][:, None] == columns["place"])


def _dots(rows, columns):
  """All inner products, float32 [r, c]. Full precision: `scale` multiplies a rounding by 100."""
  return jnp.einsum("rd,cd->rc", rows["embed"], columns["embed"], precision="highest",
                    preferred_element_type=jnp.float32)


@jax.jit
def recomputed_dots(rows, columns):
  """`_dots` in a backward pass. Its name tells `training/flops.py` that this is no work of the model."""
  return _dots(rows, columns)


def _zero_row_grads(image):
  """Zeros for the sums of `_add_grads` that stay with the images."""
  return {"image": jnp.zeros(image.shape), "scale": jnp.zeros(len(image))}


def _add_grads(d_logits, scale, dots, rows, row_grads, columns, text_grad):
  """Adds what a block's `d_logits` [r, c] gives to the gradients of images, scale and texts."""
  product = functools.partial(jnp.einsum, precision="highest")
  image, text = rows["embed"].astype(jnp.float32), columns["embed"].astype(jnp.float32)
  return ({"image": row_grads["image"] + scale * product("rc,cd->rd", d_logits, text),
           "scale": row_grads["scale"] + jnp.sum(d_logits * dots, axis=1)},
          text_grad + scale * product("rc,rd->cd", d_logits, image))


def _visit_pairs(axes, block, tile, rows, row_sums, columns, column_sums):
  """Visits every pair of a row of the batch and a column of the batch once.

  Args:
    axes: mesh axes of the ring, () on one device.
    block: rows visited at once.
    tile: (rows, row_sums, columns, column_sums) -> (row_sums, column_sums), for a block of rows.
    rows, row_sums: trees of arrays [b, ...] that stay on this device.
    columns, column_sums: trees of arrays [b, ...] that travel, and are home again at the end.

  Returns:
    row_sums, column_sums.
  """
  length = len(rows["valid"])
  block = min(block, length)
  rows, row_sums = _split((rows, row_sums), length, block)
  devices = math.prod(lax.axis_size(axis) for axis in axes)
  neighbours = [(i, (i + 1) % devices) for i in range(devices)]

  def visit(columns, row_sums, column_sums):
    def one_block(column_sums, of_rows):
      row_sums, column_sums = tile(*of_rows, columns, column_sums)
      return column_sums, row_sums
    column_sums, row_sums = lax.scan(one_block, column_sums, (rows, row_sums))
    return row_sums, column_sums

  def hop(carry, _):
    columns, row_sums, column_sums = carry
    # Sent before the visit, which does not change it, so that the sending hides behind the work.
    arriving = _send(columns, axes, neighbours)
    row_sums, column_sums = visit(columns, row_sums, column_sums)
    return (arriving, row_sums, _send(column_sums, axes, neighbours)), None

  if devices == 1:
    row_sums, column_sums = visit(columns, row_sums, column_sums)
  else:
    carry = (columns, row_sums, column_sums)
    (_, row_sums, column_sums), _ = lax.scan(hop, carry, length=devices)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:length], row_sums), column_sums


def _split(tree, length, block):
  """[b, ...] -> [blocks, block, ...], padded with zeros: a padding row has valid=False."""
  padding = -length % block
  pad = lambda x: jnp.pad(x, [(0, padding)] + [(0, 0)] * (x.ndim - 1)) if padding else x
  return jax.tree.map(lambda x: pad(x).reshape(-1, block, *x.shape[1:]), tree)


def _send(tree, axes, neighbours):
  return jax.tree.map(lambda x: lax.ppermute(x, axes, neighbours), tree)


def _on_shards(axes, local, sharded, *scalars):
  """Runs `local(*sharded, *scalars)` on every device's share of the batch."""
  if not axes:
    return local(*sharded, *scalars)
  batch, whole = PartitionSpec(axes), PartitionSpec()
  # check_vma would ask to mark each sum that starts as zeros as differing between devices. What it
  # guards, the transposition of collectives, does not happen here: both passes are written out.
  return jax.shard_map(local, in_specs=(batch,) * len(sharded) + (whole,) * len(scalars),
                       out_specs=batch, check_vma=False)(*sharded, *scalars)
