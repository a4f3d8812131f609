"""What `mmjax data` shows of data: what a source holds, and what a config makes of it."""

import pathlib
import time
from typing import Any

import numpy as np

from mmjax.data import columns, contact_sheet, survey
from mmjax.data import transforms as T
from mmjax.data.sources import scenes
from mmjax.data.stream import DataError, Stream

SIDE = 128  # pixels of a contact sheet's pictures where no config says
PNG, PAGE = "contact_sheet.png", "inspect.html"


def build_scenes(count: int, size: int, data_dir: str | None) -> None:
  """Builds the built-in dataset unless it is there, and says where it is."""
  for split in ("train", "validation", "test", "compositional"):
    source = scenes.build(split=split, count=count, size=size, data_dir=data_dir)
    print(f"{split}: {len(source)} records of {size}x{size}, digest {source.digest[:16]}")


def inspect(source: Any, stream: Any, out: str, most: int | None, processes: int) -> None:
  """Prints what a source holds, and writes it with a contact sheet to `out`.

  Args:
    stream: what a config makes of it; None shows the pictures as they are, made small.
    most: records to look at; None for all.

  Raises:
    DataError: the config can make nothing of the records; what the source holds is written all the same.
  """
  found = survey.survey(source, most, processes=processes)
  names = getattr(source, "class_names", lambda key: None)("label")
  lines = survey.table(found, names)
  for what, value in lines:
    print(f"{what:>32}  {value}")
  for record, error in found.broken[:survey.SHOWN]:
    print(f"  record {record}: {error}")
  if len(found.broken) > survey.SHOWN:
    print(f"  and {len(found.broken) - survey.SHOWN:,} more: {PAGE}")
  if stream is None and found.forms:
    stream = Stream(source, (T.Decode(), T.Letterbox(SIDE), T.Keep(("image",))), shuffle=False)
    text = lambda row: " | ".join(map(str, columns.captions(_caption(source, row))))
  else:
    tokenizer = _tokenizer(stream)
    text = None
  shown, wrong = [], None
  try:
    for row in range(min(contact_sheet.MOST, found.total) if stream is not None else 0):
      record = stream.record(row)
      words = str(record["error"]) or (text(row) if text else contact_sheet.decoded(record, tokenizer))
      shown.append((f"row {row}" if record["valid"] else f"row {row}, bad", record, words))
  except DataError as error:
    wrong = error
  folder = pathlib.Path(out)
  folder.mkdir(parents=True, exist_ok=True)
  contact_sheet.write_page(folder / PAGE, getattr(source, "name", "data"), lines, found.broken[:1000], shown)
  print(f"{folder / PAGE}")
  images = [image for _, record, _ in shown for image in contact_sheet.pictures(record)[:1]]
  if images:
    contact_sheet.save_png(images, str(folder / PNG))
    print(f"{folder / PNG}")
  if wrong:
    raise wrong


def _caption(source, row):
  try:
    return source[row].get("caption")
  except Exception:  # a broken record, whose error is shown
    return None


def show(stream: Any, rows: int, save: str | None = None) -> None:
  """Prints a stream's records, shapes, digests, reading speed, bad rows and first texts.

  Args:
    stream: a Stream or a Mixture.
    rows: how many rows to read.
    save: write the first pictures (or frames, or large views), side by side, to this PNG.

  Raises:
    ValueError: pictures are to be saved and there are none.
  """
  parts = getattr(stream, "streams", (stream,))
  for part in parts:
    print(f"{part.name}: {len(part)} records, digest {part.source.digest[:16]}")
  for key, spec in stream.spec.items():
    print(f"  {key:12} {np.dtype(spec.dtype).name} {list(spec.shape)}")
  began = time.process_time()
  records = [stream.record(row) for row in range(rows)]
  bad = [(row, str(r["error"])) for row, r in enumerate(records) if not r["valid"]]
  speed = rows / max(1e-9, time.process_time() - began)
  print(f"{rows} rows at {speed:.0f} rows a CPU-second, {len(bad)} bad")
  for row, error in bad[:5]:
    print(f"  row {row}: {error}")
  tokenizer = _tokenizer(stream)
  for row, record in enumerate(records[:5] if tokenizer else ()):
    print(f"  row {row}: {contact_sheet.decoded(record, tokenizer)}")
  if save:
    images = [image for r in records if r["valid"] for image in contact_sheet.pictures(r)]
    images = images[:4 * contact_sheet.COLUMNS]
    if not images:
      raise ValueError(f"--save={save}: no picture among the first {len(records)} rows")
    contact_sheet.save_png(images, save)
    print(f"{save}: the first {len(images)} pictures")


def show_shares(rows: int, shares: list) -> None:
  """Prints how often a run of so many rows reads each source and each of its records.

  Args:
    shares: `mmjax.data.mixture.Share`s.
  """
  print(f"{rows:,} rows in the whole run")
  width = max(len(share.name) for share in shares)
  print(f"{'source':{width}}{'records':>15}{'rows':>17}{'share':>8}{'epochs':>9}  a record is read")
  for one in shares:
    often = f"{one.least:,} times" if one.again == 0 else (
        f"{one.least:,} or {one.least + 1:,} times; {one.again:,} of them the latter")
    ends = f"; used up at row {one.ends:,}" if one.ends is not None and one.ends <= rows else ""
    print(f"{one.name:{width}}{one.records:>15,}{one.rows:>17,}{one.rows / max(1, rows):>8.1%}"
          f"{one.rows / one.records:>9.2f}  {often}{ends}")


def _tokenizer(stream):
  parts = getattr(stream, "streams", (stream,))
  names = [step.tokenizer for part in parts if part is not None for step in part.transforms
           if hasattr(step, "tokenizer")]
  return names[0] if names else None
