"""Attention maps: where an encoder looks, in numbers and as pictures."""

import dataclasses
from typing import Any

import numpy as np

from mmjax.evals import token_pictures

FEATURE, TOKENS = "image/attention", "image/tokens"
QUERIES = ("prefix", "mean")
HEADS = 4     # of them that are shown one by one
DARKEST = 0.1  # brightness of what is not looked at


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionMaps:
  """The last block's attention to the patches of the first records, as in DINO (arXiv:2104.14294).

  Each map in the report goes from its own darkest to its own brightest; how far apart these are, the
  entropy tells.

  Attributes:
    data: the stream, or None for the run's own evaluation stream.
    query: who looks: "prefix", the first token before the patches (the class token); "mean", the
      patches, on average; None: "prefix" where there is one.
    grid: (rows, columns) of the patches; None takes them to be a square.
    records: how many pictures.
  """

  data: Any = None
  query: str | None = None
  grid: tuple | None = None
  records: int = 8

  def __post_init__(self):
    if self.records < 1:
      raise ValueError(f"records: must be at least 1, not {self.records}")
    if self.query not in (None, *QUERIES):
      raise ValueError(f"query: must be one of {', '.join(QUERIES)} or None, not {self.query!r}")

  def check(self, session) -> None:
    """Raises ConfigError if the model gives no attention, or records have no image."""
    token_pictures.check(session, self, (FEATURE, TOKENS))

  def run(self, session) -> dict[str, float]:
    """`entropy` of the maps, mean over heads and records, as a share of that of a uniform map."""
    rows, found = token_pictures.first_records(session, self, (FEATURE, TOKENS))
    maps = self.maps(session, found[FEATURE], found[TOKENS].shape[1])
    grid = token_pictures.grid_of(session, maps.shape[2], self.grid)
    pictures = token_pictures.thumbnails(session, self, rows)
    if pictures is not None:
      shown = np.concatenate([maps.mean(axis=1, keepdims=True), maps[:, :HEADS]], axis=1)
      if maps.shape[1] == 1:
        shown = shown[:, :1]
      make = lambda record, size: [
          _lit(pictures[record], one.reshape(grid), size) for one in shown[record]]
      heads = [f"head {i}" for i in range(shown.shape[1] - 1)]
      session.save("attention", {"pictures": token_pictures.strips(pictures, make),
                                 "captions": np.array(["picture", "all heads", *heads])})
    return {"entropy": float(entropy(maps).mean() / np.log(maps.shape[2])),
            "records": float(len(maps))}

  def maps(self, session, attention: np.ndarray, patches: int) -> np.ndarray:
    """What falls on patches of attention [R, H, P + N, P + N]: float32 [R, H, N], sums of 1."""
    prefix = attention.shape[-1] - patches
    if self.query == "prefix" and not prefix:
      raise session.error("query", "no token stands before the patches; take 'mean'")
    from_prefix = prefix and self.query != "mean"
    seen = attention[:, :, 0] if from_prefix else attention[:, :, prefix:].mean(axis=2)
    seen = seen[:, :, prefix:]
    return seen / np.maximum(seen.sum(axis=-1, keepdims=True), 1e-12)


def entropy(maps: np.ndarray) -> np.ndarray:
  """In nats, over the last axis."""
  return -(maps * np.log(np.maximum(maps, 1e-30))).sum(axis=-1)


def _lit(picture, values, size):
  """A picture lit where one looks most, and dark where least: uint8 [h, w, 3]."""
  spread = values.max() - values.min()
  light = (values - values.min()) / spread if spread > 0 else np.ones_like(values)
  light = token_pictures.enlarge(light[:, :, None], size, "bilinear").reshape(*size, 1) / 255
  return np.rint(picture * (DARKEST + (1 - DARKEST) * light)).astype(np.uint8)


build = AttentionMaps
