"""Building blocks of convolutional networks: convolution, group norm, residual block."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.linear import logical
from mmjax.parallel import mesh as mesh_lib

GROUPS = 32  # of a group norm of enough channels (Wu and He 2018, arXiv:1803.08494)
SMALLEST_GROUP = 4  # channels


def by_rows(x):
  """[B, H, W, C], which the mesh splits by its rows alone, as is its gradient.

  Left to itself, XLA's partitioner splits channels as the parameters are and the height as tokens
  are. With jax 0.10.2 it then adds up gradients of kernels wrongly, such as twice what they are,
  where fsdp, tensor and sequence all have more than one device (`tests/nn/test_conv.py`).
  """
  return mesh_lib.constrain(x, ("batch", None, None, None))


class Conv(nn.Module):
  """Convolution of [B, H, W, C], padded so that H and W are divided by the stride and nothing else.

  Parameters, float32: `kernel` [size, size, C, width], `bias` [width].

  Attributes:
    width: channels of the result.
    size: side of the kernel.
    stride: of the kernel.
    axis: logical name of the result's channels.
    dtype: of the computation.
  """
  width: int
  size: int = 3
  stride: int = 1
  axis: str = "embed"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x):
    """[B, H, W, C] -> [B, H / stride, W / stride, width]."""
    axes = ("kernel_height", "kernel_width", "channels", self.axis)
    kernel = self.param("kernel", logical(nn.initializers.lecun_normal(), *axes),
                        (self.size, self.size, x.shape[-1], self.width), jnp.float32)
    bias = self.param("bias", logical(nn.initializers.zeros, self.axis), (self.width,), jnp.float32)
    y = jax.lax.conv_general_dilated(
        by_rows(x.astype(self.dtype)), kernel.astype(self.dtype), (self.stride, self.stride), "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return by_rows(y + bias.astype(self.dtype))


class GroupNorm(nn.Module):
  """Group norm (Wu and He 2018, arXiv:1803.08494, eq. 1) of [B, H, W, C], in float32.

  Parameters, float32: `scale` [C] and `bias` [C]. There are 32 groups; fewer where a group would
  have less than 4 channels.
  """
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x):
    """[B, H, W, C] -> float32, same shape; each row by its own statistics."""
    width = x.shape[-1]
    groups = math.gcd(GROUPS, max(width // SMALLEST_GROUP, 1))
    scale = self.param("scale", logical(nn.initializers.ones, "norm"), (width,), jnp.float32)
    bias = self.param("bias", logical(nn.initializers.zeros, "norm"), (width,), jnp.float32)
    y = x.astype(jnp.float32).reshape(*x.shape[:3], groups, width // groups)
    y = y - jnp.mean(y, axis=(1, 2, 4), keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=(1, 2, 4), keepdims=True) + self.eps)
    return y.reshape(x.shape) * scale + bias


class ResidualBlock(nn.Module):
  """x + conv(silu(norm(conv(silu(norm(x)))))), as in VQGAN (arXiv:2012.09841, app. table 7).

  Where the width changes, x goes through a convolution of size 1.

  Attributes:
    width: channels of the result.
    dtype: of the convolutions.
  """
  width: int
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x):
    """[B, H, W, C] -> [B, H, W, width]."""
    y = Conv(self.width, dtype=self.dtype, name="conv_0")(nn.silu(GroupNorm(name="norm_0")(x)))
    y = Conv(self.width, dtype=self.dtype, name="conv_1")(nn.silu(GroupNorm(name="norm_1")(y)))
    if x.shape[-1] != self.width:
      x = Conv(self.width, 1, dtype=self.dtype, name="skip")(x)
    return x + y


def upsample(x):
  """[B, H, W, C] -> [B, 2 H, 2 W, C], each pixel four times."""
  return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
