"""Joint-embedding predictive architecture: parts of an image from other parts, in feature space.

  I-JEPA   regularise={}                                           arXiv:2301.08243
  C-JEPA   regularise={"invariance", "variance", "covariance"}     arXiv:2410.19560
"""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.losses import prediction as losses
from mmjax.losses import variance as batch_losses
from mmjax.nn.names import check_choice, within
from mmjax.nn.norm import normalise
from mmjax.objectives import monitors
from mmjax.objectives.contract import Objective, weigh
from mmjax.objectives.encoder import Encoder
from mmjax.optim import ema
from mmjax.parallel import mesh as mesh_lib

LOSSES = {"smooth_l1": losses.smooth_l1, "l2": losses.l2}
REGULARISERS = ("invariance", "variance", "covariance")
TARGET_NORM_EPS = 1e-5  # of the targets' layer norm, as in the released code


@dataclasses.dataclass(frozen=True)
class Jepa(Objective):
  """Predicts a teacher's tokens in blocks of `image` [B, H, W, C] from the tokens of a context.

  The encoder sees the context's patches only. Its teacher, an exponential moving average of it,
  sees the whole image; the targets are its tokens, layer-normalised without parameters. From the
  context's tokens a narrow predictor makes those of each target block.

  C-JEPA adds VICReg's terms for what has a gradient, the mean of the context's tokens and the mean
  of the predictions: variance and covariance over the whole batch, which collapsed features cannot
  satisfy; and invariance, the squared difference of the mean prediction and the mean target. That
  they are of these means is a reading that has not been compared with the authors' code. Variance
  and covariance are of training batches only: an evaluation's loss is without them.

  Features in evaluation, of the whole image: those of `Encoder`. In training "image/pooled" is the
  teacher's, for the collapse monitors.

  Parameters: "encoder" and "predictor"; teacher: "encoder".

  Attributes:
    encoder: a module called as `ViT` is, with pool "mean" or "cls".
    predictor: a module called as `Predictor` is.
    mask: gives `masking.multi_block.Blocks`.
    momentum: decay of the teacher, see `ema.from_config`.
    loss: "smooth_l1" (the released code) or "l2" (the paper's sec. 3).
    regularise: {"invariance", "variance" or "covariance": weight}.
    eval_with: "teacher" or "student", whose features evaluators get.
  """

  encoder: nn.Module
  predictor: nn.Module
  mask: Any
  momentum: dict
  loss: str = "smooth_l1"
  regularise: dict = dataclasses.field(default_factory=dict)
  eval_with: str = "teacher"

  def __post_init__(self):
    check_choice("loss", self.loss, LOSSES)
    check_choice("eval_with", self.eval_with, ("teacher", "student"))
    for name, weight in self.regularise.items():
      check_choice("regularise", name, REGULARISERS)
      if not isinstance(weight, (int, float)) or weight < 0:
        raise ValueError(f"regularise.{name}: its weight is a number of 0 or more, not {weight!r}")
    pool = getattr(self.encoder, "pool", "mean")
    if pool not in ("mean", "cls"):
      raise ValueError(f"encoder.pool: nothing here trains {pool!r}; take 'mean' or 'cls'")
    self._decay  # made here, so that what is wrong with it is wrong at once

  @functools.cached_property
  def _decay(self):
    return ema.from_config(self.momentum)

  @property
  def couples(self):
    coupled = "variance" in self.regularise or "covariance" in self.regularise
    return ("image/pooled", *(("context/mean", "prediction/mean") if coupled else ()))

  def init(self, rng, batch):
    keys = jax.random.split(rng)
    image = batch["image"]
    blocks, grid = self._blocks(jax.random.split(jax.random.key(0), len(image)), image)
    encoder = self.encoder.init(keys[0], image)["params"]
    _, extra = self.encoder.apply({"params": mesh_lib.unbox(encoder)}, image, keep=blocks.context,
                                  want=("tokens",))
    predictor = self.predictor.init(keys[1], extra["tokens"], *blocks, grid)["params"]
    return {"encoder": encoder, "predictor": predictor}, {}

  def forward(self, ctx, params, batch):
    if ctx.train:
      return self._predict(ctx, params, batch), {}
    encoder = ctx.teachers["encoder"] if self.eval_with == "teacher" else params["encoder"]
    return Encoder(self.encoder).forward(ctx, encoder, batch)

  def terms(self, ctx, params, features, batch):
    if not ctx.train:  # evaluators of features never pay for it
      features = self._predict(ctx, params, batch)
    prediction, target = features["prediction"], features["target"]
    each = LOSSES[self.loss](prediction, target)
    weight = jnp.broadcast_to(batch["valid"][:, None, None], each.shape)
    terms = {"prediction": weigh(each, weight)}
    if "invariance" in self.regularise:
      difference = losses.l2(features["prediction/mean"], features["target/mean"])
      terms["invariance"] = weigh(difference, batch["valid"])
    return terms, {}

  def couple(self, ctx, params, features, batch):
    valid, terms = batch["valid"], {}
    for name in ("variance", "covariance"):
      if name in self.regularise and ctx.train:
        loss = getattr(batch_losses, name)
        terms[name] = weigh(loss(features["context/mean"], valid)
                            + loss(features["prediction/mean"], valid))
    return terms, dict(monitors.of_features(ctx, features["image/pooled"], valid))

  def weights(self, step):
    return self.regularise

  def teachers(self, params):
    return {"encoder": params["encoder"]}

  def teacher_decay(self, step):
    return {"encoder": self._decay(step)}

  def trivial(self, batch_size):
    """That of predicting zero, the mean of what is layer-normalised."""
    return {"prediction": 1.0} if self.loss == "l2" else {}

  def collapsed_below(self, batch_size):
    return monitors.collapsed_below(batch_size, monitors.width_of(self.encoder))

  def _blocks(self, keys, image):
    with within("encoder"):
      grid = self.encoder.grid_of(image.shape)
    with within("mask"):
      blocks = self.mask(keys, grid)
      if not hasattr(blocks, "targets"):
        raise ValueError("name: gives one mask, but a context and target blocks are needed; take 'multi_block'")
    return blocks, grid

  def _predict(self, ctx, params, batch):
    """Predictions and targets [B, T, M, D], their means and the context's [B, D], and the teacher's
    pooled image."""
    image = batch["image"]
    blocks, grid = self._blocks(ctx.keys("mask", batch), image)
    keys = ctx.keys("model", batch) if ctx.train else None
    pooled, whole = jax.lax.stop_gradient(self.encoder.apply(
        {"params": ctx.teachers["encoder"]}, image, want=("tokens",)))
    tokens = normalise(whole["tokens"].astype(jnp.float32), TARGET_NORM_EPS)
    places = blocks.targets.reshape(len(image), -1, 1)
    target = jnp.take_along_axis(tokens, places, axis=1)
    target = target.reshape(*blocks.targets.shape, tokens.shape[-1])

    _, context = self.encoder.apply({"params": params["encoder"]}, image, keep=blocks.context,
                                    keys=keys, train=ctx.train, want=("tokens",))
    prediction = self.predictor.apply({"params": params["predictor"]}, context["tokens"], *blocks,
                                      grid, keys=ctx.keys("predictor", batch) if ctx.train else None,
                                      train=ctx.train)
    mean = lambda x: jnp.mean(x.astype(jnp.float32), axis=tuple(range(1, x.ndim - 1)))
    return {"image/pooled": pooled.astype(jnp.float32), "prediction": prediction, "target": target,
            "context/mean": mean(context["tokens"]), "prediction/mean": mean(prediction),
            "target/mean": mean(target)}


build = Jepa
