"""From image to patches."""


def patch_grid(shape, patch):
  """(rows, columns) of the patches of an image.

  Args:
    shape: of the images, (B, H, W, C).
    patch: (height, width) of a patch.

  Raises:
    ValueError: the image is not 4-dimensional or not a whole number of patches.
  """
  if len(shape) != 4:
    raise ValueError(f"Images must be [B, H, W, C]; got shape {tuple(shape)}.")
  height, width = shape[1:3]
  if height % patch[0] or width % patch[1]:
    raise ValueError(f"An image of {height}x{width} is not a whole number of patches of "
                     f"{patch[0]}x{patch[1]}: resize or crop it.")
  return height // patch[0], width // patch[1]


def patchify(image, patch):
  """[B, H, W, C] -> [B, N, patch height, patch width, C], patches row by row.

  A matrix multiplication of these is the strided convolution of ViT, and faster on CPUs.
  """
  rows, columns = patch_grid(image.shape, patch)
  batch, channels = image.shape[0], image.shape[3]
  x = image.reshape(batch, rows, patch[0], columns, patch[1], channels)
  return x.swapaxes(2, 3).reshape(batch, rows * columns, *patch, channels)
