"""What a step costs by arithmetic alone, so that `search` compiles only what may be worth it.

Exact: the bytes of the state, from its shardings. Traced, not compiled: what the forward pass
leaves stored for the backward pass under each remat policy, and its products. By formula:
communication. All figures are of one jax device and one step. What XLA adds or saves is unknown
here: `search` scales the estimates by what the compiled candidates turned out to need.
"""

import copy
import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType

from mmjax import config as config_lib
from mmjax.objectives.contract import Context, Objective
from mmjax.parallel import mesh as mesh_lib
from mmjax.training import flops, frozen
from mmjax.training import state as state_lib
from mmjax.training.assemble import Run
from mmjax.training.gradients import loss_and_grad

Node = dict[str, Any]
OWN = "as configured"  # towers whose policies differ, left as they are

# Names of `nn.transformer.REMAT_POLICIES`, from the least memory to the fewest FLOPs.
REMATS = ("full", "branches", "dots_no_batch", "dots", "none")
MOST_TENSOR = 8            # heads and hidden units over more devices leave too little for each
TOKENS_A_DEVICE = 1024     # a row is cut over `sequence` only into parts of at least so many tokens
MOST_ROWS = 8              # batches up to so many times the configured one


@dataclasses.dataclass(frozen=True)
class Candidate:
  """One setting that a search may compile.

  Attributes:
    batch_size: rows of the global batch.
    remat: policy of all towers, or `OWN`.
    mesh: devices of each of `mesh.AXES`.
  """

  batch_size: int
  remat: str
  mesh: tuple[int, ...]

  def size(self, axis: str) -> int:
    return self.mesh[mesh_lib.AXES.index(axis)]

  def __str__(self):
    mesh = " ".join(f"{axis}={n}" for axis, n in zip(mesh_lib.AXES, self.mesh) if n > 1)
    return f"batch {self.batch_size}, remat {self.remat}, mesh {mesh or 'of one device'}"


@dataclasses.dataclass(frozen=True)
class Costs:
  """Of one device and one step: bytes of its memory and of the two networks, and FLOPs.

  Attributes:
    state: bytes of the train state and the batch, exact.
    temp: bytes of all else at the peak.
    flops: of products, what is computed twice counted twice.
    traffic: bytes to and from the memory.
    ici, dcn: bytes sent inside the slice, and between slices.
    rows: of the global batch that fall to one device: batch size / devices.
  """

  state: float
  temp: float
  flops: float
  traffic: float
  ici: float
  dcn: float
  rows: float

  @property
  def peak(self) -> float:
    return self.state + self.temp

  @property
  def per_row(self) -> tuple[float, float, float]:
    """What candidates are compared by: peak, FLOPs a row, communicated bytes a row."""
    return self.peak, self.flops / self.rows, (self.ici + self.dcn) / self.rows

  def seconds(self, chip) -> float:
    """Lower bound of the step."""
    return max(self.flops / chip.flops, self.traffic / chip.hbm_bytes_per_s,
               self.ici / chip.ici_bytes_per_s, self.dcn / chip.dcn_bytes_per_s)


@dataclasses.dataclass(frozen=True)
class Policy:
  """What one row costs under a remat policy, on one device alone.

  Attributes:
    wide: stored bytes of arrays as wide as the tower, which every `tensor` device holds.
    split: stored bytes of all others (heads, hidden units), which `tensor` divides.
    flops: of the row's forward and backward pass.
  """

  wide: float
  split: float
  flops: float

  @property
  def stored(self) -> float:
    return self.wide + self.split


@dataclasses.dataclass(frozen=True)
class Layout:
  """What a mesh does to the state. Bytes of one device; `whole` those of all parameters.

  Attributes:
    state, params: of the train state, and of its parameters alone.
    whole: bytes of the parameters on one device alone.
    parts: into how many the rows of a batch are cut.
  """

  state: int
  params: int
  whole: int
  parts: int


