"""From tokens to one vector."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.attention import MultiHeadAttention
from mmjax.nn.linear import logical
from mmjax.nn.mlp import Mlp
from mmjax.nn.norm import layer_norm


def mean_pool(x, mask=None):
  """Mean over tokens, accumulated in float32: [B, L, D] -> [B, D] in x's dtype.

  Args:
    x: tokens.
    mask: bool [B, L], the tokens that count; None for all. A row without any gives zero.
  """
  if mask is None:
    return jnp.mean(x, axis=1, dtype=jnp.float32).astype(x.dtype)
  total = jnp.sum(x * mask[..., None], axis=1, dtype=jnp.float32)
  count = jnp.maximum(jnp.sum(mask, axis=1, dtype=jnp.float32), 1)
  return (total / count[:, None]).astype(x.dtype)


def last_index(mask):
  """Index of each row's last True: bool [B, L] -> int32 [B]. The last place where there is none."""
  return (mask.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)).astype(jnp.int32)


def eos_index(text, eos_id=None):
  """Index of each row's end-of-text token: int32 [B, L] -> int32 [B].

  Args:
    text: token ids.
    eos_id: the first place that holds this id, or 0 where none does (Hugging Face's CLIP). None:
      the first place of the row's highest id, which is what OpenAI's CLIP calls the end of text.
  """
  score = text if eos_id is None else text == eos_id
  return jnp.argmax(score, axis=1).astype(jnp.int32)


def token_at(x, index):
  """[B, L, D], int32 [B] -> [B, D]: row b's token number index[b]."""
  return jnp.take_along_axis(x, index[:, None, None], axis=1)[:, 0]


class AttentionPool(nn.Module):
  """A learned query attends to all tokens, followed by a residual MLP.

  The head of Zhai et al. 2022 (arXiv:2106.04560, sec. 3.2) that SigLIP uses ("MAP").

  Attributes:
    heads, mlp_dim, activation, norm_eps, kernel_init, dtype: as in `Block`.
  """
  heads: int
  mlp_dim: int
  activation: str = "gelu_tanh"
  norm_eps: float = 1e-6
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x, padding=None):
    """[B, L, D], bool [B, L] or None -> [B, D]."""
    probe = self.param("probe", logical(nn.initializers.xavier_uniform(), "token", "embed"),
                       (1, x.shape[-1]), jnp.float32)
    probe = jnp.broadcast_to(probe.astype(self.dtype), (x.shape[0], *probe.shape))
    init = dict(kernel_init=self.kernel_init, dtype=self.dtype)
    # The logits of one query are a vector: no kernel could spare memory.
    y = MultiHeadAttention(self.heads, backend="xla", name="attention", **init)(
        probe, context=x, padding=padding)
    z = layer_norm(self.norm_eps, "norm")(y)
    z = Mlp(self.mlp_dim, self.activation, name="mlp", **init)(z)
    return (y + z)[:, 0]
