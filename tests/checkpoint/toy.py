"""A small state with all that a real one has: nesting, bfloat16, NaN payloads, optimizer, flags."""

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
import numpy as np
import optax


@flax.struct.dataclass
class State:
  step: jax.Array
  params: dict
  opt_state: object
  state: dict
  teachers: dict
  halted: jax.Array


def state(step=3, width=16):
  """A state whose values depend on `step`; leaves from [] to [16, width]."""
  keys = jax.random.split(jax.random.key(step), 3)
  nan_payloads = np.array([0x7FC00001, 0xFFC12345] * 8, np.uint32).view(np.float32)
  params = {
      "encoder": {"kernel": jax.random.normal(keys[0], (16, width)),
                  "half": jax.random.normal(keys[1], (16,), jnp.bfloat16)},
      "head": {"kernel": jax.random.normal(keys[2], (8, 4))}}
  return State(
      step=jnp.int32(step), params=params, opt_state=optax.adam(1e-3).init(params),
      state={"centre": jnp.asarray(nan_payloads)}, teachers={}, halted=jnp.bool_(False))


def abstract(tree, sharding=None):
  """Shapes and dtypes of `tree`, all with `sharding` (None: each leaf's own)."""
  return jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding or x.sharding), tree)


def sharded(tree, data, fsdp):
  """A sharding for every leaf on a mesh (data, fsdp): dimension 0 over both, if it divides."""
  mesh = jax.make_mesh((data, fsdp), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

  def of(leaf):
    divides = leaf.ndim and leaf.shape[0] % (data * fsdp) == 0
    return NamedSharding(mesh, P(("data", "fsdp")) if divides else P())

  return jax.tree.map(of, tree)
