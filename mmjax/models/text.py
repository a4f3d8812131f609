"""Text transformer: the text tower of CLIP (causal) and SigLIP (bidirectional), and BERT-like ones.

  CLIP     causal=True, pool="eos", eos_id=49407 (None: the highest id), activation="quick_gelu",
           norm_eps=1e-5, out_dim=512, mask_padding=False
  SigLIP   pool="final", out_dim=width, out_bias=True, mask_padding=False
"""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.linear import Linear, logical
from mmjax.nn.mlp import default_mlp_dim
from mmjax.nn.names import check_choice
from mmjax.nn.norm import layer_norm
from mmjax.nn.pooling import AttentionPool, eos_index, last_index, mean_pool, token_at
from mmjax.nn.transformer import Transformer, check_trunk
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel.lookup import lookup

POOLS = ("last", "final", "eos", "mean", "map", "first", "none")


class TextTransformer(nn.Module):
  """Text encoder over token ids.

  Attributes:
    vocab: number of token ids.
    length: number of learned positions; texts may be shorter.
    width, depth, heads: of the trunk.
    mlp_dim: hidden width of the MLPs; None for 4 * width (SwiGLU: two thirds of it).
    activation: "gelu" (exact), "gelu_tanh", "quick_gelu" or "swiglu".
    causal: a token sees itself and what stands before it; False for all tokens.
    pool: "last" real token (with no mask: last place), "final" place, padding or not, "eos" (see
      `pooling.eos_index`), "mean" of the real tokens, "map" (attention pooling over them), "first" or
      "none".
    eos_id: of pool="eos"; None for the highest id in each text.
    mask_padding: tokens outside the mask are not attended to and not pooled. False ignores the
      mask, as CLIP and SigLIP do: they were trained to see their padding.
    final_norm: layer norm after the last block.
    out_dim: width of a linear projection of the result; None for none.
    out_bias: that projection has a bias.
    qk_norm, layer_scale, drop_path, dropout, norm_eps, scan, remat, attention: as in `Transformer`.
    kernel_init: "xavier_uniform", "truncated_normal" (0.02) or "lecun_normal", for the trunk. The
      projection is LeCun normal; embeddings and positions are normal with 1 / sqrt(width).
    dtype: of the computation, "float32" or "bfloat16". Parameters, norms and softmax are float32.
  """
  vocab: int = 32000
  length: int = 64
  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_dim: int | None = None
  activation: str = "gelu_tanh"
  causal: bool = False
  pool: str = "last"
  eos_id: int | None = None
  mask_padding: bool = True
  final_norm: bool = True
  out_dim: int | None = None
  out_bias: bool = False
  qk_norm: bool = False
  layer_scale: float | None = None
  drop_path: float = 0.0
  dropout: float = 0.0
  norm_eps: float = 1e-6
  scan: bool = True
  remat: str = "none"
  attention: str = "auto"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"

  def __post_init__(self):
    check_trunk("TextTransformer", self)
    check_choice("TextTransformer.pool", self.pool, POOLS)
    if self.pool == "none" and self.out_dim:
      raise ValueError("TextTransformer: pool='none' leaves nothing for out_dim to act on.")
    super().__post_init__()

  @nn.compact
  def __call__(self, text, mask=None, *, keys=None, train=False, want=()):
    """Encodes texts.

    Args:
      text: int32 [B, L], token ids. An id outside the vocabulary gives NaN.
      mask: bool [B, L], True for real tokens; None when all are.
      keys: one PRNG key a row, [B]; needed in training with drop-path or dropout.
      train: drop-path and dropout are active.
      want: features wanted too, see below.

    Returns:
      The pooled text [B, D] (None with pool="none"), and a dict of
        "tokens" [B, L, D], if wanted: after the final norm;
        "layer/i" [B, L, D], if wanted: what block i gives, before the final norm.

    Raises:
      ValueError: the text is longer than the positions, `want` has an unknown name.
    """
    for name in want:
      check_choice("TextTransformer want", name,
                   ("tokens", *(f"layer/{i}" for i in range(self.depth))))
    if text.shape[1] > self.length:
      raise ValueError(f"The text has {text.shape[1]} tokens, but TextTransformer.length is "
                       f"{self.length}.")
    mask = mask if self.mask_padding else None
    x, features = Transformer(
        self.depth, self.heads, self._mlp_dim(), self.activation, self.causal, self.qk_norm,
        self.layer_scale, self.drop_path, self.dropout, self.norm_eps, self.scan, self.remat,
        self.attention, self.kernel_init, self.dtype, name="trunk")(
            self._embed(text), padding=mask, keys=keys, train=train, want=want)
    if self.final_norm:
      x = layer_norm(self.norm_eps, "final_norm", settled=True)(x).astype(self.dtype)
    if "tokens" in want:
      features["tokens"] = x
    return self._head(x, text, mask), features

  def _mlp_dim(self):
    return self.mlp_dim or default_mlp_dim(self.width, self.activation)

  def _embed(self, text):
    """Token and position embeddings, [B, L] -> [B, L, D]."""
    normal = nn.initializers.normal(self.width ** -0.5)
    table = self.param("embedding", logical(normal, "vocab", "embed"), (self.vocab, self.width),
                       jnp.float32)
    position = self.param("position", logical(normal, "position", "embed"),
                          (self.length, self.width), jnp.float32)
    x = lookup(table, text) + position[:text.shape[1]]
    return mesh_lib.constrain(x.astype(self.dtype), ("batch", "length", "embed"))

  def _head(self, x, text, mask):
    """Pools and projects: [B, L, D] -> [B, D]; None with pool="none"."""
    if self.pool == "none":
      return None
    if self.pool == "last":
      y = x[:, -1] if mask is None else token_at(x, last_index(mask))
    elif self.pool == "final":
      y = x[:, -1]
    elif self.pool == "eos":
      y = token_at(x, eos_index(text, self.eos_id))
    elif self.pool == "mean":
      y = mean_pool(x, mask)
    elif self.pool == "first":
      y = x[:, 0]
    else:
      y = AttentionPool(self.heads, self._mlp_dim(), self.activation, self.norm_eps,
                        self.kernel_init, self.dtype, name="pool")(x, mask)
    if self.out_dim:
      y = Linear((self.out_dim,), ("embed", "joint"), self.out_bias, dtype=self.dtype,
                 name="projection")(y)
    return mesh_lib.constrain(y, ("batch", "embed"))


build = TextTransformer
