"""Dynamic alignment: a student's blocks mixed into predictions of a teacher's (MaskAlign)."""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.linear import KERNEL_INITS, Linear, logical
from mmjax.nn.names import check_choice

OTHERS = 0.01  # what a layer begins to weigh in the prediction of one that is not its counterpart


class Aligner(nn.Module):
  """Predicts J layers of a teacher, each from a learned mixture of the student's S blocks.

    prediction_j = linear_j(sum_i W_ji block_i)

  W [J, S] begins as 1 where student and teacher are equally far from their ends, plus `OTHERS`
  (Xue et al. 2023, arXiv:2211.08887, sec. 3.3, and their code).

  Attributes:
    layers: S numbers of the student's blocks, ascending.
    outputs: J, how many layers of the teacher are predicted, the last its last one.
    width: of the teacher.
    kernel_init: a name of `KERNEL_INITS`.
    dtype: of the computation.
  """
  layers: tuple
  outputs: int
  width: int
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"

  def __post_init__(self):
    check_choice("Aligner.kernel_init", self.kernel_init, KERNEL_INITS)
    if not 1 <= self.outputs <= len(self.layers):
      raise ValueError(f"Aligner.outputs = {self.outputs} is not from 1 to {len(self.layers)}, the "
                       "number of Aligner.layers.")
    super().__post_init__()

  @property
  def want(self):
    """The features of the encoder that it needs, as `ViT` calls them."""
    return tuple(f"layer/{i}" for i in self.layers)

  @nn.compact
  def __call__(self, features, mask, grid, keys=None, train=False):
    """Predicts.

    Args:
      features: of the encoder: "tokens" [B, K, D], and those of `want` [B, P + K, D].
      mask, grid, keys, train: as of any decoder; not used.

    Returns:
      [B, K, outputs * width], the teacher's layers one beside the other.
    """
    del mask, grid, keys, train
    count = features["tokens"].shape[1]
    blocks = jnp.stack([features[name][:, -count:] for name in self.want])       # [S, B, K, D]
    weights = self.param("mixing", logical(_counterparts, "outputs", "inputs"),
                         (self.outputs, len(self.layers)), jnp.float32)
    mixed = jnp.einsum("js,sbkd->jbkd", weights.astype(blocks.dtype), blocks)
    init = KERNEL_INITS[self.kernel_init]
    return jnp.concatenate([
        Linear((self.width,), ("embed", "prediction"), kernel_init=init, dtype=self.dtype,
               name=f"head_{j}")(x) for j, x in enumerate(mixed)], axis=-1)


def _counterparts(key, shape, dtype):
  """1 on the diagonal that ends in the last row and column, plus `OTHERS`."""
  del key
  return jnp.eye(*shape, k=shape[1] - shape[0], dtype=dtype) + OTHERS


build = Aligner
