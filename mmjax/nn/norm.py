"""Normalisation, always in float32."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.linear import logical


def layer_norm(eps, name, axis="norm", use_bias=True):
  """A layer norm over the last axis that computes and returns float32.

  Args:
    eps: added to the variance; 1e-6 in ViT and SigLIP, 1e-5 in CLIP.
    name: of the module.
    axis: logical name of the parameters' axis.
    use_bias: False leaves the bias out.
  """
  return nn.LayerNorm(
      epsilon=eps, dtype=jnp.float32, param_dtype=jnp.float32, use_bias=use_bias, name=name,
      scale_init=logical(nn.initializers.ones, axis),
      bias_init=logical(nn.initializers.zeros, axis),
      use_fast_variance=False)  # E[x^2] - E[x]^2 cancels where the mean is large
