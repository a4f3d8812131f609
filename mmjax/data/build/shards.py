"""Files of kept records."""

import hashlib
import os
import pathlib
from typing import Any

from array_record.python import array_record_module
import numpy as np

from mmjax.data.build import form
from mmjax.data.build.settings import Settings

# One record a group, so that a record is read without its neighbours; pictures do not compress.
OPTIONS = "group_size:1,uncompressed"


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
        data = form.stored(source[index], index, settings)
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
