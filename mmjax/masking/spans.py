"""Masking of spans in a sequence of token ids (T5, Raffel et al. 2020, arXiv:1910.10683).

Each run of masked tokens is replaced by one sentinel, and the target is the sentinels, each with
the tokens it stands for, and one sentinel more that ends it:

    input   The <0> fox <1> over          target   <0> quick brown <1> jumps <2>

As in 4M (arXiv:2312.06647) the part that is kept is uniform between none and all, and no
more is kept than fits the budget. All functions are of one row, with static shapes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Spans(NamedTuple):
  """A sequence of L tokens in two parts, each followed by zeros.

  Attributes:
    seen: int32 [L], the input; its first `seen_size` [] places count.
    target: int32 [target_length(L)]; its first `target_size` [] places count.
  """

  seen: jax.Array
  seen_size: jax.Array
  target: jax.Array
  target_size: jax.Array


def sentinels(length):
  """How many sentinels a sequence of `length` tokens may need: every other token, and the end."""
  return (length + 1) // 2 + 1


def target_length(length):
  """The longest target of a sequence of `length` tokens."""
  return length + sentinels(length)


def mask_spans(key, ids, real, budget, first_sentinel):
  """Masks spans so that the input has at most `budget` tokens.

  Args:
    key: one PRNG key.
    ids: int32 [L].
    real: bool [L], False for padding.
    budget: int32 []; with 0 there is no input, and the target is the whole sequence.
    first_sentinel: id of the first sentinel; the others follow.

  Returns:
    Spans; without any real token both parts are empty but for the end of the target.
  """
  length = len(ids)
  ids, real = _compact(ids, real)
  count = jnp.sum(real)
  order_key, keep_key = jax.random.split(key)
  score = jnp.where(real, jax.random.uniform(order_key, (length,)), 2.0)  # padding is kept last
  rank = jnp.argsort(jnp.argsort(score))
  most = jax.random.randint(keep_key, (), 0, count + 1)
  number = jnp.arange(length + 1)[:, None]               # for each number of tokens kept:
  size = jnp.sum(_starts(rank >= number, real) | ((rank < number) & real), axis=1)  # of the input
  kept = jnp.max(jnp.where((size <= budget) & (number[:, 0] <= most), number[:, 0], 0))
  hidden = real & (rank >= kept)

  start = _starts(hidden[None], real)[0]
  sentinel = first_sentinel + jnp.cumsum(start) - 1      # of the span that a hidden token is in
  seen, shown = _compact(jnp.where(hidden, sentinel, ids), (real & ~hidden) | start)
  shown &= budget > 0
  both = jnp.stack([sentinel, ids], axis=1).reshape(-1)  # before each token its sentinel
  there = jnp.stack([start, hidden], axis=1).reshape(-1)
  both = jnp.append(both, first_sentinel + jnp.sum(start))
  target, told = _compact(both, jnp.append(there, True))
  cut = target_length(length)
  return Spans(jnp.where(shown, seen, 0), jnp.sum(shown), jnp.where(told, target, 0)[:cut],
               jnp.sum(told))


def window(key, target, size, budget, first_sentinel):
  """Where to begin with a target that is longer than `budget` + 1 tokens, the first of them given.

  At a random sentinel; if less than the budget would be left, at the first one that leaves no more.

  Args:
    target: int32 [T], of `Spans`; size: int32 [], how much of it counts.
    budget: int32 [], how many tokens after the first can be predicted.

  Returns:
    int32 [], the place of a sentinel.
  """
  place = jnp.arange(len(target))
  is_sentinel = (target >= first_sentinel) & (place < size)
  number = jnp.cumsum(is_sentinel) - 1
  spans = jnp.maximum(jnp.sum(is_sentinel) - 1, 1)       # not the one that ends the target
  drawn = jax.random.randint(key, (), 0, spans)
  at_random = jnp.argmax(is_sentinel & (number == drawn))
  fitting = jnp.argmax(is_sentinel & (size - place <= budget + 1))
  fits = size <= budget + 1
  begin = jnp.where(size - at_random >= budget + 1, at_random, fitting)
  return jnp.where(fits, 0, begin)


def _starts(hidden, real):
  """Where a span begins, bool [K, L] like `hidden`."""
  hidden = hidden & real
  return hidden & ~jnp.pad(hidden, [(0, 0), (1, 0)])[:, :-1]


def _compact(values, there):
  """Moves what is there to the front, in order: values [L] and there [L]."""
  order = jnp.argsort(~there, stable=True)
  return values[order], there[order]
