"""The first look at a record: can it be read, does it pass the filters, what are its hashes."""

import dataclasses
import re
from typing import Any

import numpy as np

from mmjax.data import columns, hashes, image_transforms, order, records
from mmjax.data.build.settings import Settings

KEPT, BROKEN, SMALL, ASPECT, CAPTION, LANGUAGE, DUPLICATE = range(7)
REASONS = ("kept", "broken", "smaller than min_side", "beyond max_aspect", "no caption that passes",
           "no caption in the languages", "duplicate")  # of the numbers above
_decode = image_transforms.Decode()


@dataclasses.dataclass(frozen=True)
class Seen:
  """What is remembered of a record.

  Attributes:
    reason: KEPT or why it is left out.
    exact, perceptual: 64-bit hashes of the picture; 0 where not asked for, or left out.
    error: what is wrong with a broken one.
  """

  reason: int
  exact: int = 0
  perceptual: int = 0
  error: str = ""


def scan(source: Any, index: int, settings: Settings) -> Seen:
  """Reads a record in full, so that one that is damaged is found now and not in training."""
  where = ""
  try:
    record = source[index]
    where = records.where(source, index)  # what goes wrong before is told with its file
    image = _decode({"image": record["image"]}, None)["image"] if "image" in record else None
    reason = _reason(record, image, index, settings)
  except Exception as error:  # whatever a reader or a decoder raises for a damaged record
    return Seen(BROKEN, error=f"{where}{where and ': '}{type(error).__name__}: {error}"[:300])
  if reason != KEPT or image is None or settings.dedup == "none":
    return Seen(reason)
  if settings.dedup == "exact":
    data = record["image"]
    return Seen(KEPT, exact=hashes.exact(data if isinstance(data, bytes) else image.tobytes()))
  return Seen(KEPT, perceptual=hashes.perceptual(image))


def _reason(record, image, index, settings):
  if image is not None:
    short, long = sorted(image.shape[:2])
    if short < settings.min_side:
      return SMALL
    if settings.max_aspect and long > settings.max_aspect * short:
      return ASPECT
  if not settings.filters_captions:
    return KEPT
  passing = [text for text in chosen_captions(record, index, settings) if _passes(text, settings)]
  if not passing:
    return CAPTION
  return KEPT if any(_in_languages(text, settings) for text in passing) else LANGUAGE


def captions(record: dict, index: int, settings: Settings) -> list[str]:
  """The captions of a record that are stored: the chosen ones that pass all filters."""
  chosen = chosen_captions(record, index, settings)
  return [text for text in chosen if _passes(text, settings) and _in_languages(text, settings)]


def chosen_captions(record: dict, index: int, settings: Settings) -> list[str]:
  """Those of `caption`, or of one of the columns of `settings.captions`, drawn by their weights."""
  weights = settings.caption_weights
  if not weights:
    return _texts(record.get("caption"))
  there = {name: texts for name in weights if (texts := _texts(record.get(name)))}
  if not there:
    return []
  share = np.array([weights[name] for name in there])
  draw = order.mix(settings.seed, index) / 2**64
  return list(there.values())[int(np.searchsorted(np.cumsum(share / share.sum()), draw, "right").clip(
      max=len(there) - 1))]


def _texts(value):
  return [text.decode("utf-8") if isinstance(text, bytes) else str(text)
          for text in columns.captions(value) if text is not None]


def _passes(text, settings):
  words = len(text.split())
  if words < settings.min_words or (settings.max_words and words > settings.max_words):
    return False
  return not any(re.search(pattern, text) for pattern in settings.exclude)


def _in_languages(text, settings):
  return not settings.languages or language(text) in settings.languages


def language(text: str) -> str:
  """The ISO 639-1 code that py3langid gives a text.

  Raises:
    ValueError: the package is not installed.
  """
  try:
    import py3langid  # an extra; its model takes a moment
  except ImportError as error:
    raise ValueError("languages: needs the package py3langid (pip install 'mmjax[build]')") from error
  return py3langid.classify(text)[0]
