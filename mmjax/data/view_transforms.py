"""Several augmented views of one image, for self-distillation and joint embedding."""

import dataclasses
import functools

import numpy as np

from mmjax.data import records
from mmjax.data.colour_transforms import ColourJitter, GaussianBlur, Grey, Solarise
from mmjax.data.image_transforms import (
    Flip, RandomResizedCrop, require_filter, require_range, require_size)


@dataclasses.dataclass(frozen=True)
class MultiCrop:
  """V large and L small views of an image (Caron et al. 2020, arXiv:2006.09882, sec. 3.3).

  Adds `global_views` uint8 [V, H, W, 3] and, unless there are none, `local_views` uint8
  [L, h, w, 3]; the image and everything else stays. `Normalise(key=("global_views",
  "local_views"))` makes them float32. Each view is cropped, flipped, jittered, greyed, blurred and
  solarised, in this order, by draws of its own. The defaults are those of DINO (arXiv:2104.14294,
  sec. 4 and its published code for ViT-S), whose two large views differ: the first is always
  blurred, the second seldom, and only that one solarised, as in BYOL (arXiv:2006.07733, table 6).
  With `global_scale=(0.08, 1.0)` and `local_views=0` they are the two views of BYOL and VICReg.

  Attributes:
    global_views, local_views: V >= 1 and L >= 0.
    global_size, local_size: of a view: pixels a side, or (height, width).
    global_scale, local_scale: (least, largest) area of the crop over that of the image.
    filter: of the resize.
    flip: probability of mirroring. Zero for labels that say left or right.
    jitter: strengths of brightness, contrast, saturation and hue, see `ColourJitter`.
    jitter_p, grey_p: probabilities.
    blur_p, solarise_p: probabilities for the large views: one number for all, or one each.
    local_blur_p: probability for the small views, which are not solarised.
    blur_sigma: (least, largest) standard deviation in pixels.
  """

  global_views: int = 2
  global_size: int | tuple = 224
  global_scale: tuple = (0.4, 1.0)
  local_views: int = 8
  local_size: int | tuple = 96
  local_scale: tuple = (0.05, 0.4)
  filter: str = "bicubic"
  flip: float = 0.5
  jitter: tuple = (0.4, 0.4, 0.2, 0.1)
  jitter_p: float = 0.8
  grey_p: float = 0.2
  blur_p: float | tuple = (1.0, 0.1)
  solarise_p: float | tuple = (0.0, 0.2)
  local_blur_p: float = 0.5
  blur_sigma: tuple = (0.1, 2.0)
  key: str = "image"

  def __post_init__(self):
    records.require(self, "global_views", self.global_views >= 1, "expected 1 or more")
    records.require(self, "local_views", self.local_views >= 0, "expected 0 or more")
    require_filter(self)
    for field in ("global", "local"):
      require_size(self, f"{field}_size")
      require_range(self, f"{field}_scale")
      largest = getattr(self, f"{field}_scale")[1]
      records.require(self, f"{field}_scale", largest <= 1, "a crop is no larger than its image")
    records.require(self, "jitter", len(self.jitter) == 4,
                    "expected brightness, contrast, saturation and hue")
    for field in ("flip", "jitter_p", "grey_p", "blur_p", "solarise_p", "local_blur_p"):
      value = getattr(self, field)
      numbers = value if isinstance(value, (tuple, list)) else [value]
      records.require(self, field, all(0 <= p <= 1 for p in numbers), "expected a probability")
    for field in ("blur_p", "solarise_p"):
      value = getattr(self, field)
      single = not isinstance(value, (tuple, list))
      records.require(self, field, single or len(value) == self.global_views,
                      f"expected one number, or one for each of {self.global_views} large views")
    self._large, self._small  # made here, so that what is left to be wrong is wrong at once

  @functools.cached_property
  def _large(self):
    """The transforms of each large view."""
    each = lambda value, i: value[i] if isinstance(value, (tuple, list)) else value
    return [self._steps(self.global_size, self.global_scale, each(self.blur_p, i),
                        each(self.solarise_p, i)) for i in range(self.global_views)]

  @functools.cached_property
  def _small(self):
    """The transforms of each small view."""
    return [self._steps(self.local_size, self.local_scale, self.local_blur_p, 0.0)
            ] * self.local_views

  def _steps(self, size, scale, blur_p, solarise_p):
    return (RandomResizedCrop(size, scale, filter=self.filter), Flip(self.flip),
            ColourJitter(*self.jitter, p=self.jitter_p), Grey(self.grey_p),
            GaussianBlur(self.blur_sigma, blur_p), Solarise(solarise_p))

  def __call__(self, record, rng):
    image = records.image(record, self.key)
    record = {**record, "global_views": np.stack([_view(image, s, rng) for s in self._large])}
    if self.local_views:
      record["local_views"] = np.stack([_view(image, s, rng) for s in self._small])
    return record


def _view(image, steps, rng):
  record = {"image": image}
  for step in steps:
    record = step(record, rng)
  return record["image"]
