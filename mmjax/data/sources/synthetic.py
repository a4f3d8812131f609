"""One grey picture with one caption, over and over: a run without data.

For trying a pod's speed before the data are there, and for planning a run whose data are not within
reach. A record is a dict of those of these keys that were asked for:

  image      JPEG bytes
  caption    list of one str
  label      int, the record's number modulo the number of classes
  depth      16-bit PNG bytes: two metres everywhere, in millimetres
  normals    8-bit RGB PNG bytes: everything faces the camera
  semantic, instance
             8-bit PNG bytes: one label everywhere
  video      list of JPEG bytes, one a frame
"""

import dataclasses
import difflib
import functools

import cv2
import numpy as np

SIZE = 256  # pixels a side; most recipes resize
KEYS = ("image", "caption", "label")  # by default
ALL_KEYS = KEYS + ("depth", "normals", "semantic", "instance", "video")


@dataclasses.dataclass(frozen=True)
class Synthetic:
  """Record i of `count`; all have the same picture and caption."""

  count: int
  size: int
  classes: int | None
  caption: str
  keys: tuple = KEYS
  frames: int = 8

  name = "synthetic"

  @property
  def digest(self):
    return (f"{self.name}-{self.count}-{self.size}-{self.classes}-{self.caption}"
            f"-{self.keys}-{self.frames}")

  def class_names(self, key):
    """("0", "1", ...) for "label", or None if it is no label or there are no classes."""
    known = key == "label" and self.classes is not None
    return tuple(str(i) for i in range(self.classes)) if known else None

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    if not 0 <= i < self.count:
      raise IndexError(i)
    return {key: self._value(key, i) for key in self.keys}

  def _value(self, key, i):
    if key == "caption":
      return [self.caption]
    if key == "label":
      return i % (self.classes or 1)
    return [_encoded("image", self.size)] * self.frames if key == "video" else _encoded(
        key, self.size)


@functools.lru_cache(maxsize=32)
def _encoded(key, size):
  """The file of a picture or of a map on it."""
  if key == "image":
    return cv2.imencode(".jpg", np.full((size, size, 3), 128, np.uint8))[1].tobytes()
  pixels = {"depth": np.full((size, size), 2000, np.uint16),
            "normals": np.full((size, size, 3), (255, 128, 128), np.uint8),  # OpenCV: z, y, x
            "semantic": np.zeros((size, size), np.uint8),
            "instance": np.zeros((size, size), np.uint8)}[key]
  return cv2.imencode(".png", pixels)[1].tobytes()


def build(count: int = 1_000_000, size: int = SIZE, classes: int | None = None,
          caption: str = "a picture", keys: tuple = KEYS, frames: int = 8):
  """The source.

  Args:
    count: records of an epoch.
    size: pixels a side.
    classes: labels 0 to classes - 1; None for the label 0 only.
    caption: of every picture.
    keys: what a record holds, of ALL_KEYS.
    frames: of a video.

  Raises:
    ValueError: a number below 1, or an unknown key.
  """
  for name, value in (("count", count), ("size", size), ("classes", classes), ("frames", frames)):
    if value is not None and value < 1:
      raise ValueError(f"{name}: must be at least 1, not {value}")
  for key in keys:
    if key not in ALL_KEYS:
      near = difflib.get_close_matches(str(key), ALL_KEYS, n=1, cutoff=0)[0]
      raise ValueError(f"keys: there is no {key!r}; the nearest is {near!r}")
  return Synthetic(count, size, classes, caption, tuple(keys), frames)
