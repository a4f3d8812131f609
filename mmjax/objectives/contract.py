"""The Objective contract: what a training recipe must say, and nothing of how it is run.

An objective is a frozen dataclass of Linen modules and numbers with pure methods. The train step
(`mmjax/training/gradients.py`) calls them in this order:

    augment   whole batch, no grad   the batch to train on (mixup); not in evaluation
    forward   row by row             features of each row; may be cut into micro-batches
    terms     row by row             loss terms that read one row at a time
    couple    whole batch            loss terms that read several rows at once (contrastive, balance)
    mine      whole batch, no grad   which rows belong together (hard negatives)
    fuse      row by row             loss terms on the pairs that `mine` chose
    update    once a step            non-gradient state from whole-batch statistics

    loss = sum over names of weight_name(step) * sum_name / weight_name

with `sum` and `weight` of a term added over micro-batches and devices *before* the division.
Because what is expensive (`forward`, `fuse`) is separable over rows, and what couples rows reads only
the features named in `couples`, one step equals its micro-batches exactly: the coupled features are
computed first without gradients, then the gradient of the coupling terms with respect to them is
pulled back through each micro-batch (Gao et al. 2021, arXiv:2101.06983).
"""

import abc
import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any, ClassVar

import clu.metrics
import flax.struct
import jax
import jax.numpy as jnp

Batch = Mapping[str, Any]
Features = Mapping[str, jax.Array]
Tree = Any


@flax.struct.dataclass
class Term(clu.metrics.Metric):
  """A weighted mean before its division: of a loss or of a metric. `sum` and `weight` are float32 [].

  Unlike `clu.metrics.Average`, weights may be fractions and large counts do not overflow.
  """

  sum: jax.Array
  weight: jax.Array

  @classmethod
  def empty(cls) -> "Term":
    """The term of nothing; merging it changes nothing."""
    return cls(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

  def merge(self, other: "Term") -> "Term":
    """The term of both parts together."""
    return Term(self.sum + other.sum, self.weight + other.weight)

  def compute(self) -> jax.Array:
    """The mean, float32 []; nan of nothing."""
    return self.sum / self.weight

  @property
  def mean(self) -> jax.Array:
    """sum / weight, and 0 where nothing was weighed (a batch of padding)."""
    return jnp.where(self.weight > 0, self.sum / jnp.where(self.weight > 0, self.weight, 1), 0)


def weigh(values: jax.Array, weight: jax.Array | None = None) -> Term:
  """Term of per-row (or per-token) `values` under `weight` of the same shape (bool or float).

  Entries of weight zero are left out even where they are not finite. The weight carries no gradient.
  """
  values = values.astype(jnp.float32)
  weight = jnp.ones_like(values) if weight is None else weight.astype(jnp.float32)
  weight = jax.lax.stop_gradient(jnp.broadcast_to(weight, values.shape))
  return Term(jnp.sum(jnp.where(weight > 0, values, 0) * weight), jnp.sum(weight))


@dataclasses.dataclass(frozen=True)
class Context:
  """What a method of an objective may know beside parameters and batch.

  Attributes:
    step: int32 [], the number of updates made so far.
    state: the objective's own state (centres, codebooks, running statistics, frozen networks).
    teachers: {name: parameters} of the EMA teachers the objective declares.
    seed: the run's seed.
    train: whether dropout, masking and drop-path apply.
    want: names of features that the caller needs beside those the loss needs.
  """

  step: jax.Array
  state: Tree
  teachers: Mapping[str, Tree]
  seed: int = 0
  train: bool = True
  want: tuple[str, ...] = ()

  def keys(self, name: str, batch: Batch) -> jax.Array:
    """One PRNG key a row of `batch` (or of one of its streams), [B].

    From (seed, name, the row's place in the run's order) and nothing else, so a row draws the same
    mask whatever its micro-batch, device or process.
    """
    key = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(name.encode()))
    per_row = lambda row: jax.random.fold_in(jax.random.fold_in(key, row[0]), row[1])
    return jax.vmap(per_row)(batch["row"])


