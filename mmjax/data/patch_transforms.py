"""Transforms that know the model's patches: native resolution and aspect ratio (NaFlex), whole
patches."""

import dataclasses
import math

import numpy as np

from mmjax.data import geometry
from mmjax.data import image_transforms
from mmjax.data import records
from mmjax.data import resampling


def fit_size(height: int, width: int, patch: tuple, max_patches: int) -> tuple[int, int]:
  """(height, width), multiples of `patch`, to which NaFlex resizes an image of this size.

  The largest scale, to within 1e-5, at which the sides, rounded up to whole patches, hold at most
  `max_patches` of them: the bisection of SigLIP 2 (Tschannen et al. 2025, arXiv 2502.14786, sec.
  2.4.2), whose steps are repeated here because its last one decides between two grids.
  """
  def grid(scale):
    return [max(1, math.ceil(side * scale / p)) for side, p in zip((height, width), patch)]

  precision = 1e-5
  low, high = precision / 10, 100.0
  while high - low >= precision:
    scale = (low + high) / 2
    low, high = (scale, high) if math.prod(grid(scale)) <= max_patches else (low, scale)
  rows, columns = grid(low)
  return rows * patch[0], columns * patch[1]


def to_patches(image, patch: tuple):
  """[H, W, C] to [rows * columns, ph, pw, C], row by row; H and W are multiples of the patch."""
  rows, columns = image.shape[0] // patch[0], image.shape[1] // patch[1]
  cut = image.reshape(rows, patch[0], columns, patch[1], -1).swapaxes(1, 2)
  return cut.reshape(rows * columns, *patch, -1)


