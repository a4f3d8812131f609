"""Projection heads of self-distillation: an MLP, and what its result is compared with."""

from flax import linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.linear import KERNEL_INITS, Linear, logical
from mmjax.nn.names import check_choice

SMALLEST_NORM = 1e-6


def unit(x, axis=-1):
  """`x` of length one along `axis`, float32; zeros stay zeros, with a finite gradient."""
  x = x.astype(jnp.float32)
  square = jnp.sum(jnp.square(x), axis=axis, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(square, SMALLEST_NORM ** 2))


def prototypes_of(params):
  """The prototypes of a head's parameters: float32 [D, K], each of the K columns of length one.

  This is weight normalisation (Salimans & Kingma 2016, arXiv:1602.07868, eq. 2) with a length of 1,
  as in DINO (arXiv:2104.14294, appendix C): so a logit is a cosine.
  """
  return unit(params["prototypes"]["kernel"], axis=0)


class Prototypes(nn.Module):
  """Holds K prototypes, `kernel` float32 [D, K]; they are used through `prototypes_of`."""
  count: int

  @nn.compact
  def __call__(self, dim):
    """Makes the parameter for features of `dim` numbers."""
    init = logical(nn.initializers.lecun_normal(), "embed", "vocab")
    self.param("kernel", init, (dim, self.count), jnp.float32)


class ProjectionHead(nn.Module):
  """MLP, bottleneck and unit norm before the prototypes (DINO, arXiv:2104.14294, appendix C).

  It gives the features that are compared with the prototypes and not the logits: they have 256
  numbers and not 65,536. What needs logits makes them in blocks (`parallel/prototypes.py`).

  Attributes:
    prototypes: how many there are, K.
    hidden: width of the hidden layers.
    layers: linear layers of the MLP, with GELU between them; the last gives the bottleneck.
    bottleneck: numbers of a feature, D.
    kernel_init: a name of `KERNEL_INITS`. The paper's "truncated_normal" is made for its widths; in
      a head of 100 units learned biases soon outgrow what comes through it.
    dtype: of the computation.
  """
  prototypes: int
  hidden: int = 2048
  layers: int = 3
  bottleneck: int = 256
  kernel_init: str = "truncated_normal"
  dtype: str = "float32"

  def __post_init__(self):
    check_choice("kernel_init", self.kernel_init, KERNEL_INITS)
    super().__post_init__()

  @nn.compact
  def __call__(self, x):
    """[..., width] -> float32 [..., D], unit norm."""
    init = dict(kernel_init=KERNEL_INITS[self.kernel_init], dtype=self.dtype)
    sides = "embed", "mlp"
    for i in range(self.layers - 1):  # the sides take turns, so that every second output is whole
      x = Linear((self.hidden,), (sides[i % 2], sides[1 - i % 2]), name=f"layer_{i}", **init)(x)
      x = jax.nn.gelu(x, approximate=False)
    side = sides[(self.layers - 1) % 2]
    x = Linear((self.bottleneck,), (side, "bottleneck"), name="bottleneck_layer", **init)(x)
    Prototypes(self.prototypes, name="prototypes")(self.bottleneck)
    return unit(x)
