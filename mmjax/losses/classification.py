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
  vocabulary = len(weight)
  block = min(block, vocabulary)
  padding = -vocabulary % block
  blocks = jnp.pad(weight, ((0, padding), (0, 0))) if padding else weight
  blocks = blocks.reshape(-1, block, weight.shape[-1])

  @functools.partial(jax.checkpoint, prevent_cse=False)  # saves a block's sums, not its logits
  def visit(carry, inputs):
    lse, own = carry
    start, rows = inputs
    logits = jnp.einsum("...d,vd->...v", hidden, rows, preferred_element_type=jnp.float32)
    logits = jnp.where(start + jnp.arange(block) < vocabulary, logits, -jnp.inf)
    lse = jnp.logaddexp(lse, jax.nn.logsumexp(logits, axis=-1))
    inside = (targets >= start) & (targets < start + block)
    place = jnp.where(inside, targets - start, 0)
    found = jnp.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
    return (lse, jnp.where(inside, found, own)), None

  begin = (jnp.full(targets.shape, -jnp.inf, jnp.float32), jnp.zeros(targets.shape, jnp.float32))
  starts = jnp.arange(len(blocks), dtype=targets.dtype) * block
  (lse, own), _ = lax.scan(visit, begin, (starts, blocks))
  return lse - own


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