@dataclasses.dataclass(frozen=True)
class Patchify:
  """An image at its own aspect ratio as a sequence of patches (NaFlex; SigLIP 2, NaViT).

  `key` becomes float32 [max_patches, ph, pw, C], row by row and then zeros; `key`_mask bool
  [max_patches] is True for a patch of the image; `key`_grid int32 [2] holds (rows, columns).

  Attributes:
    patch: side of a patch in pixels, or (height, width).
    max_patches: the image is enlarged or reduced to as many patches as fit.
    filter: of the resize, which is done in 8 bits and before normalisation.
    resize: False takes images as they are: multiples of the patch, of at most max_patches.
    mean, std: one number a channel, for pixels in [0, 1], as in Normalise.
  """

  patch: int | tuple = 16
  max_patches: int = 256
  filter: str = "bilinear"
  resize: bool = True
  mean: tuple = (0.5, 0.5, 0.5)
  std: tuple = (0.5, 0.5, 0.5)
  key: str = "image"

  def __post_init__(self):
    image_transforms.require_size(self, "patch")
    records.require(self, "max_patches", self.max_patches > 0, "expected a positive count")
    image_transforms.require_filter(self)
    image_transforms.Normalise(mean=self.mean, std=self.std)  # checks them

  def __call__(self, record, rng):
    image = records.image(record, self.key)
    patch = image_transforms.height_width(self.patch)
    if self.resize:
      size = fit_size(*image.shape[:2], patch, self.max_patches)
      image = resampling.resize(image, size, self.filter)
    grid = (image.shape[0] // patch[0], image.shape[1] // patch[1])
    count = grid[0] * grid[1]
    if image.shape[:2] != (grid[0] * patch[0], grid[1] * patch[1]) or count > self.max_patches:
      raise ValueError(f"the image {list(image.shape[:2])} is not at most {self.max_patches} "
                       f"patches of {list(patch)}; set resize = True")
    normalise = image_transforms.Normalise(mean=self.mean, std=self.std, key=self.key)
    patches = to_patches(normalise({self.key: image}, rng)[self.key], patch)
    padded = np.pad(patches, [(0, self.max_patches - count)] + [(0, 0)] * 3)
    return {**record, self.key: padded, f"{self.key}_mask": np.arange(self.max_patches) < count,
            f"{self.key}_grid": np.array(grid, np.int32)}


def buckets(max_patches: int, max_aspect: float) -> tuple[tuple[int, int], ...]:
  """Grids (rows, columns) of at most `max_patches` whole patches to which neither a row nor a column could
  be added, from the flattest to the tallest; none longer than `max_aspect` times its other side."""
  grids = [(rows, max_patches // rows) for rows in range(1, max_patches + 1)]
  full = [(rows, columns) for rows, columns in grids if (rows + 1) * columns > max_patches]
  return tuple(grid for grid in full if max(grid) <= max_aspect * min(grid))


@dataclasses.dataclass(frozen=True)
class AspectBucket:
  """An image at the size of the bucket whose aspect ratio is nearest to its own: scaled to cover it, and what
  stands over cut off (aspect bucketing, SDXL: Podell et al. 2023, arXiv:2307.01952, sec. 2.3).

  Buckets have about `max_patches` patches each, so with `Patchify(resize=False)` behind it images of all
  buckets go into one batch of one static shape. Nothing is distorted; of an image no longer than
  `max_aspect` little is lost.

  Attributes:
    patch: side of a patch in pixels, or (height, width).
    max_patches: of a bucket.
    max_aspect: of a bucket, longer by shorter side in patches.
    crop: "centre", or "random" for training.
  """

  patch: int | tuple = 16
  max_patches: int = 256
  max_aspect: float = 2.0
  crop: str = "centre"
  filter: str = "bilinear"
  key: str = "image"

  def __post_init__(self):
    image_transforms.require_size(self, "patch")
    records.require(self, "max_patches", self.max_patches > 0, "expected a positive count")
    records.require(self, "max_aspect", self.max_aspect >= 1, "expected 1 or more")
    records.require(self, "max_aspect", buckets(self.max_patches, self.max_aspect),
                    f"no grid of at most {self.max_patches} patches is so square; give a larger one")
    records.require(self, "crop", self.crop in ("centre", "random"), "expected 'centre' or 'random'")
    image_transforms.require_filter(self)

  def size(self, height: int, width: int) -> tuple[int, int]:
    """(height, width) of the bucket for an image of this size."""
    patch = image_transforms.height_width(self.patch)
    sizes = [(rows * patch[0], columns * patch[1]) for rows, columns in buckets(self.max_patches, self.max_aspect)]
    return min(sizes, key=lambda size: abs(math.log(size[0] / size[1] * width / height)))

  def __call__(self, record, rng):
    old = geometry.size(record, self.key)
    size = self.size(*old)
    scale = max(new / side for new, side in zip(size, old))
    cover = tuple(max(new, round(side * scale)) for new, side in zip(size, old))
    over = [side - new for side, new in zip(cover, size)]
    top, left = (int(rng.integers(n + 1)) if self.crop == "random" else n // 2 for n in over)

    def cut(image, resample, fill):
      return resample(image, cover)[top:top + size[0], left:left + size[1]]
    return geometry.move(record, self.key, cut,
                         lambda image, cover: resampling.resize(image, cover, self.filter))


@dataclasses.dataclass(frozen=True)
class CropToPatches:
  """Leaves out the bottom rows and right columns that fill no whole patch.

  A convolution with stride = patch never sees them, as with 384 pixels and patches of 14
  (so400m-patch14-384). An image smaller than one patch is a bad record.
  """

  patch: int | tuple
  key: str = "image"

  def __post_init__(self):
    image_transforms.require_size(self, "patch")

  def __call__(self, record, rng):
    size = geometry.size(record, self.key)
    height, width = (side // p * p for side, p in
                     zip(size, image_transforms.height_width(self.patch)))
    if not height or not width:
      raise ValueError(f"the image {list(size)} is smaller than a patch")
    return geometry.move(record, self.key,
                         lambda image, resample, fill: image[:height, :width])
