"""An image encoder without a loss: what a pretrained trunk is before somebody gives it a task."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp

from mmjax.models.dual_encoder import unit
from mmjax.objectives.contract import Objective


def patches_of(batch):
  """What of a batch says how images given as patches are to be read; see `ViT`."""
  return {name: batch[name] for name in ("image_mask", "image_grid") if name in batch}


@dataclasses.dataclass(frozen=True)
class Encoder(Objective):
  """Features of `image` [B, H, W, C], or of patches with `image_mask` and `image_grid`.

  State: nothing, or {"model": the model's frozen networks}, see `ViT.tokenizer`.

  Features: "image/pooled" float32 [B, D]; "image/embed", the same of unit norm; "logits" float32
  [B, classes] where the model has a classifier; and what else the model knows ("image/...").

  Attributes:
    model: a module called as `ViT` is, with any pooling but "none".
  """

  model: nn.Module

  def init(self, rng, batch):
    variables = self.model.init(rng, batch["image"], **patches_of(batch))
    return variables["params"], {"model": variables["frozen"]} if "frozen" in variables else {}

  def forward(self, ctx, params, batch):
    keys = ctx.keys("model", batch) if ctx.train else None
    want = tuple(name.removeprefix("image/") for name in ctx.want
                 if name not in ("image/pooled", "image/embed"))
    weights = {"params": params, "frozen": ctx.state.get("model", {})}
    pooled, extra = self.model.apply(weights, batch["image"], keys=keys, train=ctx.train, want=want,
                                     **patches_of(batch))
    features = {"image/pooled": pooled.astype(jnp.float32), "image/embed": unit(pooled)}
    if "logits" in extra:
      features["logits"] = extra.pop("logits")
    return features | {f"image/{name}": value for name, value in extra.items()}, {}


build = Encoder
