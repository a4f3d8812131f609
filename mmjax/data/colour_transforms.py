"""Colour and policy augmentations of uint8 RGB images, on Pillow's enhancers and filters."""

import dataclasses

from PIL import Image, ImageEnhance, ImageFilter, ImageOps
import numpy as np

from mmjax.data import records


def _pillow(record, key):
  return _as_pillow(records.image(record, key), key)


def _strip(record, key):
  """An image, or all frames of a video above each other, for what changes each pixel alone; and the
  shape from which it came."""
  pixels = records.pixels(record, key)
  return _as_pillow(pixels.reshape(-1, *pixels.shape[-2:]), key), pixels.shape


def _as_pillow(image, key):
  if image.dtype != np.uint8 or image.shape[2] != 3:
    raise TypeError(f"{key!r} must be uint8 RGB, found {image.dtype} {list(image.shape)}")
  return Image.fromarray(np.ascontiguousarray(image))


@dataclasses.dataclass(frozen=True)
class ColourJitter:
  """With probability `p`, changes brightness, contrast, saturation and hue, in random order (as
  torchvision).

  Each factor is uniform in [max(0, 1 - x), 1 + x]; the hue turns by a uniform share in [-hue, hue]
  of the circle.
  """

  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  hue: float = 0.0
  p: float = 1.0
  key: str = "image"

  def __post_init__(self):
    for field in ("brightness", "contrast", "saturation"):
      records.require(self, field, getattr(self, field) >= 0, "expected a number >= 0")
    records.require(self, "hue", 0 <= self.hue <= 0.5, "expected a share of the circle in [0, 0.5]")
    records.require(self, "p", 0 <= self.p <= 1, "expected a probability")

  def __call__(self, record, rng):
    image, shape = _strip(record, self.key)
    if rng.random() >= self.p:
      return record
    for change in rng.permutation(["brightness", "contrast", "saturation", "hue"]):
      amount = getattr(self, change)
      if amount == 0:
        continue
      if change == "hue":
        image = _turn_hue(image, rng.uniform(-amount, amount))
      else:
        image = _ENHANCERS[change](image).enhance(rng.uniform(max(0, 1 - amount), 1 + amount))
    return {**record, self.key: np.asarray(image).reshape(shape)}


_ENHANCERS = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast,
              "saturation": ImageEnhance.Color, "sharpness": ImageEnhance.Sharpness}


def _turn_hue(image, share):
  hsv = np.array(image.convert("HSV"))
  hsv[..., 0] += np.uint8(round(share * 255) % 256)  # wraps around, as the circle does
  return Image.fromarray(hsv, "HSV").convert("RGB")


@dataclasses.dataclass(frozen=True)
class Grey:
  """With probability `p`, the luminance (ITU-R 601-2) in all three channels."""

  p: float = 0.2
  key: str = "image"

  def __post_init__(self):
    records.require(self, "p", 0 <= self.p <= 1, "expected a probability")

  def __call__(self, record, rng):
    image, shape = _strip(record, self.key)
    if rng.random() >= self.p:
      return record
    return {**record, self.key: np.asarray(image.convert("L").convert("RGB")).reshape(shape)}


@dataclasses.dataclass(frozen=True)
class GaussianBlur:
  """With probability `p`, a Gaussian blur whose standard deviation in pixels is uniform in `sigma`.

  The default range is that of SimCLR (arXiv:2002.05709, app. A), made for 224 pixels. Pillow's
  filter, which others use too: three box blurs that come close to a Gaussian.
  """

  sigma: tuple = (0.1, 2.0)
  p: float = 0.5
  key: str = "image"

  def __post_init__(self):
    good = len(self.sigma) == 2 and 0 < self.sigma[0] <= self.sigma[1]
    records.require(self, "sigma", good, "expected (low, high) with 0 < low <= high, in pixels")
    records.require(self, "p", 0 <= self.p <= 1, "expected a probability")

  def __call__(self, record, rng):
    image = _pillow(record, self.key)
    if rng.random() >= self.p:
      return record
    blurred = image.filter(ImageFilter.GaussianBlur(rng.uniform(*self.sigma)))
    return {**record, self.key: np.asarray(blurred)}


