"""Joint embedding of views without negatives or teachers (VICReg, arXiv:2105.04906)."""

import dataclasses
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.losses import variance as losses
from mmjax.losses.prediction import l2
from mmjax.models.dual_encoder import unit
from mmjax.objectives import monitors
from mmjax.objectives.contract import Objective, weigh
from mmjax.parallel import mesh as mesh_lib


@dataclasses.dataclass(frozen=True)
class JointEmbedding(Objective):
  """`global_views` [B, V, H, W, C] of an image, V >= 2, whose embeddings are pulled together.

  VICReg's three terms: invariance, the mean squared difference of two views' embeddings; variance
  and covariance of the whole batch's, which keep them apart (`mmjax/losses/variance.py`). As in the
  released code, the variance term is the mean over views, the covariance term their sum.

  Features: "image/expanded" float32 [B, V, E]; "image/pooled" float32 [B, D], of the first view, and
  "image/embed", the same of unit norm; with what else the encoder knows. In evaluation a batch may
  have `image` [B, H, W, C] instead: one view.

  Parameters: "encoder" and "expander".

  Attributes:
    encoder: a module called as `ViT` is, with any pooling but "none".
    expander: a module from pooled features [B, D] to embeddings [B, E], such as `Expander`.
    invariance, variance, covariance: weights of the terms; 0 leaves one out.
  """

  encoder: nn.Module
  expander: nn.Module
  invariance: float = 25.0
  variance: float = 25.0
  covariance: float = 1.0

  couples = ("image/expanded", "image/pooled")

  def __post_init__(self):
    for name, weight in self._all_weights().items():
      if weight < 0:
        raise ValueError(f"{name}: must be 0 or more, not {weight}")
    if not self.invariance:
      raise ValueError("invariance: must be positive; without it nothing is learned from the views")
    if getattr(self.encoder, "pool", None) == "none":
      raise ValueError("encoder.pool: 'none' leaves nothing to embed; take 'mean' or 'cls'")

  def init(self, rng, batch):
    views = _views(batch)
    if views.shape[1] < 2:
      raise ValueError(f"data: one view an image has nothing to agree with; give global_views "
                       f"[B, V, H, W, C] with V = 2, not {list(views.shape)} (transform MultiCrop)")
    keys = jax.random.split(rng)
    encoder = self.encoder.init(keys[0], views[:, 0])["params"]
    pooled, _ = self.encoder.apply({"params": mesh_lib.unbox(encoder)}, views[:, 0])
    return {"encoder": encoder, "expander": self.expander.init(keys[1], pooled)["params"]}, {}

  def forward(self, ctx, params, batch):
    views = _views(batch)
    rows, count = views.shape[:2]
    keys = None
    if ctx.train:
      split = jax.vmap(lambda key: jax.random.split(key, count))
      keys = split(ctx.keys("model", batch)).reshape(-1)
    want = tuple(name.removeprefix("image/") for name in ctx.want
                 if name not in ("image/pooled", "image/embed", "image/expanded"))
    pooled, extra = self.encoder.apply({"params": params["encoder"]}, _join(views), keys=keys,
                                       train=ctx.train, want=want)
    expanded = self.expander.apply({"params": params["expander"]}, pooled)
    apart = lambda x: x.reshape(rows, count, *x.shape[1:])
    first = apart(pooled)[:, 0]
    features = {"image/pooled": first.astype(jnp.float32), "image/embed": unit(first),
                "image/expanded": apart(expanded).astype(jnp.float32)}
    return features | {f"image/{name}": apart(x)[:, 0] for name, x in extra.items()}, {}

  def terms(self, ctx, params, features, batch):
    views = jnp.moveaxis(features["image/expanded"], 1, 0)
    pairs = list(itertools.combinations(views, 2))
    if not pairs:
      return {}, {}
    loss = sum(l2(one, other) for one, other in pairs) / len(pairs)
    return {"invariance": weigh(loss, batch["valid"])}, {}

  def couple(self, ctx, params, features, batch):
    views, valid = jnp.moveaxis(features["image/expanded"], 1, 0), batch["valid"]
    terms = {}
    if self.variance:
      terms["variance"] = weigh(sum(losses.variance(view, valid) for view in views) / len(views))
    if self.covariance:
      terms["covariance"] = weigh(sum(losses.covariance(view, valid) for view in views))
    return terms, dict(monitors.of_features(ctx, features["image/pooled"], valid))

  def weights(self, step):
    return self._all_weights()

  def collapsed_below(self, batch_size):
    # Of a ViT, or of a CNN's last stage.
    width = getattr(self.encoder, "width", None) or self.encoder.widths[-1]
    return monitors.collapsed_below(batch_size, width)

  def _all_weights(self):
    return {name: getattr(self, name) for name in ("invariance", "variance", "covariance")}


def _views(batch):
  """The views [B, V, H, W, C]; an `image` without them is one."""
  if "global_views" in batch:
    return batch["global_views"]
  if "image" not in batch:
    raise ValueError(f"data: a batch of {sorted(batch)} has neither global_views nor image")
  return batch["image"][:, None]


def _join(views):
  """[B, V, ...] -> [B V, ...], the views of a row next to each other."""
  return mesh_lib.constrain(views.reshape(-1, *views.shape[2:]),
                            ("batch", *[None] * (views.ndim - 2)))


build = JointEmbedding
