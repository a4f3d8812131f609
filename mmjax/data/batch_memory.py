"""Memory for batches, used again and again: new memory for a batch takes about as long as filling it.

A batch lies in one piece of memory, each of its arrays at a multiple of 64 bytes: so a CPU device uses it
without a copy, and others are sent from it. A piece is free for another batch once nothing refers to any of
its arrays.

  Pool        of threads in one process
  Segments    of a worker process, whose memory the process that it works for sees as well: a batch is
              handed over by name, its numbers stay where they are
"""

from collections.abc import Mapping
import dataclasses
import math
import mmap
import os
import threading
from typing import Any
import weakref

import numpy as np

_ALIGNED = 64  # bytes; what XLA:CPU wants of memory that it is to use as it is
_HEAD = 64     # bytes of a segment in front of the batch; the first is 1 while the batch is in use
CAN_SHARE = hasattr(os, "memfd_create")  # Linux


@dataclasses.dataclass(frozen=True)
class Layout:
  """Where the arrays of a batch lie: {key: (first byte, shape, dtype)}, and the bytes of all."""

  places: Mapping[str, tuple[int, tuple[int, ...], np.dtype]]
  size: int

  @classmethod
  def of(cls, specs: Mapping[str, tuple[tuple[int, ...], np.dtype]]) -> "Layout":
    """The layout of arrays of these shapes and dtypes."""
    places, end = {}, 0
    for key, (shape, dtype) in specs.items():
      places[key] = end, tuple(shape), dtype
      end += -(-math.prod(shape) * dtype.itemsize // _ALIGNED) * _ALIGNED
    return cls(places, end)

  def arrays(self, memory: np.ndarray) -> dict[str, np.ndarray]:
    """The arrays in `memory`, uint8 [size]."""
    return {key: memory[begin:begin + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
            for key, (begin, shape, dtype) in self.places.items()}


class Pool:
  """Memory of this process; any number of threads may take from it."""

  def __init__(self):
    self._free: dict[int, list[np.ndarray]] = {}

  def take(self, layout: Layout) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """(arrays to fill, what to hand on)."""
    free = self._free.setdefault(layout.size, [])
    try:
      buffer = free.pop()
    except IndexError:
      buffer = np.empty(layout.size + _ALIGNED, np.uint8)
    begin = -buffer.ctypes.data % _ALIGNED
    arrays = layout.arrays(_watched(memoryview(buffer)[begin:begin + layout.size], free.append, buffer))
    return arrays, arrays

  def open(self, handed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays of what was handed on."""
    return handed


@dataclasses.dataclass(frozen=True)
class Segment:
  """A filled segment of a worker process, by the number of its file there."""

  process: int
  file: int
  layout: Layout


class Segments:
  """Memory of a worker process that this one sees too. Each has an instance of its own: that of the worker
  takes, this one opens.

  The files have no names, so that nothing is left over, however the processes end.
  """

  def __init__(self):
    self._lock, self._made, self._opened = threading.Lock(), [], {}

  def __reduce__(self):
    return Segments, ()

  def take(self, layout: Layout) -> tuple[dict[str, np.ndarray], Segment]:
    """(arrays to fill, what to hand on)."""
    with self._lock:
      file, buffer = next((made for made in self._made if not made[1][0] and len(made[1]) == layout.size + _HEAD),
                          None) or self._make(layout.size + _HEAD)
      buffer[0] = 1
    return layout.arrays(np.frombuffer(memoryview(buffer)[_HEAD:], np.uint8)), Segment(os.getpid(), file, layout)

  def _make(self, size):
    file = os.memfd_create("mmjax-batch")
    os.ftruncate(file, size)
    self._made.append((file, mmap.mmap(file, size)))
    return self._made[-1]

  def open(self, handed: Segment) -> dict[str, np.ndarray]:
    """The arrays of what was handed on."""
    key = handed.process, handed.file
    if key not in self._opened:
      file = os.open(f"/proc/{handed.process}/fd/{handed.file}", os.O_RDWR)
      try:
        self._opened[key] = mmap.mmap(file, handed.layout.size + _HEAD)
      finally:
        os.close(file)
    buffer = self._opened[key]
    return handed.layout.arrays(_watched(memoryview(buffer)[_HEAD:], buffer.__setitem__, 0, 0))


def _watched(memory: memoryview, release, *args: Any) -> np.ndarray:
  """`memory` as uint8 [n]; calls release(*args) when neither it nor a view of it is left."""
  # NumPy's views refer to the last array, not to what lies behind it.
  array = np.frombuffer(memory, np.uint8)
  weakref.finalize(array, release, *args).atexit = False
  return array