@dataclasses.dataclass(frozen=True)
class Objective(abc.ABC):
  """Base of all objectives: `init`, `forward` and one of `terms` and `couple` are enough.

  Class attributes:
    couples: names of the features that `couple`, `mine` and `fuse` read. Each is row-wise `[B, ...]`
      or a scalar `[]`.
    forward_couples: why `forward` is not row by row ("batch norm", "expert capacity"); "" if it is.
      Such an objective is refused under accumulation unless `ghost_batch` is set, which declares
      that its statistics are those of a micro-batch.
  """

  couples: ClassVar[tuple[str, ...]] = ()
  forward_couples: ClassVar[str] = ""
  ghost_batch: ClassVar[bool] = False

  @abc.abstractmethod
  def init(self, rng: jax.Array, batch: Batch) -> tuple[Tree, Tree]:
    """(params, state); parameters may be boxed with logical axis names.

    What a run does not train and an update does not make belongs in `state`: a frozen teacher, a
    tokenizer. Where the config has such a network under `objective.a.b`, its parameters, boxed, are
    `state["a"]["b"]`: with {"name": "pretrained", "from": PATH} there they begin as that checkpoint
    (`mmjax/training/frozen.py`), and lie on the mesh as parameters do. No gradient reaches `state`;
    `update` must pass them on as they are.
    """

  def augment(self, ctx: Context, batch: Batch) -> Batch:
    """The batch to train on: rows may be mixed and keys added, but each row stays in its place.

    Called once a step with the whole batch, before it is cut into micro-batches.
    """
    return batch

  @abc.abstractmethod
  def forward(self, ctx: Context, params: Tree, batch: Batch) -> tuple[dict, dict]:
    """(features, stats): features row by row; stats are *sums* over rows, added over micro-batches."""

  def terms(self, ctx: Context, params: Tree, features: Features, batch: Batch) -> tuple[dict, dict]:
    """({name: Term}, {name: Term}): loss terms and metrics that read one row at a time."""
    return {}, {}

  def couple(self, ctx: Context, params: Tree, features: Features, batch: Batch) -> tuple[dict, dict]:
    """Like `terms`, over the whole batch; sees the features named in `couples` only."""
    return {}, {}

  def mine(self, ctx: Context, features: Features, batch: Batch) -> Tree | None:
    """Places in the batch that belong to each row, int32 [B, ...] leaves; None: there is no `fuse`."""
    return None

  def fuse(self, ctx: Context, params: Tree, features: Features, indices: Tree,
           batch: Batch) -> tuple[dict, dict, dict]:
    """(terms, metrics, stats) of mined pairs: `features` are the whole batch's, `indices` and `batch`
    a micro-batch's."""
    return {}, {}, {}

  def update(self, ctx: Context, stats: dict) -> Tree:
    """The next `state`, from statistics summed over the whole batch."""
    return ctx.state

  def generate(self, ctx: Context, params: Tree, batch: Batch, **how: Any) -> dict[str, dict]:
    """What the model makes from the modalities of `batch`, row by row, and what is there: see
    `objectives.fourm.FourM.generate`, and the evaluator `generate`, whose settings `how` are.

    Raises:
      ValueError: this objective does not generate, or not so.
    """
    raise ValueError("this objective generates no modality from another")

  def weights(self, step: jax.Array) -> dict[str, float | jax.Array]:
    """Weight of each loss term at `step`; a name that is missing weighs 1."""
    return {}

  def teachers(self, params: Tree) -> dict[str, Tree]:
    """{name: the subtree of `params` that this EMA teacher follows}."""
    return {}

  def teacher_decay(self, step: jax.Array) -> dict[str, float | jax.Array]:
    """{name: decay}: teacher = decay * teacher + (1 - decay) * params, after each update."""
    return {}

  def trivial(self, batch_size: int) -> dict[str, float]:
    """{term: its value for a model that has learned nothing}; the run warns when a loss stays there."""
    return {}

  def collapsed_below(self, batch_size: int) -> dict[str, float]:
    """{metric: the value below which the model has collapsed}; the run warns when it stays there."""
    return {}
