"""Rows of a table that is spread over devices, as token embeddings are.

A device looks up its columns of the table for the ids of all devices that hold the other columns, and
they exchange what they found. Backward, what belongs to a device's columns comes back the same way and
is added up there; devices that hold copies of the table add their sums once, at the end. Left to the
compiler, each device would add up a gradient of the whole table.
"""

import functools
import math
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mmjax.parallel import mesh as mesh_lib

LANES = 128  # to which a TPU pads the rows of an array
PADDING = 4  # so many times the looked-up rows may take, padded


def lookup(table, ids):
  """The rows of `table` [V, D] that `ids` int32 [B, L] name: [B, L, D]. An id outside gives NaN.

  Where a device's columns are few, their padding is most of the memory; the length is then taken in
  parts.

  Args:
    table: lies on the mesh as the rules of `parallel.mesh.use` say for ("vocab", "embed").
    ids: as they say for "batch"; the result too.
  """
  vocab, columns = mesh_lib.axes_by_dimension(("vocab", "embed"), table.shape)
  rows, _ = mesh_lib.axes_by_dimension(("batch", None), ids.shape)
  if not (vocab or columns):
    return table.at[ids].get(mode="fill", fill_value=jnp.nan, wrap_negative_indices=False)
  devices = mesh_lib.device_count(columns)
  most = max(1, LANES * devices // (PADDING * table.shape[1]))
  parts = max(n for n in range(1, most + 1) if ids.shape[1] % n == 0)
  return _lookup(_How(table.shape, vocab, columns, rows, parts), table, ids)


class _How(NamedTuple):
  """What is static: [V, D], mesh axes of the table's dimensions and of the ids' rows, and the parts."""
  shape: tuple[int, int]
  vocab: tuple[str, ...]
  columns: tuple[str, ...]
  rows: tuple[str, ...]
  parts: int

  @property
  def exchanged(self):
    """Axes over which both columns and rows are spread."""
    return tuple(axis for axis in self.columns if axis in self.rows)

  @property
  def share(self):
    """[V', D'] of the table on a device."""
    return tuple(size // mesh_lib.device_count(axes)
                 for size, axes in zip(self.shape, (self.vocab, self.columns)))

  def on_shards(self, fn, inputs, outputs):
    """`fn` on each device's shares: "table" [V', D'], "ids" [B', L] and "found" [B', L, D]."""
    specs = {"table": PartitionSpec(self.vocab or None, self.columns or None),
             "ids": PartitionSpec(self.rows or None), "found": PartitionSpec(self.rows or None)}
    # check_vma guards the transposition of collectives, which does not happen: both passes are
    # written out.
    return jax.shard_map(fn, in_specs=tuple(specs[name] for name in inputs),
                         out_specs=specs[outputs], check_vma=False)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _lookup(how, table, ids):

  def local(table, ids):

    def one(_, ids):
      return None, _to_rows(how, _own(how, table, _gathered(how, ids)))

    found = lax.scan(one, None, _cut(ids, how.parts))[1]
    return found.swapaxes(0, 1).reshape(*ids.shape, -1)

  return how.on_shards(local, ("table", "ids"), "found")(table, ids)


def _forward(how, table, ids):
  return _lookup(how, table, ids), ids


def _backward(how, ids, grad):

  def local(ids, grad):

    def one(total, part):
      ids, grad = part
      places = _places(how, _gathered(how, ids))
      return total.at[places].add(_to_columns(how, grad), mode="drop"), None

    parts = _cut(ids, how.parts), _cut(grad, how.parts)
    total = lax.scan(one, jnp.zeros(how.share, grad.dtype), parts)[0]
    copies = tuple(axis for axis in how.rows if axis not in how.columns)
    return lax.psum(total, copies) if copies else total

  return how.on_shards(local, ("ids", "found"), "table")(ids, grad), None


_lookup.defvjp(_forward, _backward)


def _cut(x, parts):
  """[B, L, ...] -> [parts, B, L / parts, ...]."""
  return x.reshape(len(x), parts, x.shape[1] // parts, *x.shape[2:]).swapaxes(0, 1)


def _gathered(how, ids):
  """The ids of all devices that hold other columns: [B, L] -> [*devices of exchanged axes, B, L]."""
  for axis in how.exchanged:
    ids = lax.all_gather(ids, axis)
  return ids


def _places(how, ids):
  """Where the ids stand in this device's part of the table; what stands elsewhere is out of range."""
  length = how.share[0]
  if how.vocab:
    ids = ids - lax.axis_index(how.vocab) * length
  return jnp.where(ids < 0, length, ids)


def _own(how, table, ids):
  """This device's columns of the rows that `ids` name; NaN where there is no such row."""
  places = _places(how, ids)
  if not how.vocab:
    return table.at[places].get(mode="fill", fill_value=jnp.nan)
  found = lax.psum(table.at[places].get(mode="fill", fill_value=0), how.vocab)
  return jnp.where(((ids >= 0) & (ids < how.shape[0]))[..., None], found, jnp.nan)


def _to_rows(how, x):
  """[*devices of exchanged axes, B, L, own columns] -> [B, L, all columns]."""
  ahead = len(how.exchanged)
  for axis in reversed(how.columns):
    if axis in how.exchanged:
      ahead -= 1
      x = lax.all_to_all(x, axis, split_axis=0, concat_axis=ahead + 2)
    else:
      x = lax.all_gather(x, axis, axis=ahead + 2)
  return x.reshape(*x.shape[:2], -1)


def _to_columns(how, x):
  """The inverse of `_to_rows`, where devices of axes that are not exchanged have the same rows."""
  sizes = [mesh_lib.device_count((axis,)) for axis in how.columns]
  x = x.reshape(*x.shape[:2], *sizes, x.shape[-1] // math.prod(sizes))
  ahead = 0
  for axis in how.columns:
    if axis in how.exchanged:
      x = lax.all_to_all(x, axis, split_axis=ahead + 2, concat_axis=0)
      ahead += 1
    else:
      x = lax.dynamic_index_in_dim(x, lax.axis_index(axis), ahead + 2, keepdims=False)
  return x
