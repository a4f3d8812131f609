"""Depth as one token a patch, without a trained tokenizer."""

import dataclasses

import jax.numpy as jnp

from mmjax.targets.cut import cut


@dataclasses.dataclass(frozen=True)
class DepthBins:
  """The bin of each patch's mean log-depth: ids from the nearest, 0, to the farthest, bins - 1.

  Attributes:
    bins: how many, of equal width on a logarithmic scale.
    nearest, farthest: metres; depths outside count as these.
    key: of the batch, float32 [B, H, W, 1] in metres.
  """

  bins: int = 64
  nearest: float = 1.0
  farthest: float = 20.0
  key: str = "depth"

  def __post_init__(self):
    if self.bins < 2:
      raise ValueError(f"bins={self.bins}: at least 2")
    if not 0 < self.nearest < self.farthest:
      raise ValueError(f"nearest={self.nearest}: must be positive and below "
                       f"farthest={self.farthest}")

  def init(self, rng, batch):
    return {}

  def size(self, batch, grid):
    return self.bins

  def __call__(self, state, batch, grid, guide=None):
    if guide is not None:
      raise ValueError(f"target: depth bins have no {guide} for the mask to go by")
    depth = jnp.clip(cut(batch, self.key, grid)[..., 0], self.nearest, self.farthest)
    place = jnp.mean(jnp.log(depth / self.nearest), axis=-1) / jnp.log(self.farthest / self.nearest)
    return jnp.minimum(place * self.bins, self.bins - 1).astype(jnp.int32), None

  def picture(self, state, ids, grid):
    """int32 [B, N] -> levels float32 [B, *grid, 1] from 0, the nearest bin, to 1."""
    return (ids / (self.bins - 1)).astype(jnp.float32).reshape(len(ids), *grid, 1)


build = DepthBins
