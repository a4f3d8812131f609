"""A picture of the batch, cut into the patches of a grid; what the fixed tokenizers share."""

from mmjax.nn.patch import patchify


def cut(batch, key, grid):
  """batch[key] [B, H, W, C], or label map [B, H, W], as patches [B, N, pixels of a patch, C or 1].

  Raises:
    ValueError: it does not divide into `grid` = (rows, columns).
  """
  picture = batch[key]
  if picture.ndim == 3:
    picture = picture[..., None]
  height, width = picture.shape[1:3]
  if height % grid[0] or width % grid[1]:
    raise ValueError(f"grid: {key!r} of {height}x{width} does not divide into {grid[0]}x{grid[1]} "
                     "tokens")
  patches = patchify(picture, (height // grid[0], width // grid[1]))
  return patches.reshape(*patches.shape[:2], -1, picture.shape[-1])
