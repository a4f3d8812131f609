"""Image transforms: decode, resize, crop, flip, pad, normalise. Images are uint8 [H, W, C] until
Normalise. With `key="video"` they act on all frames [T, H, W, C] alike; what moves the pixels of
`image` moves the maps on it too (geometry.py).

A transform is a frozen dataclass, called as transform(record, rng) -> record; `rng` is a numpy
Generator of this transform and this row alone. Sizes are one int (a square) or (height, width).
"""

import dataclasses
import functools
import io
import math

from PIL import Image, ImageOps
import cv2
import numpy as np
import simplejpeg

from mmjax.data import geometry
from mmjax.data import records
from mmjax.data import resampling

MOST_PIXELS = 178_956_970  # beyond twice `Image.MAX_IMAGE_PIXELS` Pillow refuses, beyond once it warns
_JPEG = b"\xff\xd8"
_ORIENTATION = 274  # tag of EXIF

# Mean and standard deviation of pixels in [0, 1]: published with OpenAI's CLIP, and with ImageNet
# classifiers.
PRESETS = {
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


def _resampling(filter_name):
  """The `resample` of `geometry.move` for images."""
  return lambda image, size: resampling.resize(image, size, filter_name)


def _resized(record, key, size, filter_name):
  return geometry.move(record, key, lambda array, resample, fill: resample(array, size),
                       _resampling(filter_name))


def height_width(size):
  """(height, width) of a size that is one int or both."""
  return (size, size) if isinstance(size, int) else tuple(size)


def require_size(transform, field="size"):
  """Raises ValueError unless `field` is a positive int or two of them."""
  size = getattr(transform, field)
  pair = (size, size) if isinstance(size, int) else size
  good = (isinstance(pair, (tuple, list)) and len(pair) == 2
          and all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in pair))
  records.require(transform, field, good, "expected a positive int or (height, width)")


def require_filter(transform):
  """Raises ValueError unless the transform's `filter` is one of `resampling.FILTERS`."""
  records.require(transform, "filter", transform.filter in resampling.FILTERS,
                  f"expected one of {', '.join(resampling.FILTERS)}")


def require_range(transform, field):
  """Raises ValueError unless `field` is (low, high) with 0 < low <= high."""
  value = getattr(transform, field)
  records.require(transform, field, len(value) == 2 and 0 < value[0] <= value[1],
                  "expected (low, high) with 0 < low <= high")


