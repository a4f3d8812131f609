"""Supervised image classification with softmax cross-entropy."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.losses import classification as losses
from mmjax.objectives.contract import Objective, weigh


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
  """`image` [B, H, W, C] to one of `model.classes` labels, `batch[label]` int32 [B]; negative ones are left out.

  Features: "logits" float32 [B, classes], "image/pooled" float32 [B, D], and what else the model knows ("image/...").

  Attributes:
    model: an image encoder with `classes` outputs.
    label: the batch's key of labels.
    smoothing: label smoothing (Szegedy et al. 2016, arXiv:1512.00567, sec. 7).
  """

  model: nn.Module
  label: str = "label"
  smoothing: float = 0.0

  def __post_init__(self):
    if not getattr(self.model, "classes", None):
      raise ValueError("model.classes: the number of classes is missing")

  def init(self, rng, batch):
    return self.model.init(rng, batch["image"])["params"], {}

  def forward(self, ctx, params, batch):
    keys = ctx.keys("model", batch) if ctx.train else None
    want = tuple(name.removeprefix("image/") for name in ctx.want if name != "image/pooled")
    pooled, extra = self.model.apply({"params": params}, batch["image"], keys=keys, train=ctx.train,
                                     want=want)
    logits = extra.pop("logits")
    features = {f"image/{name}": value for name, value in extra.items()}
    return {**features, "image/pooled": pooled.astype(jnp.float32), "logits": logits}, {}

  def terms(self, ctx, params, features, batch):
    labels = batch[self.label]
    counts = batch["valid"] & (labels >= 0)
    smoothing = self.smoothing if ctx.train else 0.0
    loss = losses.softmax_cross_entropy(features["logits"], labels, smoothing)
    correct = jax.lax.stop_gradient(losses.top_k_correct(features["logits"], labels))
    return {"cross_entropy": weigh(loss, counts)}, {"accuracy": weigh(correct, counts)}

  def trivial(self, batch_size):
    return {"cross_entropy": math.log(self.model.classes)}


build = Classification
