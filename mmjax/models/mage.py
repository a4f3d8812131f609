"""What MAGE (arXiv:2211.09117) has beside encoder and decoder: a table of the ids."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.linear import Linear, logical
from mmjax.nn.norm import layer_norm


class TokenTable(nn.Module):
  """Embeddings of `codes` ids and of the mask, whose id is `codes`; the table gives logits too.

  The head is BERT's (arXiv:1810.04805): gelu of a linear layer, a norm, the table, a bias.

  Attributes:
    codes: how many ids there are, K.
    width: of an embedding.
    dtype: of the computation.
  """
  codes: int
  width: int
  dtype: str = "float32"

  def setup(self):
    normal = logical(nn.initializers.normal(0.02), "codes", "embed")
    self.table = self.param("table", normal, (self.codes + 1, self.width), jnp.float32)
    zeros = logical(nn.initializers.zeros, "codes")
    self.bias = self.param("bias", zeros, (self.codes,), jnp.float32)
    self.transform = Linear((self.width,), ("joint", "embed"), dtype=self.dtype)
    self.norm = layer_norm(1e-6, None)

  def __call__(self, ids, hidden):
    """(`embed(ids)`, `logits(hidden)`): what `init` calls to make all parameters."""
    return self.embed(ids), self.logits(hidden)

  def embed(self, ids):
    """int32 [B, N], each from 0 to K -> [B, N, width]."""
    return self.table.astype(self.dtype)[ids]

  def logits(self, hidden):
    """[B, N, D] -> float32 [B, N, K]."""
    x = self.norm(nn.gelu(self.transform(hidden))).astype(self.dtype)
    products = jnp.einsum("bnd,kd->bnk", x, self.table[:-1].astype(self.dtype),
                          preferred_element_type=jnp.float32)
    return products + self.bias
