"""What `mmjax data` shows of a stream: sizes, shapes, speed, and the first records."""

import time

import numpy as np
from PIL import Image

from mmjax.data import tokenizers
from mmjax.data.sources import scenes

COLUMNS = 8  # pictures side by side


def build_scenes(count: int, size: int, data_dir: str | None) -> None:
  """Builds the built-in dataset unless it is there, and says where it is."""
  for split in ("train", "validation", "test", "compositional"):
    source = scenes.build(split=split, count=count, size=size, data_dir=data_dir)
    print(f"{split}: {len(source)} records of {size}x{size}, digest {source.digest[:16]}")


def show(stream, rows: int, save: str | None = None) -> None:
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
  _show_texts(parts, records[:5])
  if save:
    _save_pictures(records, save)


def _show_texts(parts, records) -> None:
  names = [t.tokenizer for part in parts for t in part.transforms if hasattr(t, "tokenizer")]
  if not names:
    return
  tokenizer = tokenizers.load(names[0])
  for row, record in enumerate(records):
    tokens = record["text"].reshape(-1, record["text"].shape[-1])[0]
    mask = record["text_mask"].reshape(-1, record["text"].shape[-1])[0]
    print(f"  row {row}: {tokenizer.decode([int(t) for t in tokens[mask]])}")


def _pictures(record):
  """The image [H, W, C] of a record, the frames of its video, or its large views."""
  if "image" in record:
    return [record["image"]]
  return next((list(record[key]) for key in ("video", "global_views") if key in record), [])


def _save_pictures(records, save: str) -> None:
  """Each picture is stretched to its own range, since normalisation has moved it."""
  images = [image.astype(np.float32) for r in records if r["valid"] for image in _pictures(r)]
  images = images[:4 * COLUMNS]
  if not images:
    raise ValueError(f"--save={save}: no picture among the first {len(records)} rows")
  tiles = [255 * (x - x.min()) / max(1e-6, float(np.ptp(x))) for x in images]
  tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % COLUMNS)
  rows = [np.concatenate(tiles[i:i + COLUMNS], axis=1) for i in range(0, len(tiles), COLUMNS)]
  Image.fromarray(np.concatenate(rows).astype(np.uint8)).save(save, format="PNG")
  print(f"{save}: the first {len(images)} pictures")
