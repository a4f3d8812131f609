"""Which captions of a record are stored: drawn among several columns, and those that pass the filters."""

import dataclasses
import re
from typing import Any

import numpy as np

from mmjax.data import columns, order, part
from mmjax.data.build.settings import Settings
from mmjax.data.sources import joined


def under_own_names(source: Any, settings: Settings) -> Any:
  """The source with the columns of `settings.captions` under their own names, also one that it calls `caption`."""
  weights = settings.caption_weights
  if not weights:
    return source
  if isinstance(source, (part.Part, joined.Joined)):
    return dataclasses.replace(source, source=under_own_names(source.source, settings))
  found = getattr(source, "columns", None)
  if not isinstance(found, columns.Columns):
    return source
  others = tuple(name for name in found.caption if name == "caption" or name not in weights)
  return dataclasses.replace(source, columns=dataclasses.replace(found, caption=others))


def bits(record: dict, settings: Settings) -> int:
  """Bit i is set if the record has the i-th column of `settings.captions`."""
  return sum(1 << i for i, name in enumerate(settings.caption_weights) if columns.captions(record.get(name)))


def require_all(there: int, settings: Settings) -> None:
  """Raises ValueError if a column of `settings.captions` is in no record.

  Args:
    there: `bits` of all records, joined by or.
  """
  missing = [name for i, name in enumerate(settings.caption_weights) if not there >> i & 1]
  if missing:
    raise ValueError(f"captions: no record has a column {', '.join(map(repr, missing))}; `mmjax data inspect` lists "
                     "the columns that there are")


def kept(record: dict, index: int, settings: Settings) -> list[str]:
  """The captions of a record that are stored: the chosen ones that pass all filters."""
  return [text for text in chosen(record, index, settings) if passes(text, settings) and in_languages(text, settings)]


def chosen(record: dict, index: int, settings: Settings) -> list[str]:
  """Those of `caption`, or of one of the columns of `settings.captions`, drawn by their weights."""
  weights = settings.caption_weights
  if not weights:
    return texts(record.get("caption"))
  there = {name: found for name in weights if (found := texts(record.get(name)))}
  if not there:
    return []
  share = np.array([weights[name] for name in there])
  draw = order.mix(settings.seed, index) / 2**64
  return list(there.values())[int(np.searchsorted(np.cumsum(share / share.sum()), draw, "right").clip(
      max=len(there) - 1))]


def texts(value: Any) -> list[str]:
  """A record's captions, without those that are None."""
  return [text.decode("utf-8") if isinstance(text, bytes) else str(text)
          for text in columns.captions(value) if text is not None]


def passes(text: str, settings: Settings) -> bool:
  """Whether a caption has the words that it should have, and none that it should not."""
  words = len(text.split())
  if words < settings.min_words or (settings.max_words and words > settings.max_words):
    return False
  return not any(re.search(pattern, text) for pattern in settings.exclude)


def in_languages(text: str, settings: Settings) -> bool:
  """Whether a caption is in one of `settings.languages`, or there are none."""
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
