"""Generation of any modalities from any others with 4M, one after the other (arXiv:2312.06647).

What was generated joins what was given, so that later modalities are conditioned on it. Grids are
decoded in parallel: in random order (ROAR, 4M) or the likeliest first (MaskGIT, arXiv:2202.04200);
sequences token by token. Guidance is classifier-free: without conditions the model sees nothing but
what it has generated of the same modality. All is pure and can be jitted, with static `stages`:

  generate = jax.jit(functools.partial(
      any_to_any.generate, objective, condition=("image",),
      stages=(Stage("depth", steps=8), Stage("text", temperature=0.7, guidance=2.0))))
  ids = generate(params, state, batch, keys)
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.generate import logits as logits_lib
from mmjax.generate import schedules
from mmjax.nn.names import check_choice

ORDERS = ("random", "confidence")


@dataclasses.dataclass(frozen=True)
class Stage:
  """How one modality is generated.

  Attributes:
    modality: a name of the objective's table.
    steps: in so many steps a grid is decoded; a sequence has none.
    order: which tokens first: "random" or by "confidence", the probability of what was drawn.
    schedule: tokens a step, a name of `schedules.TOKENS`.
    temperature: of the first step; near 0 takes the likeliest ids.
    temperature_schedule: a name of `schedules.TEMPERATURES`; of grids.
    guidance: scale, see `logits.guide`; 1 is none.
    top_k, top_p: see `logits.keep_top`.
  """

  modality: str
  steps: int | None = None
  order: str = "random"
  schedule: str = "linear"
  temperature: float = 1.0
  temperature_schedule: str = "constant"
  guidance: float = 1.0
  top_k: int | float | None = None
  top_p: float | None = None

  def __post_init__(self):
    check_choice("order", self.order, ORDERS)
    check_choice("schedule", self.schedule, schedules.TOKENS)
    check_choice("temperature_schedule", self.temperature_schedule, schedules.TEMPERATURES)
    if self.temperature <= 0:
      raise ValueError(f"temperature: must be positive, not {self.temperature}")

  def counts(self, tokens):
    """Tokens of each step, int [steps], for a grid of `tokens`."""
    counts = schedules.TOKENS[self.schedule](self.steps, tokens)
    schedules.check(f"steps of {self.modality}", counts, tokens)
    return counts


class _Shown(NamedTuple):
  """What the encoder sees: ids {name: [B, N]}, and of which tokens {name: bool [B, N]}."""
  ids: dict
  there: dict

  def plus(self, name, ids, there):
    return _Shown({**self.ids, name: ids}, {**self.there, name: there})

  def only(self, name):
    """Nothing but this modality: what guidance compares with."""
    hidden = {other: there & (other == name) for other, there in self.there.items()}
    return _Shown(self.ids, hidden)


def generate(objective, params, state, batch, keys, *, condition, stages):
  """Generates one modality after the other.

  Args:
    objective: `objectives.fourm.FourM`.
    params, state: the objective's.
    batch: has what the modalities of `condition` are made of; and in any case images, of which
      only the shape counts if they are no condition.
    keys: one PRNG key a row, [B].
    condition: names of the modalities that are given.
    stages: `Stage`s, in order.

  Returns:
    {name: int32 [B, N]} of all that was generated, and for a sequence also "NAME_mask" bool [B, L],
    which tokens it has.

  Raises:
    ValueError: a stage cannot be had from this model.
  """
  model = _Model(objective, params, batch)
  _check(objective, condition, stages)
  shown, made = model.given(state, batch, condition), {}
  for number, stage in enumerate(stages):
    of_stage = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
    if objective.modalities[stage.modality].kind == "sequence":
      ids, there = _sequence(model, stage, shown, of_stage)
      made[f"{stage.modality}_mask"] = there
    else:
      ids = _grid(model, stage, shown, of_stage)
      there = jnp.ones(ids.shape, bool)
    made[stage.modality] = ids
    if stage.modality in shown.there:
      shown = shown.plus(stage.modality, ids, there)
  return made


class _Model:
  """An objective with its parameters, and the shape of its images."""

  def __init__(self, objective, params, batch):
    self.table = objective.modalities
    self._objective, self._params = objective, params
    self._pixels = batch[next(row.source for row in self.table.values() if row.kind == "patches")]
    self._decoder = objective.decoder(batch)

  def given(self, state, batch, condition):
    """All inputs; shown are those of `condition`."""
    rows, sizes = len(self._pixels), self._decoder.input_sizes
    ids = {name: jnp.zeros((rows, n), jnp.int32) for name, n in sizes.items()
           if self.table[name].kind != "patches"}
    there = {name: jnp.zeros((rows, n), bool) for name, n in sizes.items()}
    own = self._objective.ids(state, batch, condition)
    for name in condition:
      mask = batch.get(f"{self.table[name].source}_mask") if name in own else None
      there[name] = jnp.ones_like(there[name]) if mask is None else mask
    return _Shown({**ids, **own}, there)

  def tokens(self, shown):
    """What the decoder reads of `shown`: the encoder's tokens and which inputs are there."""
    there = jnp.concatenate([shown.there[name] for name in self._decoder.inputs], axis=1)
    index = jnp.broadcast_to(jnp.arange(there.shape[1], dtype=jnp.int32), there.shape)
    tokens = self._objective.encode(self._params, self._pixels, shown.ids, index, there)
    return tokens, index, there

  def logits(self, tokens, name, there, given=None):
    """float32 [B, N, V] at all target places of a modality, of which bool [B, N] are `there`."""
    sizes = self._decoder.target_sizes
    start = int(sum(size for other, size in sizes.items() if other < name))
    index = jnp.broadcast_to(start + jnp.arange(there.shape[1], dtype=jnp.int32), there.shape)
    before = {other: jnp.zeros((len(there), size), jnp.int32) for other, size in sizes.items()}
    before |= {} if given is None else {name: given}
    params = {"params": self._params["decoder"]}
    hidden = self._decoder.apply(params, *tokens, before, index, there, method="predict")
    return self._decoder.apply(params, hidden, name, method="logits")


