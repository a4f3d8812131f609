"""Moving pixels: an image with the maps that lie on it, or all frames of a video alike.

A map holds a number or a vector for each pixel of `image`: `depth` float32 [H, W, 1] in metres, 0
where unknown; `normals` float32 [H, W, 3], unit, zero where unknown; `semantic` and `instance`
int32 [H, W], -1 where unknown (map_transforms.py decodes them). What crops, flips or resizes
`image` does the same to all maps of the record. Maps are resized by their nearest pixel: between
two surfaces there is no third depth, normal or label.
"""

import cv2
import numpy as np

from mmjax.data import records

MAPS = {"depth": 0, "normals": 0, "semantic": -1, "instance": -1}  # and their value for "unknown"


def size(record, key):
  """(height, width) of the image or of the frames of the video under `key`."""
  return _pixels(record, key).shape[-3:-1]


def move(record, key, act, resample=None, fill=0):
  """The record with its image, all frames of its video, or all views moved by `act`.

  Args:
    key: what is moved: an image [H, W, C] or frames [T, H, W, C]. With "image" the record's maps
      are moved too.
    act: (array [H, W, ...], resample, fill) -> array [h, w, ...], in which `fill` stands where it
      has no pixel.
    resample: (array, (height, width)) -> array, for images. Maps get `nearest`.
    fill: for images. Maps get their "unknown".

  Raises:
    TypeError: no decoded image or video, or a map that is not decoded.
    ValueError: a map of another size than the image.
  """
  pixels = _pixels(record, key)
  frames = [act(frame, resample, fill) for frame in (pixels if pixels.ndim == 4 else [pixels])]
  moved = {key: np.stack(frames) if pixels.ndim == 4 else frames[0]}
  if key == "image":
    for name in MAPS.keys() & record.keys():
      moved[name] = act(_map(record[name], name, pixels.shape[:2]), nearest, MAPS[name])
  return {**record, **moved}


def nearest(array, size):
  """An array [H, W, ...] resized to (height, width) by the pixel that holds each new one's
  centre."""
  rows, columns = (((np.arange(new) + 0.5) * (old / new)).astype(int)
                   for new, old in zip(size, array.shape))
  return array[rows[:, None], columns]


def mirror(array, resample=None, fill=0):
  """Left and right exchanged: an `act` of `move`. Normals need their x negated besides."""
  if array.dtype == np.uint8 and array.ndim == 3:  # a copy at once: the view costs more wherever it is read
    return cv2.flip(array, 1).reshape(array.shape)
  return array[:, ::-1]


def _pixels(record, key):
  return records.image(record, key) if key == "image" else records.pixels(record, key)


def _map(value, name, size):
  if not isinstance(value, np.ndarray) or value.ndim not in (2, 3):
    raise TypeError(f"{name!r} lies on the image and moves with it, so it must be decoded before "
                    f"(DecodeDepth, DecodeNormals, DecodeLabels); found {records.describe(value)}. "
                    "If it is not wanted, leave it out of the source's keys")
  if value.shape[:2] != size:
    raise ValueError(f"{name!r} is {list(value.shape[:2])}, but the image on which it lies is "
                     f"{list(size)}")
  return value
