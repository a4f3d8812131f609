"""TrainState: everything that a step changes and a checkpoint holds, and how it is laid out on a mesh."""

from collections.abc import Mapping
from typing import Any

from flax.core import meta
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mmjax.checkpoint import paths
from mmjax.objectives.contract import Objective
from mmjax.parallel import mesh as mesh_lib

Tree = Any
EMA = "ema"  # the teacher that follows all parameters and is used for evaluation


@flax.struct.dataclass
class TrainState:
  """One training run at one step.

  There is no PRNG key in it (keys come from seed and row) and no data iterator (its position is `step`).

  Attributes:
    step: int32 [], updates made so far.
    params: float32 parameters.
    opt_state: the optimizer's.
    state: the objective's own (centres, codebooks, running statistics, frozen networks).
    teachers: {name: EMA of a subtree of params}.
    halted: bool [], set for good by the first non-finite loss or gradient; nothing changes after it.
  """

  step: jax.Array
  params: Tree
  opt_state: Tree
  state: Tree
  teachers: Mapping[str, Tree]
  halted: jax.Array


def create(objective: Objective, optimizer: optax.GradientTransformation, batch: Tree, *, seed: int,
           ema: bool = False, initial: Mapping[str, jax.Array] | None = None,
           frozen: Mapping[str, jax.Array] | None = None) -> TrainState:
  """The state before the first step; pure, so it can be traced, jitted with shardings, or only shaped.

  Args:
    batch: leaves `[B, ...]`; only their shapes and dtypes matter.
    ema: keep the teacher "ema", which follows all parameters, for evaluation.
    initial: {path: array}, parameters that begin so, before optimizer and teachers look at them.
    frozen: {path: array}, what in the objective's own state begins so: frozen networks.
  """
  params, state = objective.init(jax.random.key(seed), batch)
  params, state = mesh_lib.unbox(params), mesh_lib.unbox(state)
  params = paths.unflatten({**paths.flatten(params), **(initial or {})}, like=params)
  state = paths.unflatten({**paths.flatten(state), **(frozen or {})}, like=state)
  teachers = objective.teachers(params)
  if ema:
    teachers = {**teachers, EMA: params}
  return TrainState(
      step=jnp.zeros((), jnp.int32), params=params, opt_state=optimizer.init(params), state=state,
      teachers=jax.tree.map(jnp.copy, teachers), halted=jnp.zeros((), jnp.bool_))


def shardings(objective: Objective, abstract: TrainState, batch: Tree, mesh: Mesh,
              rules: Mapping[str, Any]) -> tuple[TrainState, list]:
  """A NamedSharding for each leaf of `abstract`, and the dimensions that could not be divided.

  Parameters are laid out by their logical axis names, and so are leaves of the objective's state that have
  some (frozen networks). Another leaf of optimizer, teachers or state lies as the parameter does whose path
  ends its own and whose shape it has; all others are replicated.
  """
  boxed, boxed_state = jax.eval_shape(objective.init, jax.random.key(0), batch)
  by_param, undivided = mesh_lib.tree_shardings(mesh, rules, boxed)
  by_state, _ = mesh_lib.tree_shardings(mesh, rules, boxed_state)
  known = {_path(path): (leaf.shape, sharding) for (path, leaf), sharding in zip(
      jax.tree_util.tree_leaves_with_path(abstract.params), jax.tree.leaves(by_param), strict=True)}
  known |= {f"state/{_path(path)}": (leaf.shape, sharding) for (path, leaf), sharding, named in zip(
      jax.tree_util.tree_leaves_with_path(abstract.state), jax.tree.leaves(by_state),
      _have_names(boxed_state), strict=True) if named}
  replicated = NamedSharding(mesh, PartitionSpec())

  def of(path, leaf):
    parts = _path(path).split("/")
    for start in range(len(parts)):
      shape, sharding = known.get("/".join(parts[start:]), (None, None))
      if shape == leaf.shape:
        return sharding
    return replicated

  return jax.tree_util.tree_map_with_path(of, abstract), undivided


def _have_names(boxed: Tree) -> list[bool]:
  """For each leaf, whether it has logical axis names."""
  is_box = lambda x: isinstance(x, meta.AxisMetadata)
  return [is_box(leaf) for leaf in jax.tree.leaves(boxed, is_leaf=is_box)]


def _path(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
