"""Cross-entropies of classes and tokens, and accuracies: one value a row, float32."""

import functools

import jax
from jax import lax
import jax.numpy as jnp


def softmax_cross_entropy(logits, labels, smoothing=0.0):
  """-log p(label), or against labels smoothed towards the uniform distribution.

  Label smoothing: Szegedy et al. 2016, arXiv:1512.00567, sec. 7.

  Args:
    logits: [..., C].
    labels: int [...], each in [0, C). Mask rows without a label afterwards, by their weight.
    smoothing: the part of the probability spread evenly over all C classes.

  Returns:
    float32 [...].
  """
  log_probs = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
  nll = -jnp.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]
  return (1 - smoothing) * nll - smoothing * jnp.mean(log_probs, axis=-1)


def sigmoid_cross_entropy(logits, targets):
  """Sum over classes of the binary cross-entropy (multi-label classification).

  Args:
    logits: [..., C].
    targets: [..., C], probabilities in [0, 1].

  Returns:
    float32 [...].
  """
  logits, targets = logits.astype(jnp.float32), targets.astype(jnp.float32)
  terms = targets * jax.nn.log_sigmoid(logits) + (1 - targets) * jax.nn.log_sigmoid(-logits)
  return -jnp.sum(terms, axis=-1)


def token_cross_entropy(hidden, weight, targets, block=8192):
  """softmax_cross_entropy(hidden @ weight.T, targets) without the logits of a large vocabulary.

  The vocabulary is visited in blocks (forward and backward), so [..., block] logits are held at
  once. The running log-sum-exp is that of online softmax (Milakov and Gimelshein 2018,
  arXiv:1805.02867, alg. 3).

  Args:
    hidden: [..., D], the decoder's last hidden states.
    weight: [V, D], the output embeddings.
    targets: int [...], each in [0, V). Mask padding afterwards, by its weight.
    block: rows of `weight` visited at once.

  Returns:
    float32 [...].
  """
  return _token_cross_entropy(min(block, len(weight)), hidden, weight, targets)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _token_cross_entropy(block, hidden, weight, targets):
  return _forward(block, hidden, weight, targets)[0]


def _forward(block, hidden, weight, targets):

  def visit(carry, rows):
    lse, own = carry
    logits, mine = _logits(hidden, *rows, len(weight)), _own(targets, *rows)
    return (jnp.logaddexp(lse, jax.nn.logsumexp(logits, axis=-1)),
            own + jnp.sum(jnp.where(mine, logits, 0), axis=-1)), None

  begin = (jnp.full(targets.shape, -jnp.inf, jnp.float32), jnp.zeros(targets.shape, jnp.float32))
  (lse, own), _ = lax.scan(visit, begin, _blocks(block, weight))
  return lse - own, (hidden, weight, targets, lse)


def _backward(block, saved, grad):
  """The derivative with respect to a logit is its probability, less 1 for the target's."""
  hidden, weight, targets, lse = saved
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)

  def visit(d_hidden, rows):
    logits = recomputed_logits(hidden, *rows, len(weight))
    d_logits = grad[..., None] * (jnp.exp(logits - lse[..., None]) - _own(targets, *rows))
    d_logits = d_logits.astype(hidden.dtype)
    return (d_hidden + product("...v,vd->...d", d_logits, rows[1]),
            product("...v,...d->vd", d_logits, hidden).astype(weight.dtype))

  d_hidden, d_rows = lax.scan(visit, jnp.zeros(hidden.shape, jnp.float32), _blocks(block, weight))
  d_weight = d_rows.reshape(-1, weight.shape[-1])[:len(weight)]
  return d_hidden.astype(hidden.dtype), d_weight, None


_token_cross_entropy.defvjp(_forward, _backward)


def _blocks(block, weight):
  """The first id of each block, [blocks], and its rows, [blocks, block, D]; zeros at the end."""
  padding = -len(weight) % block
  rows = jnp.pad(weight, ((0, padding), (0, 0))) if padding else weight
  rows = rows.reshape(-1, block, weight.shape[-1])
  return jnp.arange(len(rows), dtype=jnp.int32) * block, rows


def _own(targets, start, rows):
  """bool [..., block]: the target's id."""
  return targets[..., None] == start + jnp.arange(len(rows))


def _logits(hidden, start, rows, vocabulary):
  """float32 [..., block]; -inf for ids beyond the vocabulary."""
  logits = jnp.einsum("...d,vd->...v", hidden, rows, preferred_element_type=jnp.float32)
  return jnp.where(start + jnp.arange(len(rows)) < vocabulary, logits, -jnp.inf)


@functools.partial(jax.jit, static_argnums=3)
def recomputed_logits(hidden, start, rows, vocabulary):
  """`_logits` in the backward pass. Its name tells `training/flops.py` that this is no work of the model."""
  return _logits(hidden, start, rows, vocabulary)


def top_k_correct(logits, labels, k=1):
  """1 where the label is among the k largest logits, else 0: float32 [...].

  Among equal logits the label counts as the last, and among NaN too: a constant or broken
  prediction is not correct by luck.

  Args:
    logits: [..., C].
    labels: int [...].
    k: number of guesses.
  """
  own = jnp.take_along_axis(logits, labels[..., None], axis=-1)
  rank = jnp.sum(~(logits < own), axis=-1)  # 1 is the best; counts the label itself
  return (rank <= k).astype(jnp.float32)
