"""Attention whose memory grows linearly with length: in blocks, and around a ring of devices.

Each device keeps its own queries. Keys and values travel round a ring of the devices that share a
row's length, one neighbour at a time (Liu et al. 2023, arXiv:2310.01889), with the ids and places
that masks need. Inside a device queries meet keys in blocks [block, block], with the running
maximum and sum of an online softmax (Milakov & Gimelshein 2018, arXiv:1805.02867, algorithm 3).
The backward pass computes the weights again from the saved log-sum-exp (Dao et al. 2022,
arXiv:2205.14135, algorithm 4); the gradients of keys and values travel along with them and are home
at the end.

Queries, keys and values travel in their own dtype; logits, sums and gradients are float32.

With `causal`, blocks that nobody may see are skipped, and so are hops that bring nothing else.
Devices hold consecutive pieces of the length, so those at the end work while those at the start
wait: the time is that of the last device. (A striped order, arXiv:2311.09431, would balance the
work; it is not done here.)
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.parallel import mesh as mesh_lib

BLOCK = 512  # queries and keys of a block: [512, 512] fills a matrix unit, and is 1 MiB a head


def attention(q, k, v, ids=None, *, causal=False, ring=False, block=BLOCK):
  """softmax(q k^T / sqrt(d)) v without an array of [Q, K].

  Rows and heads stay sharded as the rules say for `batch` and `heads`, as far as their devices
  divide them.

  Args:
    q: [B, Q, H, d].
    k, v: [B, K, H, d].
    ids: (int32 [B, Q], int32 [B, K]): a query sees the keys that have its own id. None for all.
    causal: query i sees the keys j <= i only.
    ring: the length is sharded as the rules say for `length`, else each device holds all of it.
    block: queries, and keys, visited at once on a device.

  Returns:
    [B, Q, H, d] in v's dtype; zero for a query that sees no key.

  Raises:
    ValueError: with `ring`, the devices do not divide the length, or Q is not K.
  """
  if ring and q.shape[1] != k.shape[1]:
    raise ValueError(f"ring attention: {q.shape[1]} queries, but {k.shape[1]} keys")
  batch, length, heads = axes_of_tokens(*q.shape[:3])
  if ring and length != mesh_lib.axes_of("length"):
    axes = mesh_lib.axes_of("length")
    raise ValueError(f"ring attention: a length of {q.shape[1]} cannot be split evenly over the "
                     f"{mesh_lib.device_count(axes)} devices of mesh axes {', '.join(axes)}")
  return _attention(_How(batch, length if ring else (), heads, causal, block), q, k, v, ids)


def axes_of_tokens(batch, length, heads):
  """How [B, L, H, ...] of these sizes lies on the mesh, as `mesh.constrain` would have it.

  Returns:
    Three tuples of mesh axes of more than one device: those of the rows, the length and the heads.
  """
  mesh, taken, found = jax.sharding.get_abstract_mesh(), set(), []
  for logical, size in (("batch", batch), ("length", length), ("heads", heads)):
    axes = ()
    for axis in mesh_lib.axes_of(logical):
      if axis not in taken and axis not in mesh.manual_axes and (
          size % mesh_lib.device_count((*axes, axis)) == 0):
        axes += (axis,)
    taken.update(axes)
    found.append(axes)
  return tuple(found)


def on_shards(fn, batch, length, heads, *args):
  """`fn(*args)` on each device's share of arrays [B, L, H, ...]; None stays None.

  Args:
    fn: gives arrays [B, L, H, ...] too.
    batch, length, heads: mesh axes of these dimensions.
    args: trees of arrays.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1 or mesh.manual_axes:  # one device, or inside a shard_map
    return fn(*args)
  axes = [names or None for names in (batch, length, heads)]
  specs = jax.tree.map(lambda x: PartitionSpec(*axes[:x.ndim]), args)
  # check_vma would ask to mark each sum that starts as zeros as differing between devices, and does
  # not know of kernels.
  return jax.shard_map(fn, in_specs=specs, out_specs=PartitionSpec(*axes), check_vma=False)(*args)


