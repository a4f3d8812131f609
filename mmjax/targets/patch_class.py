"""A label map as one token a patch, without a trained tokenizer."""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.targets.cut import cut


@dataclasses.dataclass(frozen=True)
class PatchClass:
  """The class that most pixels of a patch have; of equals the smallest.

  Attributes:
    classes: how many there are; labels outside them are not counted.
    key: of the batch, int32 [B, H, W].
  """

  classes: int
  key: str = "semantic"

  def __post_init__(self):
    if self.classes < 2:
      raise ValueError(f"classes={self.classes}: at least 2")

  def init(self, rng, batch):
    return {}

  def size(self, batch, grid):
    return self.classes

  def __call__(self, state, batch, grid, guide=None):
    if guide is not None:
      raise ValueError(f"target: classes of patches have no {guide} for the mask to go by")
    labels = cut(batch, self.key, grid)[..., 0]
    votes = jnp.sum(jax.nn.one_hot(labels, self.classes), axis=2)
    return jnp.argmax(votes, axis=-1).astype(jnp.int32), None

  def picture(self, state, ids, grid):
    """int32 [B, N] -> levels float32 [B, *grid, 1] from 0 to 1, one for each class."""
    return (ids / (self.classes - 1)).astype(jnp.float32).reshape(len(ids), *grid, 1)


build = PatchClass