class Estimator:
  """Estimates candidates for one config and topology; what they share is computed once.

  Attributes:
    run: the config assembled for the topology's devices.
    towers: {path in the config: module} of all that have a remat policy.
    remats: the policies to try; (`OWN`,) without towers.
  """

  def __init__(self, run: Run, slices: int = 1):
    self.run, self.slices = run, slices
    self.towers = dict(_towers(run.objective, run.config["objective"], "objective"))
    own = {tower.remat for tower in self.towers.values()}
    self.own_remat = own.pop() if len(own) == 1 else OWN
    self.remats = (REMATS if self.towers else ()) + ((OWN,) if self.own_remat == OWN else ())
    self.layouts, self.policies = {}, {}

  @property
  def own(self) -> Candidate:
    """The config as it is."""
    mesh = tuple(self.run.mesh.shape[axis] for axis in mesh_lib.AXES)
    return Candidate(self.run.settings.batch_size, self.own_remat, mesh)

  def candidates(self) -> list[Candidate]:
    """All settings: batches by powers of two, remat policies and meshes; the config's own first.

    Those whose rows do not divide the mesh and the micro-batches are left out.
    """
    batches = _batches(self.run.settings.batch_size, self.run.mesh.size)
    found = [self.own]
    for mesh, batch, remat in itertools.product(self._meshes(), batches, self.remats):
      if batch % (self.layout(mesh).parts * self.run.settings.micro_batches) == 0:
        found.append(Candidate(batch, remat, mesh))
    return list(dict.fromkeys(found))

  def overrides(self, candidate: Candidate) -> dict[str, str]:
    """{config path: text} that make the config this candidate."""
    found = {}
    if candidate.batch_size != self.own.batch_size:
      found["batch_size"] = str(candidate.batch_size)
    if candidate.remat != self.own.remat:
      found |= {f"{path}.remat": candidate.remat for path in self.towers}
    if candidate.mesh != self.own.mesh:
      node = self.run.config.get("mesh", {})
      named = {*node, *mesh_lib.PRESETS.get(node.get("preset"), ()), "data"}
      found |= {f"mesh.{axis}": str(size) for axis, size in zip(mesh_lib.AXES, candidate.mesh)
                if size > 1 or axis in named}
    return found

  def estimate(self, candidate: Candidate) -> Costs:
    """What the candidate costs, by the formulas below; units as in `Costs`."""
    layout, policy = self.layout(candidate.mesh), self.policy(candidate.remat)
    micro, devices = self.run.settings.micro_batches, self.run.mesh.size
    rows = candidate.batch_size / layout.parts  # that a device works on, perhaps with others
    ici, dcn = self._communication(candidate, layout, policy, rows)
    inputs = sum(x.size * x.dtype.itemsize for x in self.run.abstract_batch.values())
    inputs *= rows / self.run.settings.batch_size
    # While a block goes backward, all that "none" would have stored of it is there again.
    depth = max((tower.depth for tower in self.towers.values()), default=1)
    every = max(self.policy("none").stored if self.towers else 0, policy.stored)
    again = (every - policy.stored) / depth
    tensor, sequence = candidate.size("tensor"), candidate.size("sequence")
    kept = (policy.wide + (policy.split + again) / tensor) / sequence
    gathered = (layout.whole / tensor - layout.params) / depth if self.towers else 0
    temp = layout.params * (2 if micro > 1 else 1) + gathered + rows / micro * kept
    # The state is read and written, and so is what is kept, or would be without recomputation.
    traffic = 2 * (layout.state + temp + rows * every / tensor / sequence)
    share = candidate.batch_size / devices
    return Costs(layout.state + inputs, temp, policy.flops * share, traffic, ici, dcn, share)

  def _communication(self, candidate, layout, policy, rows):
    """Bytes that a device sends in a step, (inside the slice, between slices).

    Parameters are gathered for the forward and for the backward pass of every micro-batch, and
    their gradients scattered once; the copies' gradients are summed by a ring (2 (n - 1) / n of
    them); `tensor` sums two activations a layer each way (Shoeybi et al. 2019, arXiv:1909.08053,
    sec. 3) and again in what is recomputed; `sequence` passes keys and values around, and in the
    backward pass their gradients too (Liu et al. 2023, arXiv:2310.01889). Losses are left out.
    """
    micro, devices = self.run.settings.micro_batches, self.run.mesh.size
    tensor, sequence = candidate.size("tensor"), candidate.size("sequence")
    gathers = max(layout.whole / tensor - layout.params, 0)
    copies = max(devices * layout.params / layout.whole, 1)
    reduced = 2 * layout.params * (copies - 1) / copies
    between = 2 * layout.params * (self.slices - 1) / self.slices
    # The input of each block, stored under "full", is as large as what `tensor` sums in it.
    inputs = rows * (self.policy("full").wide if self.towers else policy.wide) / sequence
    sums = (4 if candidate.remat == "none" else 6) * 2 * (tensor - 1) / tensor * inputs
    ring = 6 * (sequence - 1) * inputs
    ici = gathers * (2 * micro + 1) + max(reduced - between, 0) + sums + ring
    return ici, between

  def layout(self, mesh: tuple[int, ...]) -> Layout:
    """What the mesh holds of the state on each device; exact, nothing is made."""
    if mesh not in self.layouts:
      self.layouts[mesh] = layout(self.run, mesh)
    return self.layouts[mesh]

  def policy(self, remat: str) -> Policy:
    """What a row costs under a remat policy; traced at the first call."""
    if remat not in self.policies:
      self.policies[remat] = _policy(self.run, self._objective(remat), self.towers)
    return self.policies[remat]

  def _objective(self, remat):
    node = {"objective": copy.deepcopy(self.run.config["objective"])}
    for path in self.towers if remat != OWN else ():
      config_lib.override(node, f"{path}.remat", remat)
    return config_lib.build("mmjax.objectives", frozen.split(node["objective"])[0], "objective")

  def _meshes(self) -> list[tuple[int, ...]]:
    """The config's own mesh, and what the devices can be cut into; only `data` crosses slices."""
    devices, expert = self.run.mesh.size, self.own.size("expert")
    found = [self.own.mesh]
    for tensor, sequence in itertools.product(self._tensor_sizes(), self._sequence_sizes()):
      inner = expert * sequence * tensor
      if devices % (self.slices * inner):
        continue
      rest = devices // self.slices // inner  # of one slice, for `fsdp`
      for fsdp in {*(n for n in _powers(rest) if rest % n == 0), rest}:
        found.append((devices // inner // fsdp, fsdp, expert, sequence, tensor))
    return sorted(set(found), key=found.index)

  def _tensor_sizes(self):
    widths = [n for t in self.towers.values() for n in (t.heads, t.mlp_dim or 4 * t.width)]
    sizes = [n for n in _powers(MOST_TENSOR) if not any(width % n for width in widths)]
    return sizes if self.towers else [1]

  def _sequence_sizes(self):
    lengths = [math.prod(getattr(tower, "grid", None) or (getattr(tower, "length", None) or 1,))
               for tower in self.towers.values()]
    sizes = _powers(max(max(lengths, default=1) // TOKENS_A_DEVICE, 1))
    return sorted({*sizes, self.own.size("sequence")})


def layout(run: Run, mesh: tuple[int, ...]) -> Layout:
  """Bytes a device of a run's state on a mesh of these sizes of `mesh.AXES`, from its shardings."""
  abstract = AbstractMesh(mesh, mesh_lib.AXES, axis_types=(AxisType.Auto,) * len(mesh))
  shardings, _ = state_lib.shardings(run.objective, run.abstract, run.abstract_batch, abstract,
                                     run.settings.rules)
  rows = mesh_lib.batch_sharding(abstract, run.settings.rules)
  parts = abstract.size // rows.shard_shape((abstract.size,))[0]
  whole = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.abstract.params))
  return Layout(_held(run.abstract, shardings), _held(run.abstract.params, shardings.params), whole,
                parts)


def _held(tree, shardings) -> int:
  """Bytes of a tree on one device."""
  return sum(math.prod(sharding.shard_shape(x.shape)) * x.dtype.itemsize for x, sharding in
             zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True))


def _policy(run: Run, objective: Objective, towers: Node) -> Policy:
  """Traces `objective` with few and with twice as many rows; the difference is what rows cost."""
  widths = {tower.width for tower in towers.values()}
  few = run.mesh.size * run.settings.micro_batches  # what every mesh axis divides
  sizes = []
  for rows in (few, 2 * few):
    wide = split = 0
    for x in _stored(run, objective, rows):
      size = x.size * x.dtype.itemsize
      if x.shape and x.shape[-1] in widths:
        wide += size
      else:
        split += size
    sizes.append((wide, split))
  wide, split = (max(more - less, 0) / few for less, more in zip(*sizes))
  return Policy(wide, split, _flops(run, objective, few) / few)


def _stored(run: Run, objective: Objective, rows: int) -> list[jax.ShapeDtypeStruct]:
  """Shapes of all that the forward pass of `rows` rows leaves for the backward pass."""
  def residuals(state, batch):
    ctx = Context(step=state.step, state=state.state, teachers=state.teachers, seed=0)
    return jax.vjp(lambda params: objective.forward(ctx, params, batch)[0], state.params)[1]

  with run.use():
    return jax.tree.leaves(jax.eval_shape(residuals, run.abstract, _batch(run, rows)))


def _flops(run: Run, objective: Objective, rows: int) -> int:
  """Products of loss and gradient, recomputation included; 0 if they cannot be counted.

  Traced outside the mesh, so that no kernel hides its products and no collective splits them.
  """
  def gradient(state, batch):
    ctx = Context(step=state.step, state=state.state, teachers=state.teachers, seed=0)
    return loss_and_grad(objective, ctx, state.params, batch)[0]

  try:
    return flops.count(gradient, run.abstract, _batch(run, rows), recompute=True)
  except ValueError:
    return 0


def _batch(run, rows):
  return {key: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
          for key, x in run.abstract_batch.items()}


def _towers(part: Any, node: Any, path: str) -> Iterator[tuple[str, Any]]:
  """(path in the config, module) of all that `node` describes and that has a remat policy."""
  if hasattr(part, "remat"):
    yield path, part
  items = node.items() if isinstance(node, dict) else enumerate(node)
  for key, value in items:
    inner = part[key] if isinstance(part, (tuple, list)) else getattr(part, str(key), None)
    if isinstance(value, (dict, list)) and inner is not None:
      yield from _towers(inner, value, f"{path}.{key}")


def _batches(configured: int, devices: int) -> list[int]:
  """The configured batch times powers of two, down to a row a device."""
  sizes = [configured]
  while sizes[-1] % 2 == 0 and sizes[-1] > devices:
    sizes.append(sizes[-1] // 2)
  return sizes + [configured * n for n in _powers(MOST_ROWS)[1:]]


def _powers(most: int) -> list[int]:
  """1, 2, 4 ... up to `most`."""
  return [2**i for i in range(int(most).bit_length())]
