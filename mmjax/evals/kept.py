"""Arrays for the run report: pictures and texts of single records, results of classes.

Their format stands in `mmjax/evals/__init__.py`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from mmjax.data import image_transforms, resampling, tokenizers

SIDE = 96  # the longer side of a thumbnail in pixels; smaller pictures stay as they are


def thumbnails(stream, rows) -> np.ndarray | None:
  """The pictures at some rows of a stream: uint8 [N, h, w, 3].

  None where there is nothing to show: no rows, or records without `image` [H, W, C] of one or three
  channels. Normalisation is undone; where the stream has none, a picture of floats is stretched to
  its own range.
  """
  images = [stream.record(int(row)).get("image") for row in rows]
  if not images or images[0] is None or images[0].ndim != 3 or images[0].shape[2] not in (1, 3):
    return None
  transforms = getattr(stream, "transforms", ())
  return np.stack([_thumbnail(image, transforms) for image in images])


def _thumbnail(image: np.ndarray, transforms) -> np.ndarray:
  if image.dtype != np.uint8:
    levels = np.nan_to_num(_unit_range(image.astype(np.float32), transforms))
    image = np.rint(255 * np.clip(levels, 0, 1))
  size = fitting(image.shape[:2])
  small = resampling.resize(image.astype(np.uint8), size, "area")
  return np.broadcast_to(small, (*size, 3))


def fitting(size: tuple[int, int]) -> tuple[int, int]:
  """(height, width) of the thumbnail of a picture of this `size`."""
  scale = min(1, SIDE / max(size))
  return tuple(max(1, round(scale * side)) for side in size)


def _unit_range(image: np.ndarray, transforms) -> np.ndarray:
  """`image` with black at 0 and white at 1."""
  black, white = image.min(), max(image.max(), image.min() + 1e-6)
  for transform in transforms:
    if isinstance(transform, image_transforms.Normalise) and transform.key == "image":
      black, white = (transform({"image": np.full((1, 1, image.shape[2]), level, np.float32)}, None)
                      ["image"] for level in (0, 1))
  return (image - black) / (white - black)


def levels(stream, key: str):
  """Maps pixels as the model has them to 0 (black) .. 1 (white), clipped.

  Floats of a stream without the transform `Normalise` are taken to be so already.
  """
  names = lambda transform: (transform.key,) if isinstance(transform.key, str) else transform.key
  normalise = next((dataclasses.replace(t, key=key) for t in getattr(stream, "transforms", ())
                    if isinstance(t, image_transforms.Normalise) and key in names(t)), None)

  def of(x):
    x = np.nan_to_num(x.astype(np.float32))
    if normalise is not None:
      black, white = (normalise({key: np.full((1, 1, x.shape[-1]), level, np.float32)}, None)[key]
                      for level in (0, 1))
      x = (x - black) / (white - black)
    return np.clip(x, 0, 1)

  return of


def captions(stream, places) -> dict[str, np.ndarray]:
  """Captions at (row, column) of a stream, column 0 where a record has one only.

  Returns:
    `tokens` int32 [N, L], -1 for padding; and `captions` str [N] if a transform of the stream says
    which tokenizer made `text`.
  """
  found = []
  for row, column in places:
    record = stream.record(int(row))
    text, mask = record["text"], record["text_mask"]
    found.append(np.where(mask, text, -1).reshape(-1, text.shape[-1])[column])
  tokens = np.stack(found).astype(np.int32)
  if _tokenizer(stream) is None:
    return {"tokens": tokens}
  text = texts(stream)
  return {"tokens": tokens, "captions": np.array([text(row[row >= 0]) for row in tokens])}


def texts(stream) -> Callable[[np.ndarray], str]:
  """From ids [L] to a text; to their numbers if no transform says which tokenizer made `text`."""
  name = _tokenizer(stream)
  if name is None:
    return lambda ids: " ".join(map(str, ids))
  tokenizer = tokenizers.load(name)
  return lambda ids: tokenizer.decode([int(i) for i in ids]).strip()


def _tokenizer(stream) -> str | None:
  return next((t.tokenizer for t in getattr(stream, "transforms", ())
               if hasattr(t, "tokenizer") and getattr(t, "out", "text") == "text"), None)


def class_names(stream, label: str) -> tuple[str, ...] | None:
  """Names of the values 0, 1, ... of a record's `label`; None where the source has none."""
  return getattr(getattr(stream, "source", None), "class_names", lambda key: None)(label)


def classes(session, stream, tally, names=None) -> None:
  """Saves `classes` and `mistakes` of a tally of class scores.

  Args:
    stream: the test stream, None for the run's own.
    tally: a `ranking.Tally` that was told the rows.
    names: class names, str [C].
  """
  session.save("classes", tally.arrays() | ({} if names is None else {"classes": np.array(names)}))
  pictures = thumbnails(session.stream(stream), [row for row, _, _ in tally.mistakes])
  if pictures is not None:
    _, label, guess = np.array(tally.mistakes, np.int32).T
    session.save("mistakes", {"pictures": pictures, "label": label, "guess": guess})
