"""Losses of a generator of pictures and its critic: one value a judgement, float32."""

import jax
import jax.numpy as jnp


def hinge_real(logits):
  """What a true picture costs the critic: max(0, 1 - logit) (arXiv:1705.02894, eq. 8)."""
  return jax.nn.relu(1 - logits.astype(jnp.float32))


def hinge_fake(logits):
  """What a made picture costs the critic: max(0, 1 + logit) (arXiv:1705.02894, eq. 8)."""
  return jax.nn.relu(1 + logits.astype(jnp.float32))


def generator(logits):
  """What its own picture costs the generator: -logit (arXiv:1705.02894, eq. 9)."""
  return -logits.astype(jnp.float32)
