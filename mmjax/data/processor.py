"""Pictures and strings to a batch, by the transforms of a model that was read."""

import os
import pathlib

import numpy as np
from PIL import Image

from mmjax.data import transforms


class Processor:
  """Callable (images=None, texts=None) -> batch, for models rather than for training data.

  Transforms that draw random numbers get the same ones for every item.

  Args:
    image_nodes: config nodes from {"image": encoded bytes} to the model's `image`.
    text_nodes: config nodes from {"caption": str} to `text` and `text_mask`.

  Raises:
    ValueError: a node names no transform, or its arguments are wrong; says which.
  """

  def __init__(self, image_nodes=(), text_nodes=()):
    self._image = [build_transform(node) for node in image_nodes]
    self._text = [build_transform(node) for node in text_nodes]

  def __call__(self, images=None, texts=None) -> dict:
    """The batch of NumPy arrays.

    Args:
      images: B items, each encoded bytes, a path, a PIL image, or uint8 [H, W, C].
      texts: B strings. With both given, their numbers must agree.

    Returns:
      What the transforms leave: `image` float32 [B, H, W, C] (NaFlex: [B, N, ph, pw, C] with
      `image_mask` bool [B, N] and `image_grid` int32 [B, 2]), `text` int32 [B, L] and `text_mask`
      bool [B, L]; `row` uint32 [B, 2] and `valid` bool [B], all True.

    Raises:
      ValueError: an item cannot be processed (names its index), or there is nothing to process.
    """
    sets = {"images": (images, self._image), "texts": (texts, self._text)}
    sets = {name: given for name, given in sets.items() if given[0] is not None}
    if isinstance(texts, str) or isinstance(images, (str, bytes, os.PathLike, Image.Image)):
      raise ValueError("images and texts are lists; put a single one into a list")
    for name, (items, steps) in sets.items():
      if not steps:
        raise ValueError(f"{name} are given, but the model's checkpoint says nothing of its {name}")
    counts = {name: len(items) for name, (items, _) in sets.items()}
    if len(set(counts.values())) != 1 or not min(counts.values()):
      raise ValueError(f"expected images, texts or as many of both, found {counts or 'neither'}")
    batch = {}
    for name, (items, steps) in sets.items():
      batch |= _stack(name, [_record(name, i, item, steps) for i, item in enumerate(items)])
    count = counts.popitem()[1]
    row = np.stack([np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32)], axis=1)
    return {**batch, "row": row, "valid": np.ones(count, bool)}


def build_transform(node):
  """The transform of a config node.

  Raises:
    ValueError: there is none of that name, or its arguments are wrong; says which.
  """
  name = node.get("name")
  kind = getattr(transforms, str(name), None)
  if kind is None:
    raise ValueError(f"there is no transform {name!r}")
  try:
    return kind(**{key: value for key, value in node.items() if key != "name"})
  except TypeError as error:
    raise ValueError(f"transform {name}: {error}") from error


def _record(name, index, item, steps):
  try:
    record = {"caption": item} if name == "texts" else {"image": _image(item)}
    for step in steps:
      record = step(record, np.random.default_rng(0))
  except Exception as error:  # whatever a decoder raises for a damaged file
    raise ValueError(f"{name}[{index}]: {error}") from error
  return {key: value for key, value in record.items() if key != "caption"}


def _image(item):
  """What Decode takes: encoded bytes or pixels."""
  if isinstance(item, (str, os.PathLike)):
    return pathlib.Path(item).read_bytes()
  if isinstance(item, Image.Image):
    keep = item.mode in ("RGB", "RGBA", "L", "LA")
    return np.asarray(item if keep else item.convert(
        "RGBA" if "transparency" in item.info else "RGB"))
  return item


def _stack(name, items):
  shapes = [{key: np.shape(value) for key, value in item.items()} for item in items]
  for i, shape in enumerate(shapes):
    if shape != shapes[0]:
      raise ValueError(f"{name}[{i}] gives {shape}, but {name}[0] gives {shapes[0]}; images of "
                       "several sizes need a Resize")
  return {key: np.stack([item[key] for item in items]) for key in items[0]}
