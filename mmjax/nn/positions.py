"""Position information without parameters: sine-cosine tables and rotary angles."""

import jax.numpy as jnp
import numpy as np


def sincos_2d(grid, width, endpoint=False):
  """Fixed sine-cosine position table of an image's patches.

  Row (y, x) is [sin(x w), cos(x w), sin(y w), cos(y w)] with w_i = 10000^(-i / d), i < width / 4.
  d = width / 4 gives the table of MoCo v3 (Chen et al. 2021, arXiv:2104.02057) and MAE;
  d = width / 4 - 1, where the slowest wave is exactly 1 / 10000, that of big_vision.

  Args:
    grid: (rows, columns) of patches.
    width: of the embedding, a multiple of 4.
    endpoint: True for big_vision's d.

  Returns:
    float32 [rows * columns, width], row by row.

  Raises:
    ValueError: width is not a multiple of 4 (with `endpoint`, of at least 8).
  """
  if width % 4 or (endpoint and width < 8):
    raise ValueError(f"Sine-cosine positions need a width that is a multiple of 4, not {width}.")
  count = width // 4
  omega = 10000.0 ** -(np.arange(count) / (count - 1 if endpoint else count))
  y, x = np.mgrid[:grid[0], :grid[1]]
  y, x = y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega
  table = np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=-1)
  return jnp.asarray(table, jnp.float32)


def sincos(grid, width):
  """Fixed sine-cosine positions of an image's patches (`sincos_2d`) or of a video's.

  Those of videos are the sum of one table in space and one in time, [sin(t w), cos(t w)] with
  w_i = 10000^(-i / (width / 2)): separable, as the learned ones of Feichtenhofer et al. 2022
  (arXiv:2205.09113, sec. 3.1).

  Args:
    grid: (rows, columns), or (frames, rows, columns).
    width: of the embedding, a multiple of 4.

  Returns:
    float32 [N, width], row by row, frame by frame.
  """
  space = sincos_2d(grid[-2:], width)
  if len(grid) == 2:
    return space
  angles = np.arange(grid[0])[:, None] * 10000.0 ** (-np.arange(width // 2) / (width // 2))
  time = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
  return (jnp.asarray(time, jnp.float32)[:, None] + space).reshape(-1, width)


def rotary_2d(grid, head_dim, base=100.0):
  """Rotary angles of an image's patches: half of the pairs turn with y, half with x.

  The axial form of Heo et al. 2024 (arXiv:2403.13298, sec. 3.2): angle_i = position * base^(-i / d)
  with d = head_dim / 4 frequencies an axis. Nothing depends on the image's size.

  Args:
    grid: (rows, columns) of patches.
    head_dim: width of a head, a multiple of 4.
    base: ratio of the fastest to the slowest frequency, about.

  Returns:
    float32 [rows * columns, head_dim / 2], for `rotate`.

  Raises:
    ValueError: head_dim is not a multiple of 4.
  """
  if head_dim % 4:
    raise ValueError(f"Rotary 2-D positions need heads of a multiple of 4, not {head_dim}.")
  omega = base ** -(np.arange(head_dim // 4) / (head_dim // 4))
  y, x = np.mgrid[:grid[0], :grid[1]]
  angles = np.concatenate([y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega], axis=-1)
  return jnp.asarray(angles, jnp.float32)


def rotate(x, angles):
  """Rotary position embedding (Su et al. 2021, arXiv:2104.09864, eq. 34).

  Channel i is paired with channel i + d / 2, as in GPT-NeoX and Llama.

  Args:
    x: queries or keys [B, L, H, d].
    angles: float32 [L, d / 2], or [B, L, d / 2] where rows differ.

  Returns:
    x with each pair turned by its angle, same shape and dtype.
  """
  angles = angles[..., None, :]  # the same for all heads
  cos, sin = jnp.cos(angles), jnp.sin(angles)
  first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  turned = [first * cos - second * sin, second * cos + first * sin]
  return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def rotary_unit_2d(grid, head_dim, base=100.0):
  """Rotary angles from patch centres between -1 and 1 (DINOv3, arXiv:2508.10104, sec. 3.2).

  angle_i = 2 pi * c * base^(-i / d) with d = head_dim / 4 frequencies an axis, first those of y, and
  c = 2 (index + 1/2) / count - 1: an image's middle and borders have the same angles at any size.

  Args, returns, raises: as `rotary_2d`.
  """
  if head_dim % 4:
    raise ValueError(f"Rotary 2-D positions need heads of a multiple of 4, not {head_dim}.")
  omega = 2 * np.pi * base ** -(np.arange(head_dim // 4) / (head_dim // 4))
  centres = [2 * (np.arange(count) + 0.5) / count - 1 for count in grid]
  y, x = np.meshgrid(*centres, indexing="ij")
  angles = np.concatenate([y.reshape(-1, 1) * omega, x.reshape(-1, 1) * omega], axis=-1)
  return jnp.asarray(angles, jnp.float32)
