"""A kept record as it is stored, and files of them."""

import hashlib
import io
import json
import os
import pathlib
from typing import Any

from array_record.python import array_record_module
import numpy as np
from PIL import Image

from mmjax.data import image_transforms
from mmjax.data import resampling
from mmjax.data.build import scan
from mmjax.data.build.settings import Settings
from mmjax.data.sources import examples

# One record a group, so that a record is read without its neighbours; pictures do not compress.
OPTIONS = "group_size:1,uncompressed"
_decode = image_transforms.Decode()


def stored(record: dict[str, Any], index: int, settings: Settings) -> bytes:
  """A record as a `tf.train.Example`: a function of the record, its place and the settings alone.

  The captions are those that pass the filters; a list or an object of another column is stored as
  JSON text, None is left out.
  """
  record = dict(record)
  if settings.captions or settings.filters_captions:
    record["caption"] = scan.captions(record, index, settings)
    for column in settings.caption_weights:
      if column != "caption":
        record.pop(column, None)
  if settings.resize and isinstance(record.get("image"), (bytes, np.ndarray)):
    record["image"] = smaller(record["image"], settings)
  return examples.encode({name: _storable(value) for name, value in record.items() if value is not None})


def smaller(file: Any, settings: Settings) -> Any:
  """A picture whose shorter side is longer than `resize` made that small, as JPEG; others as they are."""
  image = _decode({"image": file}, None)["image"]
  height, width = image.shape[:2]
  short = min(height, width)
  if short <= settings.resize:
    return file
  size = round(height * settings.resize / short), round(width * settings.resize / short)
  out = io.BytesIO()
  Image.fromarray(resampling.resize(image, size, "lanczos")).save(
      out, "JPEG", quality=settings.quality)
  return out.getvalue()


def _storable(value):
  if isinstance(value, dict) or (isinstance(value, (list, tuple)) and any(
      not isinstance(one, (str, bytes)) for one in value)):
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=_plain)
  return int(value) if isinstance(value, bool) else value


def _plain(value):
  if isinstance(value, bytes):
    return value.hex()
  return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else str(value)


def write(source: Any, records: np.ndarray, path: pathlib.Path, settings: Settings) -> dict[str, Any]:
  """Writes a shard, whole or not at all.

  Returns:
    Its line of the manifest: {"file", "records", "bytes", "sha256" of the records' bytes}.

  Raises:
    RuntimeError: a record that could be read before cannot be read now; names it.
  """
  temporary = path.with_name(f".{path.name}.{os.getpid()}")
  digest = hashlib.sha256()
  writer = array_record_module.ArrayRecordWriter(str(temporary), OPTIONS)
  try:
    for index in map(int, records):
      try:
        data = stored(source[index], index, settings)
      except Exception as error:
        raise RuntimeError(f"record {index} of {source.name}, which was read before, cannot be stored: "
                           f"{error}") from error
      writer.write(data)
      digest.update(len(data).to_bytes(8, "little") + data)
    writer.close()
    temporary.rename(path)
  finally:
    temporary.unlink(missing_ok=True)
  return {"file": path.name, "records": len(records), "bytes": path.stat().st_size,
          "sha256": digest.hexdigest()}