class _How(NamedTuple):
  """What is static: mesh axes of the rows, the length and the heads, and the arguments."""
  batch: tuple[str, ...]
  ring: tuple[str, ...]
  heads: tuple[str, ...]
  causal: bool
  block: int


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(how, q, k, v, ids):
  return _forward(how, q, k, v, ids)[0]


def _forward(how, q, k, v, ids):

  def local(q, k, v, ids):
    rows, columns = _sides(how, q, k, v, ids)
    shape = rows["q"].shape
    start = {"max": jnp.full(shape[:3], jnp.finfo(jnp.float32).min), "sum": jnp.zeros(shape[:3]),
             "out": jnp.zeros(shape)}

    def tile(rows, sums, columns, nothing):
      logits = _logits(how, rows, columns)
      top = jnp.maximum(sums["max"], jnp.max(logits, axis=-1))
      weights = jnp.exp(logits - top[..., None])
      shrink = jnp.exp(sums["max"] - top)
      return {
          "max": top,
          "sum": sums["sum"] * shrink + jnp.sum(weights, axis=-1),
          "out": sums["out"] * shrink[..., None] + _product(
              "bhqk,bhkd->bhqd", weights.astype(v.dtype), columns["v"]),
      }, nothing

    sums, _ = _visit_pairs(how, tile, rows, start, columns, ())
    seen = sums["sum"] > 0
    total = jnp.where(seen, sums["sum"], 1)
    out = (sums["out"] / total[..., None]).astype(v.dtype)  # zero where nothing was seen
    # Infinite there, so that the backward pass finds weights of zero.
    lse = jnp.where(seen, sums["max"] + jnp.log(total), jnp.inf)
    return out.swapaxes(1, 2), lse.swapaxes(1, 2)

  out, lse = on_shards(local, how.batch, how.ring, how.heads, q, k, v, ids)
  return out, (q, k, v, ids, out, lse)


def _backward(how, saved, grad):

  def local(q, k, v, ids, out, lse, grad):
    rows, columns = _sides(how, q, k, v, ids)
    along = jnp.sum(out.astype(jnp.float32) * grad, axis=-1)
    rows = {**rows, "grad": grad.swapaxes(1, 2), "lse": lse.swapaxes(1, 2),
            "along": along.swapaxes(1, 2)}

    def tile(rows, d_q, columns, d_columns):
      weights = jnp.exp(_logits(how, rows, columns) - rows["lse"][..., None])
      d_v = _product("bhqk,bhqd->bhkd", weights.astype(v.dtype), rows["grad"])
      d_weights = _product("bhqd,bhkd->bhqk", rows["grad"], columns["v"])
      d_logits = weights * (d_weights - rows["along"][..., None]) * q.shape[-1] ** -0.5
      d_logits = d_logits.astype(q.dtype)
      d_k = _product("bhqk,bhqd->bhkd", d_logits, rows["q"])
      return (d_q + _product("bhqk,bhkd->bhqd", d_logits, columns["k"]),
              {"k": d_columns["k"] + d_k, "v": d_columns["v"] + d_v})

    zeros = {name: jnp.zeros(columns[name].shape) for name in ("k", "v")}
    d_q, d_columns = _visit_pairs(how, tile, rows, jnp.zeros(rows["q"].shape), columns, zeros)
    grads = d_q.astype(q.dtype), d_columns["k"].astype(k.dtype), d_columns["v"].astype(v.dtype)
    return tuple(x.swapaxes(1, 2) for x in grads)

  d_q, d_k, d_v = on_shards(local, how.batch, how.ring, how.heads, *saved, grad)
  return d_q, d_k, d_v, None


_attention.defvjp(_forward, _backward)


# What both passes have in common. On a device all arrays are [B, H, L, ...], with 1 for B or H
# where all rows or heads have the same.


def _sides(how, q, k, v, ids):
  """This device's queries and what travels: its keys and values. Each with what masks need."""
  rows = {"q": q.swapaxes(1, 2)}
  columns = {"k": k.swapaxes(1, 2), "v": v.swapaxes(1, 2)}
  for side, ids_of_side in zip((rows, columns), (None, None) if ids is None else ids):
    length = side[min(side)].shape[2]
    if ids is not None:
      side["id"] = ids_of_side[:, None]
    if how.causal:
      place = jnp.arange(length, dtype=jnp.int32)
      if how.ring:
        place += lax.axis_index(how.ring) * length
      side["place"] = place[None, None]
  return rows, columns


