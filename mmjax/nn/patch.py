"""From image or video to patches."""

import math

AXES = {2: "[B, H, W, C]", 3: "[B, T, H, W, C]"}


def patch_grid(shape, patch):
  """How many patches there are along each side: (rows, columns), or (frames, rows, columns).

  Args:
    shape: of the images, (B, H, W, C), or of the videos, (B, T, H, W, C).
    patch: (height, width) of a patch, or (frames, height, width).

  Raises:
    ValueError: the shape has other axes than the patch, or is not a whole number of patches.
  """
  if len(shape) != len(patch) + 2:
    what = "Images" if len(patch) == 2 else "Videos"
    raise ValueError(f"{what} must be {AXES[len(patch)]}; got shape {tuple(shape)}.")
  sides = shape[1:-1]
  if any(side % part for side, part in zip(sides, patch)):
    what = "an image" if len(patch) == 2 else "a video"
    raise ValueError(f"patch: {what} of {'x'.join(map(str, sides))} is not a whole number of patches of "
                     f"{'x'.join(map(str, patch))}; resize or crop it in data.transforms, or take another patch")
  return tuple(side // part for side, part in zip(sides, patch))


def patchify(x, patch):
  """[B, H, W, C] -> [B, N, patch height, patch width, C], patches row by row.

  Videos [B, T, H, W, C] likewise, frame by frame: [B, N, patch frames, height, width, C]. A matrix
  multiplication of these is the strided convolution of ViT, and faster on CPUs.
  """
  grid, channels = patch_grid(x.shape, patch), x.shape[-1]
  split = [size for pair in zip(grid, patch) for size in pair]  # rows, height, columns, width
  y = x.reshape(len(x), *split, channels)
  axes = len(grid)
  outer, inner = range(1, 2 * axes, 2), range(2, 2 * axes + 1, 2)
  y = y.transpose(0, *outer, *inner, 2 * axes + 1)
  return y.reshape(len(x), math.prod(grid), *patch, channels)


def unpatchify(patches, grid):
  """The inverse of `patchify`: [B, N, *patch, C] -> [B, H, W, C] or [B, T, H, W, C]."""
  patch, channels = patches.shape[2:-1], patches.shape[-1]
  y = patches.reshape(len(patches), *grid, *patch, channels)
  axes = len(grid)
  order = [axis for pair in zip(range(1, axes + 1), range(axes + 1, 2 * axes + 1)) for axis in pair]
  sides = [count * part for count, part in zip(grid, patch)]
  return y.transpose(0, *order, 2 * axes + 1).reshape(len(patches), *sides, channels)
