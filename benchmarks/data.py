"""Images a second that one core reads: decode, crop, flip, normalise. Prints a table.

  python benchmarks/data.py --seconds=3
"""

import argparse
import io
import time

import numpy as np
from PIL import Image

from mmjax.data import stream
from mmjax.data import transforms as T


class Photos:
  """Eight smooth, noisy pictures of one size, as encoded files."""

  name = "photos"
  digest = ""

  def __init__(self, height, width, form):
    y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
    self.files = []
    for i in range(8):
      noise = np.random.default_rng(i).normal(0, 8, (height, width, 3))
      image = np.stack([x, y, (x + y) / 2], axis=-1) * 200 + 25 + noise
      file = io.BytesIO()
      Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(file, form)
      self.files.append(file.getvalue())

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i):
    return {"image": self.files[i]}


def rate(records, seconds):
  """Records a second of stream.record in this one thread."""
  records.record(0)
  start, row = time.perf_counter(), 0
  while time.perf_counter() < start + seconds:
    records.record(row)
    row += 1
  return row / (time.perf_counter() - start)


def main():
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--seconds", type=float, default=3.0, help="measured for each line")
  seconds = parser.parse_args().seconds
  recipes = {
      "random resized crop": (T.RandomResizedCrop(224, filter="bicubic"), T.Flip()),
      "resize short, centre crop": (T.ResizeShort(256, "bicubic"), T.CentreCrop(224)),
      "crop, flip, RandAugment": (T.RandomResizedCrop(224), T.Flip(), T.RandAugment()),
  }
  print(f"{'stored':<16}{'to 224 x 224 by':<28}images/s per core")
  for form, height, width in (("JPEG", 480, 640), ("PNG", 480, 640)):
    for name, middle in recipes.items():
      records = stream.Stream(
          Photos(height, width, form), (T.Decode(), *middle, T.Normalise("half")))
      print(f"{form} {height}x{width:<8}{name:<28}{rate(records, seconds):>8.0f}", flush=True)
  small = stream.Stream(Photos(64, 64, "PNG"), (T.Decode(), T.Flip(), T.Normalise("half")))
  print(f"{'PNG 64x64':<16}{'nothing (stays 64 x 64)':<28}{rate(small, seconds):>8.0f}")


if __name__ == "__main__":
  main()
