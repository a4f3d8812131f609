"""Reading a record's values, with errors that say what was expected."""

import io

from PIL import Image, UnidentifiedImageError
import numpy as np

from mmjax.data import columns


def require(transform, field, good, want):
  """Raises ValueError naming the transform and the field unless `good`."""
  if not good:
    raise ValueError(f"{type(transform).__name__}.{field} = {getattr(transform, field)!r}: {want}")


def get(record, key):
  """record[key], or a ValueError that lists the keys there are."""
  if key not in record:
    hint = f"; if that is called otherwise, give its name, as in SPEC?{key}=NAME" if key in columns.USUAL else ""
    raise ValueError(f"the record has no {key!r}; it has {', '.join(sorted(record))}{hint}")
  return record[key]


def image(record, key):
  """The image under `key`: an array [H, W, C] that is not empty."""
  value = get(record, key)
  if not isinstance(value, np.ndarray) or value.ndim != 3 or value.size == 0:
    raise TypeError(f"{key!r} must be a decoded image [H, W, C], found {describe(value)}")
  return value


def pixels(record, key):
  """The image [H, W, C], or the video or views [T, H, W, C], under `key`, not empty."""
  value = get(record, key)
  if not isinstance(value, np.ndarray) or value.ndim not in (3, 4) or value.size == 0:
    raise TypeError(f"{key!r} must be a decoded image [H, W, C] or a decoded video or views "
                    f"[T, H, W, C], found {describe(value)}")
  return value


def data(record, key):
  """The encoded file under `key`, as bytes; a uint8 vector is accepted."""
  value = get(record, key)
  if isinstance(value, np.ndarray) and value.dtype == np.uint8 and value.ndim == 1:
    return value.tobytes()
  if isinstance(value, np.ndarray) and value.ndim == 0:
    value = value.item()
  if not isinstance(value, bytes):
    raise TypeError(f"{key!r} must be an encoded image in bytes, found {describe(value)}")
  return value


def open_picture(file):
  """Pillow's image of an encoded file.

  Raises:
    ValueError: there is nothing in it, or no picture; says what the file begins with.
  """
  try:
    return Image.open(io.BytesIO(file))
  except UnidentifiedImageError as error:
    raise ValueError(f"no picture that is known: {len(file):,} bytes that begin with {file[:12]!r}" if file else
                     "the picture's file is empty") from error


def text(value):
  """One text as str, from str, UTF-8 bytes or an array of one of them."""
  if isinstance(value, np.ndarray) and value.ndim == 0:
    value = value.item()
  if isinstance(value, bytes):
    return value.decode("utf-8")
  if not isinstance(value, str):
    raise TypeError(f"expected a text, found {describe(value)}")
  return str(value)


def texts(record, key):
  """The list of texts under `key`; a single text is a list of one."""
  value = get(record, key)
  if isinstance(value, (str, bytes)) or (isinstance(value, np.ndarray) and value.ndim == 0):
    return [text(value)]
  return [text(one) for one in value]


def where(source, i):
  """The file of a source's record and its place there, or "" if the source does not tell."""
  return source.where(i) if hasattr(source, "where") else ""


def describe(value):
  """What a value is, for an error."""
  if isinstance(value, np.ndarray):
    return f"an array {value.dtype} {list(value.shape)}"
  return type(value).__name__