@dataclasses.dataclass(frozen=True)
class Decode:
  """Encoded bytes to an array [H, W, channels]: JPEG, PNG and whatever else Pillow opens.

  A list of files, the frames of a video, becomes [T, H, W, channels]. Arrays uint8 [H, W],
  [H, W, C] and [T, H, W, C] pass through, their channels made right.
  EXIF orientation is applied; palettes, CMYK and grey become RGB (or grey for channels=1). 16-bit
  grey images scale to 8 bits for dtype "uint8" and stay as stored for "uint16" (depth maps;
  channels=1). Of an animation the first picture counts. Pixels equal Pillow's, and so those of
  whoever decodes with it.

  Attributes:
    alpha: "drop" leaves transparency out, "white" puts the image on a white ground.
    max_pixels: a file that claims more is a bad record, before memory is taken for them.
  """

  key: str = "image"
  channels: int = 3
  dtype: str = "uint8"
  alpha: str = "drop"
  max_pixels: int = MOST_PIXELS // 2

  def __post_init__(self):
    records.require(self, "max_pixels", 0 < self.max_pixels <= MOST_PIXELS,
                    f"expected a count of at most {MOST_PIXELS:,}, Pillow's own limit")
    records.require(self, "channels", self.channels in (1, 3), "expected 1 or 3")
    records.require(self, "dtype", self.dtype in ("uint8", "uint16"),
                    "expected 'uint8' or 'uint16'")
    records.require(self, "dtype", self.dtype == "uint8" or self.channels == 1,
                    "'uint16' needs channels = 1")
    records.require(self, "alpha", self.alpha in ("drop", "white"), "expected 'drop' or 'white'")

  def __call__(self, record, rng):
    value = records.get(record, self.key)
    if not _is_video(value):
      return {**record, self.key: self._decode(value)}
    frames = [self._decode(frame) for frame in value]
    if len({frame.shape for frame in frames}) != 1:
      raise ValueError(f"the {len(frames)} frames of {self.key!r} are of several sizes or none: "
                       f"{sorted({frame.shape[:2] for frame in frames})}")
    return {**record, self.key: np.stack(frames)}

  def _decode(self, value):
    if isinstance(value, np.ndarray) and value.ndim in (2, 3):   # decoded already
      return self._from_pillow(_as_pillow(value))
    data = records.data({self.key: value}, self.key)
    if self.dtype == "uint8" and data.startswith(_JPEG):
      height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
      self._check_size(height, width)
      if colours not in ("CMYK", "YCCK"):
        image = simplejpeg.decode_jpeg(data, "RGB" if self.channels == 3 else "GRAY", fastdct=False,
                                       fastupsample=False)
        return _upright(image, data)
    try:
      with records.open_picture(data) as opened:
        self._check_size(opened.height, opened.width)
        return self._from_pillow(ImageOps.exif_transpose(opened))
    except Image.DecompressionBombError as error:
      raise ValueError(f"{error} (max_pixels = {self.max_pixels:,})") from error

  def _check_size(self, height, width):
    if height * width > self.max_pixels:
      raise ValueError(f"the file claims {height} x {width}, {height * width / 1e6:g} million pixels, more "
                       f"than max_pixels = {self.max_pixels:,}")

  def _from_pillow(self, opened):
    if opened.mode == "F":
      raise ValueError("a picture of floats: what is black and what is white is not known")
    if opened.mode.startswith("I"):                              # 16-bit grey
      image = np.asarray(opened)[..., None]
      if image.size and not 0 <= image.min() <= image.max() <= 65535:
        raise ValueError(f"expected 16 bits, found values from {image.min()} to {image.max()}")
      if self.dtype == "uint16":
        return image.astype(np.uint16)
      grey = np.rint(image / 257).astype(np.uint8)               # 65535 -> 255
      return np.repeat(grey, self.channels, axis=-1)
    if self.dtype == "uint16":
      raise ValueError(f"expected a 16-bit grey image, found mode {opened.mode}")
    if opened.mode == "P" or "transparency" in opened.info:
      opened = opened.convert("RGBA")                            # a palette may hold transparency
    if self.alpha == "white" and "A" in opened.getbands():
      white = Image.new("RGBA", opened.size, (255, 255, 255, 255))
      opened = Image.alpha_composite(white, opened.convert("RGBA"))
    image = np.asarray(opened.convert("RGB" if self.channels == 3 else "L"))
    return image.reshape(*image.shape[:2], self.channels)


def _is_video(value):
  """A list of frames, encoded or not."""
  if isinstance(value, np.ndarray):
    return value.ndim == 4 or (value.ndim == 1 and value.dtype == object)
  return isinstance(value, (list, tuple))


def _as_pillow(array):
  """An array [H, W] or [H, W, C] of 8 or 16 bits as Pillow's image."""
  if array.dtype not in (np.uint8, np.uint16):
    raise TypeError(f"pixels of a decoded image must be uint8 (0 to 255), found {array.dtype}")
  return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def _upright(image, data):
  """The pixels of a JPEG, turned and mirrored as its EXIF orientation says."""
  if data.find(b"Exif\0\0", 0, 65536) < 0:
    return image
  try:
    with Image.open(io.BytesIO(data)) as opened:
      orientation = opened.getexif().get(_ORIENTATION, 1)
  except Exception:  # a damaged EXIF block says nothing of the pixels, which have been read
    return image
  # Orientation 2 to 8 by row and column of the first pixel (TIFF 6.0, p. 36).
  turns = {2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
           5: lambda x: x.swapaxes(0, 1), 6: lambda x: x.swapaxes(0, 1)[:, ::-1],
           7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: lambda x: x.swapaxes(0, 1)[::-1]}
  return np.ascontiguousarray(turns[orientation](image)) if orientation in turns else image


@dataclasses.dataclass(frozen=True)
class Resize:
  """Resizes to `size`, antialiased, without regard to the aspect ratio."""

  size: int | tuple
  filter: str = "bilinear"
  key: str = "image"

  def __post_init__(self):
    require_size(self)
    require_filter(self)

  def __call__(self, record, rng):
    return _resized(record, self.key, height_width(self.size), self.filter)


