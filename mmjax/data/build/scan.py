"""The first look at a record: can it be read, does it pass the filters, what are its hashes."""

import dataclasses
from typing import Any

from mmjax.data import hashes, image_transforms, records
from mmjax.data.build import captions, form
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
    captions: bit i is set if the record has the i-th column of `settings.captions`.
    hashed: whether it has a picture whose hash was asked for; only such records can be duplicates.
    hash: 64 bits of the picture, of the kind that `settings.dedup` names.
    error: what is wrong with a broken one.
  """

  reason: int
  captions: int = 0
  hashed: bool = False
  hash: int = 0
  error: str = ""


def scan(source: Any, index: int, settings: Settings) -> Seen:
  """Reads a record in full, and forms what would be stored of it, so that a fault is found now and not in training."""
  where, there = "", 0
  try:
    record = source[index]
    where = records.where(source, index)  # what goes wrong before is told with its file
    there = captions.bits(record, settings)
    image = _decode({"image": record["image"]}, None)["image"] if "image" in record else None
    reason = _reason(record, image, index, settings)
    if reason == KEPT:
      form.check(record, image, index, settings)
  except Exception as error:  # whatever a reader or a decoder raises for a damaged record
    told = f"{where}{where and ': '}{type(error).__name__}: {error}"[:300]
    return Seen(BROKEN, there, error=told.encode("utf-8", "backslashreplace").decode())  # a name may be no UTF-8
  if reason != KEPT or image is None or settings.dedup == "none":
    return Seen(reason, there)
  if settings.dedup == "exact":
    data = record["image"]
    return Seen(KEPT, there, True, hashes.exact(data if isinstance(data, bytes) else image.tobytes()))
  return Seen(KEPT, there, True, hashes.perceptual(image))


def _reason(record, image, index, settings):
  if image is not None:
    short, long = sorted(image.shape[:2])
    if short < settings.min_side:
      return SMALL
    if settings.max_aspect and long > settings.max_aspect * short:
      return ASPECT
  if not settings.filters_captions:
    return KEPT
  passing = [text for text in captions.chosen(record, index, settings) if captions.passes(text, settings)]
  if not passing:
    return CAPTION
  return KEPT if any(captions.in_languages(text, settings) for text in passing) else LANGUAGE
