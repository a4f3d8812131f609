"""Contrastive image-text pretraining: CLIP (softmax), SigLIP (sigmoid), or a weighted sum of both.

The embeddings of all rows meet in one loss that is sharded over the mesh and never gathers a batch
(`mmjax/parallel/contrastive.py`).
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.dual_encoder import DualEncoder
from mmjax.objectives.contract import Objective, weigh
from mmjax.objectives.encoder import patches_of
from mmjax.parallel import contrastive as sharded

LOSSES = ("softmax", "sigmoid")


@dataclasses.dataclass(frozen=True)
class Contrastive(Objective):
  """Pairs of `image` [B, H, W, C] (or patches, see `Encoder`) and `text` [B, L] (`text_mask` bool [B, L]).

  Features: "image/embed" and "text/embed" float32 [B, D], unit norm; "logit_scale" [];
  "logit_bias" [] where there is one; and whatever else `DualEncoder` knows. A batch may lack a modality.

  State: nothing, or {"image": the tower's frozen networks}, see `ViT.tokenizer`.

  Attributes:
    image, text: the towers, ending in the same `out_dim`.
    losses: {"softmax" or "sigmoid": weight}.
    scale_init, scale_max, bias_init: as in `DualEncoder`.
  """

  image: nn.Module
  text: nn.Module
  losses: dict
  scale_init: float = 10.0
  scale_max: float | None = None
  bias_init: float | None = None

  def __post_init__(self):
    wrong = [name for name in self.losses if name not in LOSSES]
    if wrong or not self.losses:
      raise ValueError(f"losses: {wrong or 'none given'}; valid names: {', '.join(LOSSES)}")
    odd = [name for name, weight in self.losses.items() if not isinstance(weight, (int, float))]
    if odd:
      raise ValueError(f"losses.{odd[0]}: expected a number, its weight")
    if "sigmoid" in self.losses and self.bias_init is None:
      raise ValueError("bias_init: the sigmoid loss needs a bias (SigLIP starts at -10)")

  @property
  def model(self) -> DualEncoder:
    return DualEncoder(self.image, self.text, scale_init=self.scale_init, scale_max=self.scale_max,
                       bias_init=self.bias_init)

  @property
  def couples(self):
    bias = () if self.bias_init is None else ("logit_bias",)
    return ("image/embed", "text/embed", "logit_scale", *bias)

  def init(self, rng, batch):
    text_mask = batch.get("text_mask")
    variables = self.model.init(rng, batch["image"], batch["text"], text_mask, **patches_of(batch))
    return variables["params"], variables.get("frozen", {})

  def forward(self, ctx, params, batch):
    keys = ctx.keys("model", batch) if ctx.train else None

    def encode(params, **inputs):
      weights = {"params": params, "frozen": ctx.state}
      return self.model.apply(weights, **inputs, keys=keys, train=ctx.train, want=ctx.want)

    features = {}
    if "image" in batch:
      features = encode(params, batch_image=batch["image"], **patches_of(batch))
      if "text" in batch:
        # Backward, the text tower then comes first, and what it has stored is gone when the image
        # tower needs most. Left alone, the compiler may take them the other way round.
        features["image/embed"], text = jax.lax.optimization_barrier(
            (features["image/embed"], params["text"]))
        params = {**params, "text": text}
    if "text" in batch:
      features |= encode(params, text=batch["text"], text_mask=batch.get("text_mask"))
    return features, {}

  def couple(self, ctx, params, features, batch):
    image, text, valid = features["image/embed"], features["text/embed"], batch["valid"]
    scale, bias = features["logit_scale"], features.get("logit_bias")
    rows = {"softmax": lambda: sharded.softmax(image, text, scale, valid),
            "sigmoid": lambda: sharded.sigmoid(image, text, scale, bias, valid)}
    terms = {name: weigh(rows[name](), valid) for name in self.losses}
    metrics = {"logit_scale": weigh(scale), "pair_cosine": weigh(jnp.sum(image * text, -1), valid)}
    if bias is not None:
      metrics["logit_bias"] = weigh(bias)
    return terms, jax.lax.stop_gradient(metrics)

  def weights(self, step):
    return self.losses

  def trivial(self, batch_size):
    """The best that logits can do which are the same for all pairs: ln B, and that of p = 1 / B."""
    n = batch_size
    values = {"softmax": math.log(n), "sigmoid": math.log(n) + (n - 1) * math.log(n / max(n - 1, 1))}
    return {name: values[name] for name in self.losses}


build = Contrastive
