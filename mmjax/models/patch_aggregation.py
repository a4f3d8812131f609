"""Patch aggregation: the class token sums up the picture (BEiT v2, arXiv:2208.06366, sec. 2.4)."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.mlp import default_mlp_dim
from mmjax.nn.norm import layer_norm
from mmjax.nn.transformer import Transformer, check_trunk


class PatchAggregation(nn.Module):
  """Predicts from the last block's tokens, and from its class token with an early block's tokens.

  These know too little of the picture to predict what is masked, so the class token has to tell.

  Attributes:
    width: of the encoder.
    layer: the block whose patch tokens are taken, from 0.
    depth, heads: of the trunk that predicts from class token and early tokens.
    activation, drop_path, dropout, scan, remat, attention, kernel_init, dtype: as in `Transformer`.
  """
  width: int = 768
  layer: int = 8
  depth: int = 2
  heads: int = 12
  activation: str = "gelu"
  drop_path: float = 0.0
  dropout: float = 0.0
  scan: bool = True
  remat: str = "none"
  attention: str = "auto"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"

  def __post_init__(self):
    check_trunk("PatchAggregation", self)
    super().__post_init__()

  @property
  def want(self) -> tuple[str, ...]:
    """The features of the encoder that it reads beside tokens and prefix."""
    return (f"layer/{self.layer}",)

  @nn.compact
  def __call__(self, features, mask, grid, keys=None, train=False):
    """Two predictions.

    Args:
      features: of the encoder: "tokens" [B, N, D], "prefix" [B, P, D], "layer/i" [B, P + N, D].
      mask, grid: not needed, all tokens being there.
      keys: one PRNG key a row, [B]; needed in training with drop-path or dropout.
      train: drop-path and dropout are active.

    Returns:
      {"prediction": the tokens [B, N, D], "aggregated": [B, N, D]}.
    """
    del mask, grid
    prefix = features["prefix"]
    early = features[f"layer/{self.layer}"][:, prefix.shape[1]:]
    x = jnp.concatenate([prefix[:, :1], early], axis=1)
    x, _ = Transformer(
        self.depth, self.heads, default_mlp_dim(self.width, self.activation), self.activation,
        drop_path=self.drop_path, dropout=self.dropout, scan=self.scan, remat=self.remat,
        attention=self.attention, kernel_init=self.kernel_init, dtype=self.dtype, name="trunk")(
            x, keys=keys, train=train)
    x = layer_norm(1e-6, "final_norm", settled=True)(x).astype(self.dtype)
    return {"prediction": features["tokens"], "aggregated": x[:, 1:]}


build = PatchAggregation
