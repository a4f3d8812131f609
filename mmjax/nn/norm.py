"""Normalisation, always in float32."""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.linear import logical


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def normalise(x, eps):
  """(x - mean) / sqrt(variance + eps) over the last axis, float32 [..., D].

  Its gradient is written out: what JAX derives goes through mean and variance one after the other,
  in more passes over the tokens.
  """
  return _normalise_forward(x, eps)[0]


def _normalise_forward(x, eps):
  x = x - jnp.mean(x, axis=-1, keepdims=True)
  # The variance of what is centred already: E[x^2] - E[x]^2 cancels where the mean is large.
  scale = jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + eps)
  return x * scale, (x * scale, scale)


def _normalise_backward(eps, saved, g):
  del eps
  y, scale = saved
  along = jnp.mean(g * y, axis=-1, keepdims=True)
  return (scale * (g - jnp.mean(g, axis=-1, keepdims=True) - y * along),)


normalise.defvjp(_normalise_forward, _normalise_backward)


class LayerNorm(nn.Module):
  """Layer norm over the last axis (Ba et al. 2016, arXiv:1607.06450) that computes in float32.

  Parameters, float32: `scale` [D] and, with `use_bias`, `bias` [D].

  Attributes:
    eps: added to the variance.
    axis: logical name of the parameters' axis.
    use_bias: False leaves the bias out.
    settled: backward, the parameters' gradient is finished before what lies before the layer
      begins. Left alone, the compiler may put it off, and keep the tokens until then.
  """
  eps: float
  axis: str = "norm"
  use_bias: bool = True
  settled: bool = False

  @nn.compact
  def __call__(self, x):
    """[..., D] -> float32 [..., D]."""
    shape = x.shape[-1:]
    scale = self.param("scale", logical(nn.initializers.ones, self.axis), shape, jnp.float32)
    bias = self.param("bias", logical(nn.initializers.zeros, self.axis), shape,
                      jnp.float32) if self.use_bias else None
    if self.settled:
      x, scale, bias = jax.lax.optimization_barrier((x, scale, bias))
    y = normalise(x.astype(jnp.float32), self.eps) * scale
    return y if bias is None else y + bias


def layer_norm(eps, name, axis="norm", use_bias=True, settled=False):
  """A layer norm over the last axis that computes and returns float32.

  Args:
    eps: added to the variance; 1e-6 in ViT and SigLIP, 1e-5 in CLIP.
    name: of the module.
    axis: logical name of the parameters' axis.
    use_bias, settled: see `LayerNorm`.
  """
  return LayerNorm(eps, axis, use_bias, settled, name=name)