@dataclasses.dataclass(frozen=True)
class Solarise:
  """With probability `p`, inverts the levels that are at least `threshold` (BYOL,
  arXiv:2006.07733, app. B)."""

  p: float = 0.2
  threshold: int = 128
  key: str = "image"

  def __post_init__(self):
    records.require(self, "p", 0 <= self.p <= 1, "expected a probability")
    records.require(self, "threshold", 0 <= self.threshold <= 256, "expected a level in 0..256")

  def __call__(self, record, rng):
    image, shape = _strip(record, self.key)
    if rng.random() >= self.p:
      return record
    solarised = np.asarray(ImageOps.solarize(image, self.threshold))
    return {**record, self.key: solarised.reshape(shape)}


_SIGNED = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate",
           "brightness", "saturation", "contrast", "sharpness")
OPERATIONS = ("identity", *_SIGNED, "posterise", "solarise", "autocontrast", "equalise")


@dataclasses.dataclass(frozen=True)
class RandAugment:
  """`num_ops` random operations at one strength (Cubuk et al. 2020, arXiv:1909.13719), each drawn
  from OPERATIONS.

  `magnitude` is in 0..30. At 30: shear by 0.3, translate by 150/331 of the side, rotate by 30
  degrees, enhance by a factor 1 +- 0.9, posterise to 4 bits, solarise from level 0; linear in
  between and with a random sign where one makes sense. These are torchvision's ranges. What moves
  in from outside has the grey level `fill`.
  """

  num_ops: int = 2
  magnitude: float = 9
  fill: int = 128
  key: str = "image"

  def __post_init__(self):
    records.require(self, "num_ops", self.num_ops >= 0, "expected a count")
    records.require(self, "magnitude", 0 <= self.magnitude <= 30, "expected a number in 0..30")
    records.require(self, "fill", 0 <= self.fill <= 255, "expected a grey level in 0..255")

  def __call__(self, record, rng):
    image = _pillow(record, self.key)
    for _ in range(self.num_ops):
      name = OPERATIONS[rng.integers(len(OPERATIONS))]
      sign = -1 if name in _SIGNED and rng.random() < 0.5 else 1
      image = operate(image, name, sign * self.magnitude / 30, self.fill)
    return {**record, self.key: np.asarray(image)}


def operate(image, name, level, fill):
  """One operation of RandAugment on a Pillow image; `level` in [-1, 1] is the share of the full
  strength."""
  width, height = image.size
  match name:
    case "identity":
      return image
    case "shear_x":
      return _affine(image, (1, 0.3 * level, 0, 0, 1, 0), fill)
    case "shear_y":
      return _affine(image, (1, 0, 0, 0.3 * level, 1, 0), fill)
    case "translate_x":
      return _affine(image, (1, 0, 150 / 331 * width * level, 0, 1, 0), fill)
    case "translate_y":
      return _affine(image, (1, 0, 0, 0, 1, 150 / 331 * height * level), fill)
    case "rotate":
      return image.rotate(30 * level, Image.Resampling.BILINEAR, fillcolor=(fill,) * 3)
    case "brightness" | "saturation" | "contrast" | "sharpness":
      return _ENHANCERS[name](image).enhance(1 + 0.9 * level)
    case "posterise":
      return ImageOps.posterize(image, 8 - round(4 * level))
    case "solarise":
      return ImageOps.solarize(image, 255 * (1 - level))
    case "autocontrast":
      return ImageOps.autocontrast(image)
    case "equalise":
      return ImageOps.equalize(image)
  raise ValueError(f"no operation {name!r}")


def _affine(image, coefficients, fill):
  """Output pixel (x, y) is the input at (a x + b y + c, d x + e y + f)."""
  return image.transform(image.size, Image.Transform.AFFINE, coefficients,
                         Image.Resampling.BILINEAR, fillcolor=(fill,) * 3)