def _logits(how, rows, columns):
  """float32 [B, H, q, k]; -inf for keys that a query does not see."""
  logits = _product("bhqd,bhkd->bhqk", rows["q"], columns["k"]) * rows["q"].shape[-1] ** -0.5
  visible = columns["real"][:, :, None]
  if "id" in rows:
    visible &= rows["id"][..., None] == columns["id"][:, :, None]
  if how.causal:
    visible &= rows["place"][..., None] >= columns["place"][:, :, None]
  return jnp.where(visible, logits, -jnp.inf)


def _product(equation, x, y):
  return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _visit_pairs(how, tile, rows, row_sums, columns, column_sums):
  """Visits every pair of a query and a key that share a row of the batch once.

  Args:
    how: static arguments.
    tile: (rows, row_sums, columns, column_sums) -> (row_sums, column_sums), for a block of each.
    rows, row_sums: trees of arrays [B, H, Q, ...] that stay on this device.
    columns, column_sums: trees of arrays [B, H, K, ...] that travel; the sums come home again.

  Returns:
    row_sums, column_sums.
  """
  queries, keys = rows["q"].shape[2], columns["k"].shape[2]
  columns = {**columns, "real": jnp.ones((1, 1, keys), bool)}  # False for what pads a block
  rows, row_sums = _split((rows, row_sums), how.block)
  columns, column_sums = _split((columns, column_sums), how.block)
  devices = mesh_lib.device_count(how.ring)
  neighbours = [(i, (i + 1) % devices) for i in range(devices)]
  send = lambda tree: jax.tree.map(lambda x: lax.ppermute(x, how.ring, neighbours), tree)
  visit = functools.partial(_visit_blocks, how, tile, rows)

  def hop(carry, _):
    row_sums, columns, column_sums = carry
    # Sent before the visit, which does not change it, so that the sending hides behind the work.
    arriving = send(columns)
    row_sums, column_sums = visit(row_sums, columns, column_sums)
    return (row_sums, arriving, send(column_sums)), None

  if devices > 1:  # the last visit is outside, since after it only the sums travel
    carry = (row_sums, columns, column_sums)
    (row_sums, columns, column_sums), _ = lax.scan(hop, carry, length=devices - 1)
  row_sums, column_sums = visit(row_sums, columns, column_sums)
  if devices > 1:
    column_sums = send(column_sums)
  return _join(row_sums, queries), _join(column_sums, keys)


def _visit_blocks(how, tile, rows, row_sums, columns, column_sums):
  """Visits all blocks of `columns` with all blocks of `rows`, both on this device."""

  def row_block(column_sums, row):
    rows, row_sums = row

    def column_block(row_sums, column):
      columns, column_sums = column
      if not how.causal:
        return tile(rows, row_sums, columns, column_sums)
      needed = jnp.max(rows["place"]) >= columns["place"][0, 0, 0]
      return lax.cond(needed, tile, lambda _, row_sums, __, column_sums: (row_sums, column_sums),
                      rows, row_sums, columns, column_sums)

    row_sums, column_sums = lax.scan(column_block, row_sums, (columns, column_sums))
    return column_sums, row_sums

  column_sums, row_sums = lax.scan(row_block, column_sums, (rows, row_sums))
  return row_sums, column_sums


def _split(tree, block):
  """[B, H, L, ...] -> [blocks, B, H, block, ...], padded with zeros (False)."""

  def split(x):
    size = min(block, x.shape[2])
    x = jnp.pad(x, [(0, -x.shape[2] % size if axis == 2 else 0) for axis in range(x.ndim)])
    return jnp.moveaxis(x.reshape(*x.shape[:2], -1, size, *x.shape[3:]), 2, 0)

  return jax.tree.map(split, tree)


def _join(tree, length):
  """Undoes `_split`."""
  join = lambda x: x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :length]
  return jax.tree.map(lambda x: join(jnp.moveaxis(x, 0, 2)), tree)
