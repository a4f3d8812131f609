"""The form in which a kept record is stored."""

import datetime
import decimal
import io
import json
import uuid
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data import image_transforms
from mmjax.data import resampling
from mmjax.data.build import captions
from mmjax.data.build.settings import Settings
from mmjax.data.sources import examples

_PLAIN_AS_TEXT = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, uuid.UUID, np.datetime64)
_JPEG_SIDE = 65_500  # pixels; libjpeg writes no longer ones
_decode = image_transforms.Decode()


def stored(record: dict[str, Any], index: int, settings: Settings) -> bytes:
  """A record as a `tf.train.Example`: a function of the record, its place and the settings alone.

  The captions are those that pass the filters; arrays uint8 [H, W, C] are stored as PNG, dates as ISO text;
  a list or an object of another column is stored as JSON text, None is left out.

  Raises:
    TypeError, ValueError: a value has no such form; names the column.
  """
  image = record.get("image")
  if settings.resize and isinstance(image, (bytes, np.ndarray)):
    record = {**record, "image": smaller(image, settings)}
  return _encoded(record, index, settings)


def check(record: dict[str, Any], image: np.ndarray | None, index: int, settings: Settings) -> None:
  """Raises what `stored` would, without the work on the picture.

  Args:
    image: the record's, decoded: [H, W, 3], or None if it has none.
  """
  if settings.resize and image is not None:
    _size(image, settings)
  file = record.get("image")
  if isinstance(file, bytes):
    record = {**record, "image": b""}
  elif isinstance(file, np.ndarray) and file.ndim in (2, 3):
    record = {**record, "image": file[:1, :1]}
  _encoded(record, index, settings)


def _encoded(record, index, settings):
  record = dict(record)
  if settings.captions or settings.filters_captions:
    record["caption"] = captions.kept(record, index, settings)
    for column in settings.caption_weights:
      if column != "caption":
        record.pop(column, None)
  elif record.get("caption") is not None:
    record["caption"] = captions.texts(record["caption"])
  if isinstance(record.get("image"), np.ndarray):
    record["image"] = _file(record["image"])
  return examples.encode({name: _storable(value) for name, value in record.items() if value is not None})


def smaller(file: Any, settings: Settings) -> Any:
  """A picture whose shorter side is longer than `resize` made that small, as JPEG; others as they are."""
  image = _decode({"image": file}, None)["image"]
  size = _size(image, settings)
  if size is None:
    return file
  out = io.BytesIO()
  Image.fromarray(resampling.resize(image, size, "lanczos")).save(
      out, "JPEG", quality=settings.quality)
  return out.getvalue()


def _size(image, settings):
  """(height, width) that a picture is made to, None if it is small enough."""
  height, width = image.shape[:2]
  short = min(height, width)
  if short <= settings.resize:
    return None
  size = round(height * settings.resize / short), round(width * settings.resize / short)
  if max(size) > _JPEG_SIDE:
    raise ValueError(f"a picture of {height} x {width} cannot be a JPEG of {size[0]} x {size[1]}; leave it out by "
                     "max_aspect")
  return size


def _file(image):
  """The picture's file: a uint8 vector is one, pixels become a PNG."""
  if image.ndim == 0:
    return image.item()
  if image.ndim == 1 and image.dtype == np.uint8:
    return image.tobytes()
  return _png(image) if image.ndim == 2 and image.dtype in (np.uint8, np.uint16) else image


def _png(pixels):
  out = io.BytesIO()
  Image.fromarray(pixels[..., 0] if pixels.ndim == 3 and pixels.shape[-1] == 1 else pixels).save(out, "PNG")
  return out.getvalue()


def _storable(value):
  if isinstance(value, np.ndarray) and value.ndim == 3 and value.dtype == np.uint8 and value.shape[-1] in (1, 3, 4):
    return _png(value)
  if isinstance(value, (list, tuple)):
    texts = [one for one in value if one is not None]
    value = texts if texts and all(isinstance(one, (str, bytes)) for one in texts) else value
  if isinstance(value, dict) or (isinstance(value, (list, tuple)) and any(
      not isinstance(one, (str, bytes)) for one in value)):
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain)
  if isinstance(value, _PLAIN_AS_TEXT):
    return _plain(value)
  return int(value) if isinstance(value, (bool, np.bool_)) else value


def _plain(value):
  if isinstance(value, bytes):
    return value.hex()
  if isinstance(value, (datetime.date, datetime.time)):
    return value.isoformat()
  return value.tolist() if isinstance(value, (np.ndarray, np.number, np.bool_)) else str(value)
