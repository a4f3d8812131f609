"""What MAGE (arXiv:2211.09117) has beside encoder and decoder: the logits of ids."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.linear import Linear, logical
from mmjax.nn.norm import layer_norm


class TokenHead(nn.Module):
  """BERT's head (arXiv:1810.04805): gelu of a linear layer, a norm, the embeddings of ids, a bias.

  Attributes:
    dtype: of the computation.
  """
  dtype: str = "float32"

  @nn.compact
  def __call__(self, hidden, table):
    """[B, N, D] and the encoder's `token_embed` [K + 1, W] -> float32 [B, N, K]."""
    codes, width = table.shape[0] - 1, table.shape[1]
    x = Linear((width,), ("joint", "embed"), dtype=self.dtype, name="transform")(hidden)
    x = layer_norm(1e-6, "norm")(nn.gelu(x)).astype(self.dtype)
    products = jnp.einsum("bnd,kd->bnk", x, table[:-1].astype(self.dtype),
                          preferred_element_type=jnp.float32)
    bias = self.param("bias", logical(nn.initializers.zeros, "codes"), (codes,), jnp.float32)
    return products + bias
