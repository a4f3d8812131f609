"""Tokenizer of images that needs no training: each patch's mean colour, on a fixed grid of colours.

As in iGPT (Chen et al. 2020), whose tokens are the nearest of a palette of colours. These tell
little of a picture, but a run on them needs no other run first. The interface is that of
`mmjax/models/vq.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp

from mmjax.nn.patch import patch_grid, patchify, unpatchify


@dataclasses.dataclass(frozen=True)
class Palette:
  """Each channel of a patch's mean colour at one of `levels` values evenly between -1 and 1.

  Attributes:
    patch: pixels a side that one token stands for.
    levels: of each of the three channels; levels^3 codes.
  """

  patch: int = 4
  levels: int = 6

  def __post_init__(self):
    for name, least in (("patch", 1), ("levels", 2)):
      if getattr(self, name) < least:
        raise ValueError(f"{name}: must be at least {least}, not {getattr(self, name)}")

  @property
  def codes(self) -> int:
    return self.levels ** 3

  def grid_of(self, shape):
    return patch_grid(shape, (self.patch, self.patch))

  def init(self, rng, image):
    """There is nothing to learn: {}."""
    return {}

  def ids(self, weights, image: jax.Array) -> jax.Array:
    """Images [B, H, W, 3] of values from -1 to 1 -> int32 [B, N]."""
    mean = jnp.mean(patchify(image, (self.patch, self.patch)), axis=(2, 3))
    level = jnp.clip(jnp.round((mean + 1) / 2 * (self.levels - 1)), 0, self.levels - 1)
    red, green, blue = jnp.split(level.astype(jnp.int32), 3, axis=-1)
    return ((red * self.levels + green) * self.levels + blue)[..., 0]

  def picture(self, weights, ids: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """int32 [B, N] -> float32 [B, H, W, 3], each patch of one colour."""
    n = self.levels
    level = jnp.stack([ids // n ** 2, ids // n % n, ids % n], axis=-1)
    colour = (level / (self.levels - 1) * 2 - 1).astype(jnp.float32)[:, :, None, None]
    size = (*ids.shape, self.patch, self.patch, 3)
    return unpatchify(jnp.broadcast_to(colour, size), grid)


build = Palette
