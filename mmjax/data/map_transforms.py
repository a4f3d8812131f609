"""Decoding of what is known for each pixel: depth, surface normals, labels. They lie on `image` and
move with it (geometry.py), so decode them before the first transform that crops, flips or resizes.
"""

import dataclasses

import numpy as np

from mmjax.data import image_transforms
from mmjax.data import records

SHORTEST_NORMAL = 0.5  # a stored normal of less than this length, once unit, says "unknown"


@dataclasses.dataclass(frozen=True)
class DecodeDepth:
  """Depth to float32 [H, W, 1] in metres, 0 where it is unknown.

  From an encoded 16-bit grey image, whose 0 is "unknown"; or an array [H, W] or [H, W, 1], of
  uint16 like that image or of floats in metres, of which those that are not finite or not positive
  are unknown.

  Attributes:
    per_metre: stored values of one metre; 1000 is millimetres (scenes, NYUv2), 256 is KITTI's.
  """

  per_metre: float = 1000.0
  key: str = "depth"

  def __post_init__(self):
    records.require(self, "per_metre", self.per_metre > 0, "expected a positive number")

  def __call__(self, record, rng):
    value = records.get(record, self.key)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
      depth = _channels(value, 1, self.key).astype(np.float32)
      return {**record, self.key: np.where(np.isfinite(depth) & (depth > 0), depth, 0)}
    decode = image_transforms.Decode(self.key, channels=1, dtype="uint16")
    stored = decode(record, rng)[self.key]
    return {**record, self.key: stored.astype(np.float32) / np.float32(self.per_metre)}


@dataclasses.dataclass(frozen=True)
class DecodeNormals:
  """Surface normals to float32 [H, W, 3] of unit length, zero where they are unknown.

  From an encoded RGB image of round((n + 1) * 127.5), whose middle grey is "unknown"; or an array
  [H, W, 3], of uint8 like that image or of floats. Axes are the camera's: x right, y up, z towards
  the camera; a flip negates x.
  """

  key: str = "normals"

  def __call__(self, record, rng):
    value = records.get(record, self.key)
    if isinstance(value, np.ndarray) and value.dtype.kind == "f":
      normals = _channels(value, 3, self.key).astype(np.float32)
    else:
      stored = image_transforms.Decode(self.key)(record, rng)[self.key]
      normals = stored.astype(np.float32) / np.float32(127.5) - 1
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    known = np.isfinite(length) & (length >= SHORTEST_NORMAL)
    unit = np.where(known, normals, 0) / np.where(known, length, 1)
    return {**record, self.key: unit.astype(np.float32)}


@dataclasses.dataclass(frozen=True)
class DecodeLabels:
  """Labels of pixels to int32 [H, W], -1 where they are unknown.

  From an encoded image of 8 or 16 bits, grey or with a palette, whose numbers (not colours) are the
  labels; or an integer array [H, W] or [H, W, 1].

  Attributes:
    unknown: the stored number for "unknown", often 255 or 0; None if every number is a label.
  """

  key: str = "semantic"
  unknown: int | None = None

  def __call__(self, record, rng):
    value = records.get(record, self.key)
    if not isinstance(value, np.ndarray) or value.ndim == 1:  # a file, perhaps as a vector of bytes
      with records.open_picture(records.data(record, self.key)) as opened:
        if opened.mode not in ("L", "P", "1") and not opened.mode.startswith("I"):
          raise ValueError(f"{self.key!r} must be grey or have a palette, so that its numbers are "
                           f"labels; found mode {opened.mode}")
        value = np.asarray(opened)
    if value.dtype.kind not in "iub":
      raise TypeError(f"{self.key!r} must hold integers, found {records.describe(value)}")
    labels = _channels(value, 1, self.key)[..., 0].astype(np.int32)
    return {**record, self.key: labels if self.unknown is None else
            np.where(labels == self.unknown, np.int32(-1), labels)}


def _channels(array, channels, key):
  """An array [H, W, channels], of [H, W] where it is one channel."""
  array = array[..., None] if array.ndim == 2 and channels == 1 else array
  if array.ndim != 3 or array.shape[2] != channels or not array.size:
    raise TypeError(f"{key!r} must be [H, W, {channels}], found {records.describe(array)}")
  return array