@dataclasses.dataclass(frozen=True)
class ResizeShort:
  """Resizes so that the shorter side is `size` pixels; the longer is rounded down, as torchvision
  does."""

  size: int
  filter: str = "bilinear"
  key: str = "image"

  def __post_init__(self):
    require_size(self)
    records.require(self, "size", isinstance(self.size, int), "expected one int, the shorter side")
    require_filter(self)

  def __call__(self, record, rng):
    height, width = geometry.size(record, self.key)
    short = min(height, width)
    size = (self.size * height // short, self.size * width // short)
    return _resized(record, self.key, size, self.filter)


@dataclasses.dataclass(frozen=True)
class CentreCrop:
  """The middle `size` pixels. An image smaller than that is a bad record.

  Attributes:
    odd: where the crop begins if an odd number of pixels is cut off: "floor" of the half, as
      big_vision and Hugging Face do, or "round" of it to the even number, as torchvision does.
    pad: fill what is missing of a smaller image with zeros (black) instead, on all sides.
  """

  size: int | tuple
  odd: str = "floor"
  pad: bool = False
  key: str = "image"

  def __post_init__(self):
    require_size(self)
    records.require(self, "odd", self.odd in ("floor", "round"), "expected 'floor' or 'round'")

  def __call__(self, record, rng):
    return geometry.move(record, self.key, self._crop)

  def _crop(self, image, resample, fill):
    height, width = height_width(self.size)
    short = max(0, height - image.shape[0]), max(0, width - image.shape[1])
    if max(short) and not self.pad:
      raise ValueError(f"the image {list(image.shape[:2])} is smaller than the crop "
                       f"{[height, width]}")
    # Of an odd number of missing pixels one more goes to the top and left, as in Hugging Face.
    margins = [((n + 1) // 2, n // 2) for n in short] + [(0, 0)] * (image.ndim - 2)
    image = np.pad(image, margins, constant_values=fill)
    top, left = self._begin(image.shape[0] - height), self._begin(image.shape[1] - width)
    return image[top:top + height, left:left + width]

  def _begin(self, cut):
    return cut // 2 if self.odd == "floor" else round(cut / 2)


@dataclasses.dataclass(frozen=True)
class RandomResizedCrop:
  """A random part of the image, resized (Szegedy et al. 2015, "Going Deeper with Convolutions",
  sec. 6).

  The area is uniform in `scale` of the image's, the aspect ratio (width / height) log-uniform in
  `ratio`. If ten draws do not fit, the largest central crop with an allowed ratio is taken, as
  torchvision does. With size None the part stays as large as it is, for `Patchify`.
  """

  size: int | tuple | None
  scale: tuple = (0.08, 1.0)
  ratio: tuple = (3 / 4, 4 / 3)
  filter: str = "bilinear"
  key: str = "image"

  def __post_init__(self):
    if self.size is not None:
      require_size(self)
    require_filter(self)
    require_range(self, "scale")
    require_range(self, "ratio")
    records.require(self, "scale", self.scale[1] <= 1, "a crop is no larger than its image")

  def box(self, height, width, rng):
    """(top, left, height, width) of the crop of an image of this size."""
    for _ in range(10):
      area = height * width * rng.uniform(*self.scale)
      ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
      w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
      if 0 < w <= width and 0 < h <= height:
        return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    ratio = min(max(width / height, self.ratio[0]), self.ratio[1])
    h, w = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
    return (height - h) // 2, (width - w) // 2, h, w

  def __call__(self, record, rng):
    top, left, height, width = self.box(*geometry.size(record, self.key), rng)

    def crop(image, resample, fill):
      part = image[top:top + height, left:left + width]
      return np.ascontiguousarray(part) if self.size is None else resample(part, height_width(self.size))
    return geometry.move(record, self.key, crop, _resampling(self.filter))


@dataclasses.dataclass(frozen=True)
class Flip:
  """Mirrors left and right with probability `p`; normals on the image have their x negated. Not for
  captions or motions that are called left or right."""

  p: float = 0.5
  key: str = "image"

  def __post_init__(self):
    records.require(self, "p", 0 <= self.p <= 1, "expected a probability")

  def __call__(self, record, rng):
    geometry.size(record, self.key)  # what is no image is refused whatever is drawn
    if rng.random() >= self.p:
      return record
    record = geometry.move(record, self.key, geometry.mirror)
    if self.key == "image" and "normals" in record:
      record["normals"] = record["normals"] * np.array([-1, 1, 1], record["normals"].dtype)
    return record


@dataclasses.dataclass(frozen=True)
class Letterbox:
  """Resizes to fit inside `size` with the aspect ratio kept, centred, the rest filled.

  `fill` is a grey level in 0..255. With `mask` a bool [H, W] comes under that key: True where the
  image is.
  """

  size: int | tuple
  filter: str = "bilinear"
  fill: int = 0
  mask: str | None = None
  key: str = "image"

  def __post_init__(self):
    require_size(self)
    require_filter(self)
    records.require(self, "fill", 0 <= self.fill <= 255, "expected a grey level in 0..255")

  def __call__(self, record, rng):
    height, width = height_width(self.size)
    old_height, old_width = geometry.size(record, self.key)
    scale = min(height / old_height, width / old_width)
    h = min(height, max(1, round(old_height * scale)))
    w = min(width, max(1, round(old_width * scale)))
    top, left = (height - h) // 2, (width - w) // 2
    inside = (slice(top, top + h), slice(left, left + w))

    def fit(image, resample, fill):
      padded = np.full((height, width, *image.shape[2:]), fill, image.dtype)
      padded[inside] = resample(image, (h, w))
      return padded
    record = geometry.move(record, self.key, fit, _resampling(self.filter), self.fill)
    if self.mask:
      record[self.mask] = np.zeros((height, width), bool)
      record[self.mask][inside] = True
    return record


@dataclasses.dataclass(frozen=True)
class ToFloat:
  """float32 in [0, 1]: integers divided by their dtype's largest value. Before a Resize it keeps
  that from rounding to whole levels."""

  key: str = "image"

  def __call__(self, record, rng):
    image = records.pixels(record, self.key)
    top = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1
    return {**record, self.key: image.astype(np.float32) / np.float32(top)}


@dataclasses.dataclass(frozen=True)
class Normalise:
  """float32 (x - mean) / std with x in [0, 1]: integer images are divided by their dtype's largest
  value.

  Give `preset` ("clip", "imagenet", or "half", which maps to [-1, 1]), or both `mean` and `std`,
  one number a channel. Videos [T, H, W, C] and views [V, H, W, C] are normalised as images are;
  `key` may name several.
  """

  preset: str | None = None
  mean: tuple | None = None
  std: tuple | None = None
  key: str | tuple = "image"

  def __post_init__(self):
    if self.preset is not None:
      records.require(self, "preset", self.preset in PRESETS,
                      f"expected one of {', '.join(PRESETS)}")
      records.require(self, "mean", self.mean is None and self.std is None,
                      "give a preset or mean and std, not both")
    else:
      records.require(self, "mean", self.mean is not None, "give a preset, or mean and std")
      good = self.std is not None and len(self.std) == len(self.mean) and min(self.std) > 0
      records.require(self, "std", good, "expected one positive number for each of mean")

  @property
  def keys(self):
    return (self.key,) if isinstance(self.key, str) else tuple(self.key)

  def __call__(self, record, rng):
    return {**record, **{key: self._normalised(records.pixels(record, key)) for key in self.keys}}

  def into(self, record, places):
    """The same, each key's array in `places` where it has one of that shape. A key that the record has not
    kept is left out."""
    return {**record, **{key: self._normalised(records.pixels(record, key), places.get(key))
                         for key in self.keys if key in record}}

  def _normalised(self, image, place=None):
    mean, std = PRESETS[self.preset] if self.preset else (self.mean, self.std)
    if image.shape[-1] != len(mean):
      raise ValueError(f"{len(mean)} means for an image of {image.shape[-1]} channels")
    if image.dtype == np.uint8 and image.shape[-1] == 3:
      fits = place is not None and (place.shape, place.dtype) == (image.shape, np.float32)
      place = place if fits else np.empty(image.shape, np.float32)
      flat = (-1, image.shape[-2], 3)
      cv2.LUT(image.reshape(flat), _levels(tuple(mean), tuple(std)), dst=place.reshape(flat))
      return place
    top = np.iinfo(image.dtype).max if image.dtype.kind in "iu" else 1
    scale, shift = _scale_and_shift(mean, std, top)
    return image.astype(np.float32) * scale + shift


def _scale_and_shift(mean, std, top):
  """float32 [C] each, such that x * scale + shift is (x / top - mean) / std."""
  return (1 / (top * np.array(std))).astype(np.float32), (-np.array(mean) / np.array(std)).astype(np.float32)


@functools.lru_cache(maxsize=64)
def _levels(mean, std):
  """What each of 256 levels becomes in each of three channels, float32 [256, 1, 3]: the same numbers by a
  table, which is faster."""
  scale, shift = _scale_and_shift(mean, std, 255)
  return np.arange(256, dtype=np.float32)[:, None, None] * scale + shift
