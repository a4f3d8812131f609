"""The MLP between an encoder and a joint-embedding loss (VICReg's expander, SimCLR's projector)."""

from flax import linen as nn

from mmjax.nn.linear import Linear
from mmjax.nn.norm import layer_norm
from mmjax.parallel import mesh as mesh_lib


class Expander(nn.Module):
  """Linear layers with a norm and a ReLU between them; the last has no bias.

  VICReg has batch norm (arXiv:2105.04906, sec. 4.2). Here it is layer norm: each row's result then
  depends on that row only, so that micro-batches and devices change nothing.

  Attributes:
    widths: of the layers, the last that of the embedding.
    norm_eps: of the layer norms.
    dtype: of the computation.
  """
  widths: tuple = (8192, 8192, 8192)
  norm_eps: float = 1e-6
  dtype: str = "float32"

  def __post_init__(self):
    if not self.widths or any(not isinstance(w, int) or w < 1 for w in self.widths):
      raise ValueError(f"Expander.widths = {self.widths} must be the layers' widths, one or more.")
    super().__post_init__()

  @nn.compact
  def __call__(self, x):
    """[B, C] -> [B, widths[-1]]."""
    for i, width in enumerate(self.widths[:-1]):
      x = Linear((width,), ("embed", "mlp"), dtype=self.dtype, name=f"layer_{i}")(x)
      x = nn.relu(layer_norm(self.norm_eps, f"norm_{i}")(x)).astype(self.dtype)
      x = mesh_lib.constrain(x, ("batch", "embed"))
    return Linear((self.widths[-1],), ("embed", "mlp"), use_bias=False, dtype=self.dtype,
                  name="last")(x)


build = Expander
