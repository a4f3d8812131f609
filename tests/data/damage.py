"""Damaged and unusual records, made from a seed: what a crawl brings along.

`files(count, seed)` are picture files that have been cut, overwritten, emptied, or claim what they do
not hold. `unusual()` are good ones of rare forms. `captions()` are texts that tokenizers dislike.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

FORMS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")


def _picture(rng, form, size=None):
  height, width = size or rng.integers(8, 48, 2)
  pixels = rng.integers(0, 255, (int(height), int(width), 3)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form)
  return file.getvalue()


def _cut(data, rng):
  return data[:rng.integers(1, len(data))]


def _overwritten(data, rng):
  data = bytearray(data)
  for at in rng.integers(0, len(data), max(1, len(data) // 50)):
    data[at] = rng.integers(256)
  return bytes(data)


def _headless(data, rng):
  return rng.bytes(int(rng.integers(2, 16))) + data[16:]


def _empty(data, rng):
  return b""


def _noise(data, rng):
  return rng.bytes(len(data))


def _page(data, rng):
  return b"<html><body>403 Forbidden</body></html>"


def _hole(data, rng):
  """Zeros, as a file system leaves where a block was never written."""
  at = int(rng.integers(0, len(data)))
  return data[:at] + bytes(len(data) - at)


def _doubled(data, rng):
  return data + _overwritten(data, rng)


def _bomb(data, rng):
  """A few bytes that claim a picture of gigapixels."""
  side = int(rng.integers(40_000, 65_000))
  if rng.random() < 0.5:
    return png_of(side, side)
  jpeg = bytearray(_picture(rng, "JPEG"))
  at = jpeg.index(b"\xff\xc0") + 5  # height and width in the frame's header
  jpeg[at:at + 4] = struct.pack(">HH", side, side)
  return bytes(jpeg)


MUTATIONS = (_cut, _overwritten, _headless, _empty, _noise, _page, _hole, _doubled, _bomb)


def png_of(width, height, rows=1):
  """A PNG file of that size with the data of `rows` black rows."""
  def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
  head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
          + chunk(b"IDAT", zlib.compress(bytes(rows * (1 + 3 * width)))) + chunk(b"IEND", b""))


def files(count=300, seed=0):
  """(name, bytes) of damaged files, the same for the same seed."""
  for i in range(count):
    rng = np.random.default_rng((seed, i))
    mutate, form = MUTATIONS[i % len(MUTATIONS)], FORMS[(i // len(MUTATIONS)) % len(FORMS)]
    yield f"{i:03}{mutate.__name__}_{form}", mutate(_picture(rng, form), rng)


def _saved(image, form, **settings):
  file = io.BytesIO()
  image.save(file, form, **settings)
  return file.getvalue()


def unusual():
  """{name: bytes} of good pictures of 12 rows and 16 columns, when turned the right way up."""
  rng = np.random.default_rng(7)
  pixels = rng.integers(0, 255, (12, 16, 3)).astype(np.uint8)
  rgb, found = Image.fromarray(pixels), {}
  grey16 = rng.integers(0, 65535, (12, 16)).astype(np.uint16)
  found["cmyk.jpg"] = _saved(rgb.convert("CMYK"), "JPEG")
  found["grey.jpg"] = _saved(rgb.convert("L"), "JPEG")
  found["progressive.jpg"] = _saved(rgb, "JPEG", progressive=True)
  found["one_bit.png"] = _saved(rgb.convert("1"), "PNG")
  found["palette.png"] = _saved(rgb.quantize(16), "PNG")
  found["palette_transparent.png"] = _saved(rgb.quantize(16), "PNG", transparency=3)
  found["alpha.png"] = _saved(rgb.convert("RGBA"), "PNG")
  found["grey_alpha.png"] = _saved(rgb.convert("LA"), "PNG")
  found["grey16.png"] = _saved(Image.fromarray(grey16), "PNG")
  found["grey16.tif"] = _saved(Image.fromarray(grey16), "TIFF")
  found["cmyk.tif"] = _saved(rgb.convert("CMYK"), "TIFF")
  more = [Image.fromarray(255 - pixels)]
  for form in ("GIF", "WEBP", "PNG", "TIFF"):
    found[f"animated.{form.lower()}"] = _saved(rgb, form, save_all=True, append_images=more)
  for orientation in range(1, 9):
    exif = Image.Exif()
    exif[274] = orientation
    stored = rgb.transpose(Image.Transpose.ROTATE_90) if orientation > 4 else rgb
    found[f"orientation_{orientation}.jpg"] = _saved(stored, "JPEG", exif=exif)
  return found


def captions():
  """Texts that are rare, but no fault of the record."""
  return ("a\x00b", "\x1b[31mred\x07", "e\u0301" * 40, "\u202eabc",
          "👩‍👩‍👧‍👦" * 30, "\ufeffx", "﷽" * 50, " \t\r\n x",
          "word " * 5000, "&amp;&lt;b&gt;", "\U0010ffff", "日本語の字幕")
