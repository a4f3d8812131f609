"""The feed-forward half of a transformer block."""

import functools

from flax import linen as nn
import jax

from mmjax.nn.linear import KERNEL_INITS, Linear
from mmjax.nn.names import check_choice
from mmjax.parallel import mesh as mesh_lib


def quick_gelu(x):
  """x * sigmoid(1.702 x), the approximation that OpenAI's CLIP was trained with."""
  return x * jax.nn.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),      # exact, with erf
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),  # big_vision, SigLIP
    "quick_gelu": quick_gelu,
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    # Of the gate (Shazeer 2020, arXiv:2002.05202, eq. 6):
    "geglu": functools.partial(jax.nn.gelu, approximate=False),
    "swiglu": jax.nn.silu,
}
GATED = ("geglu", "swiglu")


def default_mlp_dim(width, activation):
  """4 * width; with a gate 2/3 of it, up to a multiple of 8: three matrices as large as two."""
  return 4 * width if activation not in GATED else (4 * width * 2 // 3 + 7) // 8 * 8


class Mlp(nn.Module):
  """down(act(up(x))), or with a gate down(act(gate(x)) * up(x)).

  Attributes:
    hidden: width between the two multiplications.
    activation: a name of `ACTIVATIONS`.
    kernel_init: a name of `KERNEL_INITS`.
    dtype: of the computation.
    use_bias: False leaves the biases out.
  """
  hidden: int
  activation: str = "gelu_tanh"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"
  use_bias: bool = True

  def __post_init__(self):
    check_choice("activation", self.activation, ACTIVATIONS)
    check_choice("kernel_init", self.kernel_init, KERNEL_INITS)
    super().__post_init__()

  @nn.compact
  def __call__(self, x):
    """[B, L, D] -> [B, L, D]."""
    init = dict(kernel_init=KERNEL_INITS[self.kernel_init], dtype=self.dtype,
                use_bias=self.use_bias, bias_init=nn.initializers.normal(1e-6))  # as in ViT
    up = Linear((self.hidden,), ("embed", "mlp"), name="up", **init)(x)
    act = ACTIVATIONS[self.activation]
    if self.activation in GATED:
      y = act(Linear((self.hidden,), ("embed", "mlp"), name="gate", **init)(x)) * up
    else:
      y = act(up)
    y = mesh_lib.constrain(y, ("batch", "length", "mlp"))
    return Linear((x.shape[-1],), ("mlp", "embed"), name="down", **init)(y)
