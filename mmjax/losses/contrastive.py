"""Contrastive losses of paired embeddings: the formulas, on whole arrays.

These hold the matrix of all pairs, [B, B]. `mmjax.parallel.contrastive` computes the same values
and gradients for sharded and for large batches and never holds it.

A row that is not `valid` is neither a positive nor a negative of any other; its own loss is 0.
"""

import jax
import jax.numpy as jnp


def softmax(image, text, scale, valid=None):
  """Symmetric InfoNCE (CLIP, Radford et al. 2021, arXiv:2103.00020, fig. 3).

  Args:
    image, text: unit-norm embeddings [B, D]; row i of one is paired with row i of the other.
    scale: float32 [], the inverse temperature, already exponentiated. A logit bias would cancel.
    valid: bool [B]; None means all.

  Returns:
    float32 [B]: the mean of both directions. Its mean over the batch is the published loss.
  """
  return 0.5 * (one_way(image, text, scale, valid) + one_way(text, image, scale, valid))


def one_way(anchor, other, scale, valid=None):
  """InfoNCE (van den Oord et al. 2018, arXiv:1807.03748, eq. 4): -log p(other_i | anchor_i).

  Args:
    anchor, other: unit-norm embeddings [B, D]; the candidates are the rows of `other`.
    scale, valid: as in `softmax`.

  Returns:
    float32 [B].
  """
  return -jnp.diagonal(_log_probs(anchor, other, scale, valid))


def sigmoid(image, text, scale, bias, valid=None):
  """Pairwise sigmoid loss (SigLIP, Zhai et al. 2023, arXiv:2303.15343, eq. 1).

  Args:
    image, text: unit-norm embeddings [B, D]; row i of one is paired with row i of the other.
    scale, bias: float32 []; `scale` is already exponentiated.
    valid: bool [B]; None means all.

  Returns:
    float32 [B]: each image's sum over all texts. Its mean over the batch is the published loss.
  """
  logits = scale * _dots(image, text) + bias                              # [B, B]
  label = 2 * jnp.eye(len(image)) - 1
  terms = -jax.nn.log_sigmoid(label * logits)
  if valid is not None:
    terms = jnp.where(valid[:, None] & valid[None, :], terms, 0)
  return jnp.sum(terms, axis=-1)


def distill(image, text, scale, teacher_image, teacher_text, teacher_scale, valid=None):
  """Cross-entropy of the student's pair probabilities against a teacher's, both ways.

  Contrastive relational distillation (CLIP-KD, Yang et al. 2024, arXiv:2307.12732), up to the
  teacher's entropy, which is constant.

  Args:
    image, text, scale: the student's, as in `softmax`.
    teacher_image, teacher_text: [B, E], unit norm; no gradient flows into them.
    teacher_scale: float32 [].
    valid: bool [B]; None means all.

  Returns:
    float32 [B]: the mean of both directions.
  """
  teacher_image, teacher_text, teacher_scale = jax.lax.stop_gradient(
      (teacher_image, teacher_text, teacher_scale))

  def direction(anchor, other, teacher_anchor, teacher_other):
    target = jnp.exp(_log_probs(teacher_anchor, teacher_other, teacher_scale, valid))
    log_probs = _log_probs(anchor, other, scale, valid)
    # 0 * log 0 is 0 here, not NaN: excluded pairs have probability 0 on both sides.
    return -jnp.sum(jnp.where(target > 0, target * log_probs, 0), axis=-1)

  return 0.5 * (direction(image, text, teacher_image, teacher_text)
                + direction(text, image, teacher_text, teacher_image))


def _log_probs(anchor, other, scale, valid):
  """log softmax over `other` for each row of `anchor`, [B, B]; -inf where a pair is excluded."""
  logits = scale * _dots(anchor, other)
  if valid is not None:
    # An invalid row sees itself alone, so its probability is 1, its loss 0 and its gradient 0.
    seen = (valid[:, None] & valid[None, :]) | jnp.eye(len(anchor), dtype=bool)
    logits = jnp.where(seen, logits, -jnp.inf)
  return jax.nn.log_softmax(logits, axis=-1)


def _dots(a, b):
  """All inner products, float32 [B, B]. Full precision: `scale` multiplies a rounding by 100."""
  return jnp.einsum("id,jd->ij", a, b, precision="highest", preferred_element_type=jnp.float32)
