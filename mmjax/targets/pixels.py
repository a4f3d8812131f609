"""Pixels as targets (MAE, SimMIM, and space-time MAE)."""

import dataclasses
import math

import jax.numpy as jnp

from mmjax.nn.patch import patchify, unpatchify

EPSILON = 1e-6  # added to a patch's variance, as in MAE's code


@dataclasses.dataclass(frozen=True)
class Pixels:
  """The pixels of each patch, flat: [patch height, patch width, C], frames first where there are.

  Attributes:
    key: of the batch: "image" [B, H, W, C], "video" [B, T, H, W, C] or any other of such a shape.
    normalise: each patch has its own mean taken off and is divided by its own standard deviation
      (unbiased), over all its pixels and channels (MAE, He et al. 2022, arXiv:2111.06377, sec. 3).
    frames: of a patch of several frames take the first so many; None for all. Space-time MAE takes
      one (Feichtenhofer et al. 2022, arXiv:2205.09113, sec. 3).
  """

  key: str = "image"
  normalise: bool = True
  frames: int | None = None

  def __post_init__(self):
    if self.frames is not None and self.frames < 1:
      raise ValueError(f"frames: at least 1, or None for all of a patch, not {self.frames}")

  def init(self, rng, batch):
    return {}

  def size(self, batch, grid):
    patch = self._patch(batch[self.key], grid)
    if self.frames is not None:
      patch = (self.frames, *patch[1:])
    return math.prod(patch) * batch[self.key].shape[-1]

  def __call__(self, state, batch, grid, guide=None):
    if guide is not None:
      raise ValueError(f"target: pixels have no {guide} for the mask to go by; take a target with "
                       "a teacher, or a mask that is not guided")
    patches = self._patches(batch, grid)
    if self.normalise:
      mean, deviation = _moments(patches)
      patches = (patches - mean) / deviation
    return patches, None

  def pixels(self, prediction, batch, grid):
    """Normalised predictions take mean and deviation of the true patch, as in the pictures of MAE;
    with `frames` the last that is predicted stands for the others of the patch."""
    if self.normalise:
      mean, deviation = _moments(self._patches(batch, grid))
      prediction = prediction * deviation + mean
    x = batch[self.key]
    patch = self._patch(x, grid)
    shape = patch if self.frames is None else (self.frames, *patch[1:])
    y = prediction.reshape(*prediction.shape[:2], *shape, x.shape[-1])
    missing = patch[0] - shape[0]
    if missing:
      y = jnp.concatenate([y, jnp.repeat(y[:, :, -1:], missing, axis=2)], axis=2)
    return unpatchify(y, grid)

  def trivial(self, loss):
    """That of predicting the mean: all normalised patches have the same."""
    return 1.0 if self.normalise and loss == "l2" else None

  def _patches(self, batch, grid):
    """float32 [B, N, d], patch by patch."""
    x = batch[self.key]
    patches = patchify(x, self._patch(x, grid))
    if self.frames is not None:
      patches = patches[:, :, :self.frames]
    return patches.reshape(*patches.shape[:2], -1).astype(jnp.float32)

  def _patch(self, x, grid):
    """Sides of a patch: the picture's divided by the grid's."""
    sides = x.shape[1:-1]
    if len(sides) != len(grid) or any(side % count for side, count in zip(sides, grid)):
      raise ValueError(f"target.key: {self.key!r} of {'x'.join(map(str, sides))} does not divide "
                       f"into the encoder's grid of {'x'.join(map(str, grid))}")
    patch = tuple(side // count for side, count in zip(sides, grid))
    if self.frames is not None and (len(patch) != 3 or self.frames > patch[0]):
      raise ValueError(f"target.frames: {self.frames} of a patch of {'x'.join(map(str, patch))}; "
                       "it is for patches of at least so many frames")
    return patch


def _moments(patches):
  """Mean and standard deviation of each patch, [B, N, 1]."""
  mean = jnp.mean(patches, axis=-1, keepdims=True)
  variance = jnp.var(patches, axis=-1, keepdims=True, ddof=1)
  return mean, jnp.sqrt(variance + EPSILON)


build = Pixels