def _guided(model, stage, shown):
  """Function from (places to decode, tokens before them) to guided logits; encodes `shown` once."""
  name = stage.modality
  seen = model.tokens(shown)
  if stage.guidance == 1:
    return lambda *where: model.logits(seen, name, *where)
  alone = model.tokens(shown.only(name))
  return lambda *where: logits_lib.guide(model.logits(seen, name, *where),
                                         model.logits(alone, name, *where), stage.guidance)


def _grid(model, stage, shown, keys):
  """Parallel decoding: int32 [B, N]."""
  name = stage.modality
  size = model.table[name].target_size
  counts = stage.counts(size)
  temperatures = schedules.TEMPERATURES[stage.temperature_schedule](stage.temperature, counts)

  def step(carry, inputs):
    ids, done = carry
    number, count, temperature = inputs
    order, draw = jnp.moveaxis(_fold(keys, number), 1, 0)
    score = jax.vmap(lambda key: jax.random.uniform(key, (size,)))(order)
    first = _highest(score, done, count)
    predicted = first if stage.order == "random" else ~done
    logits = _guided(model, stage, shown.plus(name, ids, done))(predicted)
    drawn, probability = logits_lib.sample(draw, logits, temperature, stage.top_k, stage.top_p)
    chosen = first if stage.order == "random" else _highest(probability, done, count)
    return (jnp.where(chosen, drawn, ids), done | chosen), None

  rows = len(keys)
  begin = jnp.zeros((rows, size), jnp.int32), jnp.zeros((rows, size), bool)
  inputs = (jnp.arange(len(counts)), jnp.asarray(counts),
            jnp.asarray(np.maximum(temperatures, schedules.LEAST_TEMPERATURE), jnp.float32))
  (ids, _), _ = jax.lax.scan(step, begin, inputs)
  return ids


def _sequence(model, stage, shown, keys):
  """Token by token: ids int32 [B, L] and bool [B, L]. It is one masked span, which ends with the
  sentinel of the next one; each step decodes all places anew."""
  row = model.table[stage.modality]
  first, end = row.vocab, row.vocab + 1
  allowed = (jnp.arange(row.ids) < row.vocab) | (jnp.arange(row.ids) == end)
  logits_of = _guided(model, stage, shown)

  def step(carry, place):
    given, done = carry
    there = jnp.broadcast_to(jnp.arange(row.target_size) <= place, given.shape)
    logits = jnp.where(allowed, logits_of(there, given), -jnp.inf)
    logits = jax.lax.dynamic_slice_in_dim(logits, place, 1, axis=1)
    drawn, _ = logits_lib.sample(_fold(keys, place)[:, 0], logits, stage.temperature, stage.top_k,
                                 stage.top_p)
    done = done | (drawn[:, 0] == end)
    token = jnp.where(done, 0, drawn[:, 0])
    given = jax.lax.dynamic_update_index_in_dim(given, token, place + 1, axis=1)
    return (given, done), (token, ~done)

  rows = len(keys)
  begin = jnp.zeros((rows, row.target_size), jnp.int32).at[:, 0].set(first), jnp.zeros(rows, bool)
  _, (ids, there) = jax.lax.scan(step, begin, jnp.arange(row.length))
  return ids.T, there.T


def _fold(keys, number):
  """Two keys for each row and step, [B, 2]."""
  return jax.vmap(lambda key: jax.random.split(jax.random.fold_in(key, number)))(keys)


def _highest(score, done, count):
  """The `count` places of the highest score in each row among those not done, bool [B, N]."""
  rank = jnp.argsort(jnp.argsort(jnp.where(done, jnp.inf, -score), axis=1), axis=1)
  return (rank < count) & ~done


def _check(objective, condition, stages):
  table, known = objective.modalities, set(condition)
  for name in condition:
    check_choice("condition", name, table)
    if not table[name].seen:
      raise ValueError(f"condition: {name!r} has input_alpha=0, so the model never saw it")
  for stage in stages:
    check_choice("modality", stage.modality, table)
    row = table[stage.modality]
    if stage.modality in known:
      raise ValueError(f"stages: {stage.modality!r} is there already, given or generated")
    if not row.told:
      raise ValueError(f"stages: {stage.modality!r} has target_alpha=0, so the model never gave it")
    if (row.kind == "sequence") != (stage.steps is None):
      raise ValueError(f"steps of {stage.modality}: a grid needs them, a sequence has none")
    if row.kind == "tokens" and stage.steps > 1 and not row.seen:
      raise ValueError(f"steps of {stage.modality}: its input_alpha is 0, so what was decoded "
                       "cannot be seen; take 1")
    known.add(stage.modality)
