"""One grey picture with one caption, over and over: a run without data.

For trying a pod's speed before the data are there, and for planning a run whose data are not within
reach. A record is a dict of

  image    JPEG bytes
  caption  list of one str
  label    int, the record's number modulo the number of classes
"""

import dataclasses
import functools

import cv2
import numpy as np

SIZE = 256  # pixels a side; most recipes resize


@dataclasses.dataclass(frozen=True)
class Synthetic:
  """Record i of `count`; all have the same picture and caption."""

  count: int
  size: int
  classes: int | None
  caption: str

  name = "synthetic"

  @property
  def digest(self):
    return f"{self.name}-{self.count}-{self.size}-{self.classes}-{self.caption}"

  def class_names(self, key):
    """("0", "1", ...) for "label", or None if it is no label or there are no classes."""
    known = key == "label" and self.classes is not None
    return tuple(str(i) for i in range(self.classes)) if known else None

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    if not 0 <= i < self.count:
      raise IndexError(i)
    return {"image": _picture(self.size), "caption": [self.caption], "label": i % (self.classes or 1)}


@functools.lru_cache(maxsize=8)
def _picture(size):
  grey = np.full((size, size, 3), 128, np.uint8)
  return cv2.imencode(".jpg", grey)[1].tobytes()


def build(count: int = 1_000_000, size: int = SIZE, classes: int | None = None,
          caption: str = "a picture"):
  """The source.

  Args:
    count: records of an epoch.
    size: pixels a side.
    classes: labels 0 to classes - 1; None for the label 0 only.
    caption: of every picture.

  Raises:
    ValueError: a number below 1.
  """
  for name, value in (("count", count), ("size", size), ("classes", classes)):
    if value is not None and value < 1:
      raise ValueError(f"{name}: must be at least 1, not {value}")
  return Synthetic(count, size, classes, caption)
