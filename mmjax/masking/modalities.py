"""What a row of several modalities shows and what it has to predict (4M, arXiv:2312.06647).

Budgets are drawn over the modalities; grids give random tokens to input and target, no token to
both; sequences are masked in spans. What a sequence leaves of its budget goes to the grids, so that
the totals are exact as long as there are tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mmjax.masking import budgets, spans


class Sequence(NamedTuple):
  """A row's: ids int32 [L], real bool [L] (False for padding), and the first sentinel's id."""
  ids: jax.Array
  real: jax.Array
  first_sentinel: int


class Division(NamedTuple):
  """Input and target of a row, as places in the pools of all inputs and of all targets.

  Attributes:
    index: int32 [K], ascending over those that are `there`, bool [K]; the rest is padding.
    target_index, target_there: the same of the target, [T].
    seen: {name: int32 [L]}, each sequence with sentinels for what is masked.
    given, wanted: {name: int32 [target_length(L) - 1]}, of each sequence's target the token before
      each place, and at it.
  """
  index: jax.Array
  there: jax.Array
  target_index: jax.Array
  target_there: jax.Array
  seen: dict
  given: dict
  wanted: dict


def divide(key, table, grids, sequences, input_tokens, target_tokens):
  """Divides one row.

  Args:
    key: one PRNG key.
    table: {name: `models.modality.Modality`}.
    grids: {name: number of tokens} of the modalities that are no sequences.
    sequences: {name: Sequence} of those that are.
    input_tokens, target_tokens: the totals.

  Returns:
    Division.
  """
  names = sorted(table)
  mixture, first, second, *rest = jax.random.split(key, 3 + 2 * len(names))
  keys, more = dict(zip(names, rest)), dict(zip(names, rest[len(names):]))
  alphas = [jnp.array([table[name].alphas(part) for name in names], jnp.float32)
            for part in ("input_alpha", "target_alpha")]
  drawn = jax.random.randint(mixture, (), 0, alphas[0].shape[1])
  seen_alpha, told_alpha = (alpha[:, drawn] for alpha in alphas)

  most = {name: grids[name] if name in grids else jnp.sum(sequences[name].real) for name in names}
  counts, share = _draw(first, seen_alpha, input_tokens, most)
  parts = {name: spans.mask_spans(keys[name], *sequence[:2], counts[name], sequence.first_sentinel)
           for name, sequence in sequences.items()}
  used = {name: part.seen_size for name, part in parts.items()}
  counts = _refill(counts, used, seen_alpha, share, most, input_tokens)

  most = {name: parts[name].target_size - 1 if name in parts else grids[name] - counts[name]
          for name in names}
  told, share = _draw(second, told_alpha, target_tokens, most)
  begin = {name: spans.window(more[name], part.target, part.target_size, told[name],
                              sequences[name].first_sentinel) for name, part in parts.items()}
  used = {name: jnp.minimum(told[name], part.target_size - 1 - begin[name])
          for name, part in parts.items()}
  told = _refill(told, used, told_alpha, share, most, target_tokens)

  shown, hidden = {}, {}
  for name in names:
    if name in parts:
      place = jnp.arange(parts[name].target.shape[0] - 1)
      shown[name] = jnp.arange(len(parts[name].seen)) < counts[name]
      hidden[name] = (place >= begin[name]) & (place < begin[name] + told[name])
    else:
      rank = jax.random.permutation(keys[name], grids[name])
      shown[name] = rank < counts[name]
      hidden[name] = ~shown[name] & (rank < counts[name] + told[name])
  index, there = _chosen([shown[name] for name in names if table[name].seen], input_tokens)
  target_index, target_there = _chosen([hidden[name] for name in names if table[name].told],
                                       target_tokens)
  return Division(
      index, there, target_index, target_there,
      seen={name: part.seen for name, part in parts.items()},
      given={name: part.target[:-1] for name, part in parts.items()},
      wanted={name: part.target[1:] for name, part in parts.items()})


def _draw(key, alpha, total, most):
  room = jnp.stack([jnp.asarray(n) for n in most.values()])
  counts, share = budgets.draw(key, alpha, total, room)
  return dict(zip(most, counts)), share


def _refill(counts, used, alpha, share, most, total):
  """Sequences take what they `used`; grids get what these left."""
  counts, most = {**counts, **used}, {**most, **used}
  room = jnp.where(alpha > 0, jnp.stack([jnp.asarray(n) for n in most.values()]), 0)
  filled = budgets.fill(jnp.stack(list(counts.values())), share, room, total)
  return dict(zip(most, filled))


def _chosen(parts, size):
  """Where the parts put together are True, int32 [size]; and False [size] where that is padding."""
  chosen = jnp.concatenate(parts)
  index = jnp.argsort(~chosen, stable=True)[:size].astype(jnp.int32)
  return index, chosen[index]
