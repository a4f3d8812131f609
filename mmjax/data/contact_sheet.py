"""Pictures side by side, as a PNG and as a page: what a model sees of the data."""

import base64
import html
import io
import pathlib
from typing import Any

import numpy as np
from PIL import Image

from mmjax.data import tokenizers

COLUMNS = 8  # pictures side by side
MOST = 64  # pictures of a page

_STYLE = """body{font:15px/1.4 system-ui,sans-serif;margin:2em auto;max-width:80em;padding:0 1em;color:#222;
background:#fff}table{border-collapse:collapse;margin:1em 0}td,th{padding:.2em .8em .2em 0;text-align:left;
vertical-align:top;border-bottom:1px solid #ddd;overflow-wrap:anywhere}.sheet{display:grid;gap:1em;
grid-template-columns:repeat(auto-fill,minmax(9em,1fr))}figure{margin:0}img{width:100%;image-rendering:pixelated;
background:#eee}figcaption{font-size:.85em;overflow-wrap:anywhere}.bad{color:#a00}"""


def pictures(record: dict[str, Any]) -> list[np.ndarray]:
  """The image [H, W, C] of a record, put together if it is in patches; the frames of its video, or its large
  views."""
  if "image_grid" in record:
    return [_joined(record["image"], *map(int, record["image_grid"]))]
  if "image" in record:
    return [record["image"]]
  return next((list(record[key]) for key in ("video", "global_views") if key in record), [])


def _joined(patches, rows, columns):
  """[N, h, w, C], row by row, to [rows * h, columns * w, C]. Of a bad record, which has none, one is shown."""
  rows, columns = max(1, rows), max(1, columns)
  cut = patches[:rows * columns].reshape(rows, columns, *patches.shape[1:]).swapaxes(1, 2)
  return cut.reshape(rows * patches.shape[1], columns * patches.shape[2], -1)


def visible(image: np.ndarray) -> np.ndarray:
  """uint8 [H, W, 3], stretched to the picture's own range, since normalisation has moved it."""
  image = image.astype(np.float32)
  scaled = 255 * (image - image.min()) / max(1e-6, float(np.ptp(image)))
  return np.broadcast_to(scaled.astype(np.uint8), (*image.shape[:2], 3))


def grid(images: list[np.ndarray]) -> np.ndarray:
  """Pictures side by side with a white line between, smaller ones with more of it: uint8 [H, W, 3]."""
  height, width = (max(image.shape[axis] for image in images) for axis in (0, 1))
  tiles = [np.pad(visible(image), ((1, 1 + height - image.shape[0]), (1, 1 + width - image.shape[1]), (0, 0)),
                  constant_values=255) for image in images]
  tiles += [np.full_like(tiles[0], 255)] * (-len(tiles) % COLUMNS)
  rows = [np.concatenate(tiles[i:i + COLUMNS], axis=1) for i in range(0, len(tiles), COLUMNS)]
  return np.concatenate(rows)


def save_png(images: list[np.ndarray], path: str) -> None:
  """Writes `grid` of the pictures."""
  Image.fromarray(grid(images)).save(path, format="PNG")


def decoded(record: dict[str, Any], tokenizer: str | None) -> str:
  """The text that a record's tokens stand for, with their number."""
  if not tokenizer or "text" not in record:
    return ""
  length = record["text"].shape[-1]
  tokens = record["text"].reshape(-1, length)[0]
  ids = [int(token) for token in tokens[record["text_mask"].reshape(-1, length)[0]]]
  return f"{tokenizers.load(tokenizer).decode(ids)} [{len(ids)} of {length} tokens]"


def write_page(path: pathlib.Path, title: str, lines: list[tuple[str, str]], broken: list[tuple[int, str]],
               records: list[tuple[str, dict[str, Any], str]]) -> None:
  """One HTML file that needs no other.

  Args:
    lines: of the table.
    broken: (record, error).
    records: (heading, record, text) of each picture.
  """
  escape = lambda text: html.escape(str(text))
  rows = "".join(f"<tr><th>{escape(what)}</th><td>{escape(value)}</td></tr>" for what, value in lines)
  bad = "".join(f"<tr><td>{record}</td><td class=bad>{escape(error)}</td></tr>" for record, error in broken)
  figures = "".join(_figure(*one) for one in records[:MOST])
  path.write_text(
      f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{_STYLE}</style>"
      f"<h1>{escape(title)}</h1><table>{rows}</table>"
      + (f"<h2>Broken records</h2><table><tr><th>record</th><th>error</th></tr>{bad}</table>" if bad else "")
      + (f"<h2>What the model sees</h2><div class=sheet>{figures}</div>" if figures else "") + "</html>\n",
      encoding="utf-8", errors="backslashreplace")  # captions and names of files may be no Unicode


def _figure(heading, record, text):
  images = "".join(f'<img alt="" src="data:image/png;base64,{_png(image)}">' for image in pictures(record)[:4])
  return (f"<figure>{images}<figcaption><b>{html.escape(heading)}</b> {html.escape(text)}</figcaption></figure>")


def _png(image):
  file = io.BytesIO()
  Image.fromarray(visible(image)).save(file, "PNG")
  return base64.b64encode(file.getvalue()).decode()
