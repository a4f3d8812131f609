"""Ids of a frozen tokenizer as targets (BEiT, BEiT v2)."""

import dataclasses
import math
from typing import Any


@dataclasses.dataclass(frozen=True)
class Tokens:
  """int32 [B, N], the codes of `batch["image"]`; they are predicted with `loss="cross_entropy"`.

  Attributes:
    tokenizer: see `mmjax/models/vq.py`: one that a run of the objective `tokenizer` has trained, as
      {"name": "pretrained", "from": its workdir, "tower": "tokenizer"}, or {"name": "palette"}.
  """

  tokenizer: Any

  def init(self, rng, batch):
    return {"tokenizer": self.tokenizer.init(rng, batch["image"])}

  def size(self, batch, grid):
    """How many codes there are; ValueError where there is not one a token of the encoder."""
    theirs = self.tokenizer.grid_of(batch["image"].shape)
    if tuple(theirs) != tuple(grid):
      theirs, ours = ("x".join(map(str, sides)) for sides in (theirs, grid))
      raise ValueError(f"target.tokenizer: makes {theirs} tokens of a picture, but the encoder "
                       f"{ours}; let encoder.patch be what the tokenizer's is")
    return self.tokenizer.codes

  def __call__(self, state, batch, grid, guide=None):
    if guide is not None:
      raise ValueError(f"target: tokens have no {guide} for the mask to go by; take a mask that is "
                       "not guided")
    self.size(batch, grid)  # raises where the grids differ
    return self.tokenizer.ids(state["tokenizer"], batch["image"]), None

  def trivial(self, loss):
    """That of equal probabilities."""
    return math.log(self.tokenizer.codes) if loss == "cross_entropy" else None

  def picture(self, state, ids, grid):
    """int32 [B, N] -> float32 [B, H, W, C], what the tokenizer makes of them.

    Raises:
      ValueError: it makes no pictures.
    """
    return self.tokenizer.picture(state["tokenizer"], ids, grid)


build = Tokens
