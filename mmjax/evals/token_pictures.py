"""What the patches of a few pictures say, one value or colour a patch, beside the pictures."""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np

from mmjax.data import resampling
from mmjax.evals import kept


def first_records(session, evaluator, want: tuple[str, ...]) -> tuple[np.ndarray, dict]:
  """Features of the first `evaluator.records` valid records of `evaluator.data`.

  Returns:
    (their rows in the stream, int [R]; {name: array [R, ...]} of `want`).

  Raises:
    ConfigError: at `data`, there is no valid record.
  """
  rows, parts, seen = [], [], 0
  for batch in session.batches(evaluator.data, evaluator.records):
    found = session.features(_images(batch), want)
    found, valid = session.fetch(({name: found[name] for name in want}, batch["valid"]))
    good = np.flatnonzero(valid)[:evaluator.records - sum(map(len, rows))]
    rows.append(seen + good)
    parts.append({name: np.asarray(array[good], np.float32) for name, array in found.items()})
    seen += len(valid)
    if sum(map(len, rows)) == evaluator.records:
      break
  rows = np.concatenate(rows) if rows else np.zeros(0, int)
  if not len(rows):
    raise session.error("data", "the stream has no valid record")
  return rows, {name: np.concatenate([part[name] for part in parts]) for name in want}


def check(session, evaluator, want: tuple[str, ...]) -> None:
  """Raises ConfigError if the model gives no such features, or records have no image."""
  batch = session.abstract_batch(evaluator.data, evaluator.records)
  if "image" not in batch:
    raise session.error("data", f"the records have no image (there: {', '.join(sorted(batch))})")
  try:
    found = jax.eval_shape(functools.partial(session.features, want=want), _images(batch))
  except ValueError as error:
    raise session.error("feature", str(error)) from error
  for name in want:
    if name not in found:
      raise session.error("feature", f"the model gives no {name!r} (there: "
                                     f"{', '.join(sorted(found))})")


def grid_of(session, count: int, grid: tuple | None) -> tuple[int, int]:
  """(rows, columns) of `count` patches: `grid`, or a square."""
  rows, columns = grid or [math.isqrt(count)] * 2
  if rows * columns != count:
    raise session.error("grid", f"{count} patches are not {rows}x{columns}; give (rows, columns)")
  return rows, columns


def strips(pictures: np.ndarray, make: Callable[[int, tuple[int, int]], list]) -> np.ndarray:
  """Each picture uint8 [R, h, w, 3], then those of `make(record, (h, w))`: [R, S, h, w, 3]."""
  return np.stack([[picture, *make(record, picture.shape[:2])]
                   for record, picture in enumerate(pictures)])


def thumbnails(session, evaluator, rows: np.ndarray) -> np.ndarray | None:
  """The records' pictures, uint8 [R, h, w, 3]; None where there is nothing to show."""
  return kept.thumbnails(session.stream(evaluator.data), rows)


def enlarge(values: np.ndarray, size: tuple[int, int], filter_name: str) -> np.ndarray:
  """One value or colour from 0 to 1 a patch, [rows, columns, C], as uint8 [*size, C]."""
  return resampling.resize(np.rint(255 * np.clip(values, 0, 1)).astype(np.uint8), size,
                                 filter_name)


def _images(batch):
  """A batch without its texts, which the model need not read."""
  return {name: array for name, array in batch.items() if name.partition("_")[0] != "text"}
