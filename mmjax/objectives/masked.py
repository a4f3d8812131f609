"""Masked prediction: part of the input is hidden, and what belongs there is predicted.

A method is a mask (`mmjax/masking`), a target (`mmjax/targets`) and the way of hiding:

  MAE          hide="drop", decoder, target pixels        arXiv:2111.06377
  SimMIM       hide="token", linear head, target pixels   arXiv:2111.09886
  BEiT v2      hide="token", target tokens                arXiv:2208.06366
  EVA          hide="token", target features              arXiv:2211.07636
  UTA          hide="drop", predict="seen", target features: nothing is reconstructed
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.losses import prediction as losses
from mmjax.losses.classification import softmax_cross_entropy
from mmjax.nn.linear import Linear
from mmjax.nn.names import check_choice
from mmjax.nn.patch import unpatchify
from mmjax.objectives.contract import Objective, weigh
from mmjax.objectives.encoder import Encoder
from mmjax.parallel import mesh as mesh_lib

LOSSES = {"l2": losses.l2, "l1": losses.l1, "smooth_l1": losses.smooth_l1, "cosine": losses.cosine,
          "cross_entropy": softmax_cross_entropy}
PREDICTION = "prediction"  # name of the only prediction, and of its loss term
PICTURES = ("reconstruction", "masked")


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
  """Hides tokens of `batch[input]` from the encoder and predicts their targets.

  Parameters: "encoder", exactly those of the encoder; "decoder"; "head". State: {"target": that of
  the target}. The mask of a row follows from (seed, row) by the name "mask".

  Features in evaluation, of the whole input: those of `Encoder` ("image/pooled", "image/embed", and
  what else is wanted), under the name of the input. If wanted, and the target can be seen as pixels:
  "image/reconstruction" [B, H, W, C], the input with predictions where it was masked, and
  "image/masked" bool [B, H, W, 1], these places; alike "video/...".

  Attributes:
    encoder: a module called as `ViT` is, with any pooling but "none".
    mask: which tokens are hidden.
    target: what is predicted.
    decoder: a module on the encoder's tokens (see `MaskedDecoder.__call__`): None for none.
      What it gives is [B, N, D], or [B, K, D] of the seen tokens alone with `hide="drop"` and
      `predict="seen"`; or a dict of such, each of which is a loss term of that name.
    hide: "drop": the encoder gets the seen tokens only; "token": it gets all, the hidden ones
      replaced by a mask token before their positions are added (`encoder.mask_token`).
    predict: for which tokens: "masked", "seen" or "all".
    loss: a name of `LOSSES`; "cross_entropy" where targets are ids.
    head: a linear layer makes the predictions, one for all the decoder gives; False: the decoder's
      are the predictions.
    input: the batch's key, "image" or "video".
  """

  encoder: nn.Module
  mask: Any
  target: Any
  decoder: nn.Module | None = None
  hide: str = "drop"
  predict: str = "masked"
  loss: str = "l2"
  head: bool = True
  input: str = "image"

  def __post_init__(self):
    check_choice("hide", self.hide, ("drop", "token"))
    check_choice("predict", self.predict, ("masked", "seen", "all"))
    check_choice("loss", self.loss, LOSSES)
    if self.encoder.pool == "none":
      raise ValueError("encoder.pool: 'none' leaves no image to evaluate; take 'mean' or 'cls'")
    if self.encoder.mask_token != (self.hide == "token"):
      raise ValueError(f"encoder.mask_token: {self.encoder.mask_token} with hide={self.hide!r}; "
                       "hide='token' needs it, hide='drop' has no use for it")
    if self.hide == "drop" and self.predict != "seen" and self.decoder is None:
      raise ValueError(f"decoder: is missing; with hide='drop' and predict={self.predict!r} somebody "
                       "must make tokens for what the encoder did not see")

  def init(self, rng, batch):
    keys = jax.random.split(rng, 4)
    params = {"encoder": self.encoder.init(keys[0], batch[self.input])["params"]}
    state = {"target": self.target.init(keys[1], batch)}
    grid = self.encoder.grid_of(batch[self.input].shape)
    mask = self._any_mask(batch, grid)
    x = self._encode(mesh_lib.unbox(params), batch, mask)
    if self.decoder is not None:
      params["decoder"] = self.decoder.init(keys[2], x, mask, grid)["params"]
      x = self.decoder.apply({"params": mesh_lib.unbox(params["decoder"])}, x, mask, grid)
    else:
      x = x["tokens"]
    if self.head:
      tokens = jax.tree.leaves(x)[0]
      params["head"] = self._head(batch, grid, tokens.dtype).init(keys[3], tokens)["params"]
    return params, state

  def forward(self, ctx, params, batch):
    if ctx.train:
      return self._masked_pass(ctx, params, batch), {}
    features = self._whole(ctx, params, batch)
    if any(name in ctx.want for name in self._named(PICTURES)):
      features |= self._pictures(ctx, params, batch)
    return features, {}

  def terms(self, ctx, params, features, batch):
    if not ctx.train:  # evaluators of features never pay for it
      features = self._masked_pass(ctx, params, batch)
    weight = jnp.broadcast_to(batch["valid"][:, None], features["places"].shape)
    loss, target = LOSSES[self.loss], features["target"]
    terms = {name: weigh(loss(x, target), weight) for name, x in features["predictions"].items()}
    return terms, {}

  def trivial(self, batch_size):
    value = getattr(self.target, "trivial", lambda loss: None)(self.loss)
    return {} if value is None else {PREDICTION: value}

  def _masked_pass(self, ctx, params, batch):
    """Predictions {name: [B, P, d]} and target [B, P, d] (ids: [B, P]) of `places` int32 [B, P], and
    `masked` bool [B, N]."""
    grid = self.encoder.grid_of(batch[self.input].shape)
    target, guide = jax.lax.stop_gradient(
        self.target(ctx.state["target"], batch, grid, self.mask.guided))
    mask = self.mask(ctx.keys("mask", batch), grid, guide)
    keys = ctx.keys("model", batch) if ctx.train else None
    x = self._encode(params, batch, mask, keys, ctx.train)
    if self.decoder is None:
      x = x["tokens"]
    else:
      x = self.decoder.apply({"params": params["decoder"]}, x, mask, grid, keys=keys, train=ctx.train)
    x = x if isinstance(x, dict) else {PREDICTION: x}
    places = self._places(mask)
    if self.predict != "all" and (self.hide, self.predict) != ("drop", "seen"):
      x = {name: _take(tokens, places) for name, tokens in x.items()}
    if self.head:
      head = functools.partial(self._head(batch, grid, jax.tree.leaves(x)[0].dtype).apply,
                               {"params": params["head"]})
      x = {name: head(tokens) for name, tokens in x.items()}
    return {"predictions": x, "target": _take(target, places), "places": places,
            "masked": mask.masked}

  def _any_mask(self, batch, grid):
    """One of the right shape, for `init`."""
    x = batch[self.input]
    keys = jax.random.split(jax.random.key(0), len(x))
    guide = jnp.zeros((len(x), math.prod(grid))) if self.mask.guided else None
    return self.mask(keys, grid, guide)

  def _encode(self, params, batch, mask, keys=None, train=False):
    """The encoder's features of what it sees: "tokens" [B, K or N, D], "prefix" and what the decoder
    asks for (`decoder.want`)."""
    hidden = {"keep": mask.keep} if self.hide == "drop" else {"masked": mask.masked}
    want = ("tokens", "prefix", *getattr(self.decoder, "want", ()))
    _, features = self.encoder.apply({"params": params["encoder"]}, batch[self.input], keys=keys,
                                     train=train, want=want, **hidden)
    return features

  def _head(self, batch, grid, dtype):
    axis = "vocab" if self.loss == "cross_entropy" else "prediction"
    return Linear((self.target.size(batch, grid),), ("embed", axis), dtype=str(dtype))

  def _places(self, mask):
    """The tokens that are predicted, int32 [B, P]."""
    if self.predict == "masked":
      return mask.drop
    if self.predict == "seen":
      return mask.keep
    size = mask.masked.shape
    return jnp.broadcast_to(jnp.arange(size[1], dtype=jnp.int32), size)

  def _whole(self, ctx, params, batch):
    """The features of `Encoder`, under the name of the input."""
    pictures = self._named(PICTURES)
    want = tuple(name.replace(f"{self.input}/", "image/", 1) for name in ctx.want
                 if name not in pictures)
    features, _ = Encoder(self.encoder).forward(
        dataclasses.replace(ctx, want=want), params["encoder"], {**batch, "image": batch[self.input]})
    return {name.replace("image/", f"{self.input}/", 1): x for name, x in features.items()}

  def _pictures(self, ctx, params, batch):
    """What `PICTURES` names; see the class."""
    if not hasattr(self.target, "pixels"):
      raise ValueError("target: is not pixels, so there is no reconstruction to see")
    image = batch[self.input]
    grid = self.encoder.grid_of(image.shape)
    found = self._masked_pass(ctx, params, batch)
    prediction, places = found["predictions"][PREDICTION], found["places"]
    rows = jnp.arange(len(places))[:, None]
    every = jnp.zeros((*found["masked"].shape, prediction.shape[-1]), jnp.float32)
    every = every.at[rows, places].set(prediction.astype(jnp.float32))
    patch = [side // count for side, count in zip(image.shape[1:-1], grid)]
    masked = found["masked"].reshape(*found["masked"].shape, *[1] * (len(patch) + 1))
    masked = unpatchify(jnp.broadcast_to(masked, (*masked.shape[:2], *patch, 1)), grid)
    picture = jnp.where(masked, self.target.pixels(every, batch, grid), image)
    return dict(zip(self._named(PICTURES), (picture, masked)))

  def _named(self, names):
    return tuple(f"{self.input}/{name}" for name in names)


def _take(x, places):
  """[B, N, ...] at int32 [B, P]."""
  return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)


build = Masked
