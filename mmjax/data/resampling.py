"""Resizing of images by filters, most of them antialiased: they widen with the reduction, as Pillow's do.

  bilinear, bicubic, lanczos      Pillow's filters with vector instructions, which are faster. Bilinear is at most
                                  1 of 255 levels from Pillow; the others at most 2, but for pixels where they
                                  overshoot white or black
  nearest, area, hamming,
  pillow_*                        Pillow's own pixels, such as published image processors give
  linear                          OpenCV's, of the four nearest pixels and so not antialiased; for pictures that
                                  are hardly made smaller
"""

import functools
import threading

import cv2
import cykooz_resizer as simd
import numpy as np
from PIL import Image

cv2.setNumThreads(0)  # the loader has threads of its own

_OF_THREAD = threading.local()  # resizers keep memory between calls, and serve one thread
_LAYOUTS = {1: simd.PixelType.U8, 3: simd.PixelType.U8x3}


def _by_pillow(image, size, method):
  height, width = size
  if image.dtype == np.uint8 and image.shape[2] in _LAYOUTS:
    opened = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
    return np.asarray(opened.resize((width, height), method)).reshape(height, width, -1)
  channels = [np.asarray(Image.fromarray(np.ascontiguousarray(image[..., c], np.float32))
                         .resize((width, height), method)) for c in range(image.shape[2])]
  resized = np.stack(channels, axis=-1)
  if image.dtype.kind in "iu":
    limits = np.iinfo(image.dtype)
    resized = np.clip(np.rint(resized), limits.min, limits.max)
  return resized.astype(image.dtype)


def _by_simd(image, size, options, method):
  if image.dtype != np.uint8 or image.shape[2] not in _LAYOUTS:
    return _by_pillow(image, size, method)
  (height, width), layout = size, _LAYOUTS[image.shape[2]]
  if not hasattr(_OF_THREAD, "resizer"):
    _OF_THREAD.resizer = simd.Resizer()
  pixels = simd.ImageData(image.shape[1], image.shape[0], layout, image.tobytes())
  # First along the side that shrinks more, as Pillow mostly does: the order decides where overshoots are clipped.
  rows_first = height * image.shape[1] < width * image.shape[0] and height < image.shape[0]
  for w, h in (image.shape[1], height) if rows_first else (width, image.shape[0]), (width, height):
    if (w, h) != (pixels.width, pixels.height):
      target = simd.ImageData(w, h, layout)
      _OF_THREAD.resizer.resize(pixels, target, options)
      pixels = target
  return np.frombuffer(pixels.get_buffer(), np.uint8).reshape(height, width, -1)


def _by_opencv(image, size):
  height, width = size
  numbers = image if image.dtype in (np.uint8, np.uint16, np.float32) else image.astype(np.float32)
  resized = cv2.resize(numbers, (width, height), interpolation=cv2.INTER_LINEAR)
  return resized.reshape(height, width, -1).astype(image.dtype)


_PILLOW = {name: functools.partial(_by_pillow, method=method) for name, method in {
    "nearest": Image.Resampling.NEAREST,
    "area": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "hamming": Image.Resampling.HAMMING,
}.items()}
_SIMD = {name: functools.partial(
    _by_simd, options=simd.ResizeOptions(simd.ResizeAlg.convolution(kind)), method=_PILLOW[name].keywords["method"])
         for name, kind in {"bilinear": simd.FilterType.bilinear,
                            "bicubic": simd.FilterType.catmull_rom,  # Keys's cubic with a = -1/2, as Pillow's
                            "lanczos": simd.FilterType.lanczos3}.items()}

PILLOW = "pillow_"
MOST_ENLARGED = 89_478_485  # pixels, as many as Decode lets in by default
FILTERS = {**_PILLOW, **_SIMD, "linear": _by_opencv,
           **{f"{PILLOW}{name}": filter_ for name, filter_ in _PILLOW.items()}}


def resize(image, size, filter_name):
  """An array [H, W, C] of any numeric dtype, resized to (height, width) by one of `FILTERS`.

  The fast filters are for uint8 of one or three channels; other arrays are resized by Pillow, channel by
  channel in float32.

  Raises:
    ValueError: the result is larger than the image and than `MOST_ENLARGED` pixels. A picture of a single row
      whose short side is to be 224 would take gigabytes.
  """
  if image.shape[:2] == tuple(size):
    return image
  (old_height, old_width), (height, width) = image.shape[:2], size
  if height * width > max(MOST_ENLARGED, old_height * old_width):
    raise ValueError(f"the picture of {old_height} x {old_width} is too thin: resized to {height} x {width} it has "
                     f"{height * width / 1e6:,.0f} million pixels, more than {MOST_ENLARGED:,}")
  return FILTERS[filter_name](image, size)
