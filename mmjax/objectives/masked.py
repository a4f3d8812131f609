"""Masked prediction: part of the input is hidden, and what belongs there is predicted.

A method is a mask (`mmjax/masking`), a target (`mmjax/targets`) and the way of hiding:

  MAE          hide="drop", decoder, target pixels        arXiv:2111.06377
  SimMIM       hide="token", linear head, target pixels   arXiv:2111.09886
  BEiT v2      hide="token", target tokens                arXiv:2208.06366
  EVA          hide="token", target features              arXiv:2211.07636
  UTA          hide="drop", predict="seen", target features: nothing is reconstructed
  HPM          as MAE, with a mask that goes by the loss which `loss_predictor` expects
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import masking
from mmjax.losses import prediction as losses
from mmjax.losses.classification import softmax_cross_entropy
from mmjax.nn.linear import Linear
from mmjax.nn.names import check_choice, within
from mmjax.nn.patch import unpatchify
from mmjax.objectives.contract import Objective, weigh
from mmjax.objectives.encoder import Encoder
from mmjax.optim import ema
from mmjax.parallel import mesh as mesh_lib

LOSSES = {"l2": losses.l2, "l1": losses.l1, "smooth_l1": losses.smooth_l1, "cosine": losses.cosine,
          "cross_entropy": softmax_cross_entropy}
PREDICTION = "prediction"  # name of the only prediction, and of its loss term
PICTURES = ("reconstruction", "masked", "unlearned")
TEACHER = "guide"  # the average of encoder and loss predictor, by which the mask goes (HPM)


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
  """Hides tokens of `batch[input]` from the encoder and predicts their targets.

  Parameters: "encoder", exactly those of the encoder; "decoder"; "head". State: {"target": that of
  the target}. The mask of a row follows from (seed, row) by the name "mask".

  Features in evaluation, of the whole input: those of `Encoder` ("image/pooled", "image/embed", and
  what else is wanted), under the name of the input. If wanted, and if the target is pixels:
  "image/reconstruction" [B, H, W, C], the input with predictions where it was masked, and
  "image/masked" bool [B, H, W, 1], these places, and "image/unlearned" [B, H, W, C], the same with
  predictions of zero; alike "video/...".

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
    loss_predictor: a decoder like `decoder`, of which a linear layer makes one number a token that
      ranks the tokens by their loss (HPM, arXiv:2304.05919, sec. 3). It goes with a mask that is
      guided by "loss": that of the average of encoder and predictor, on the whole input.
    momentum: how fast that average follows, see `optim/ema.py: from_config`.
    beta: of "smooth_l1".
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
  loss_predictor: nn.Module | None = None
  momentum: dict = dataclasses.field(default_factory=lambda: {"start": 0.999}, hash=False)
  beta: float = 1.0

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
      raise ValueError(f"decoder: is missing; with hide='drop' and predict={self.predict!r} it makes "
                       "the tokens that the encoder did not see")
    if (self.mask.guided == "loss") != (self.loss_predictor is not None):
      raise ValueError("loss_predictor: goes with a mask guided by 'loss', and only with it; this one "
                       f"is guided by {self.mask.guided!r}")
    if self.loss_predictor is not None and self.predict != "masked":
      raise ValueError(f"predict: {self.predict!r}; loss_predictor ranks the masked tokens")
    if self.beta <= 0:
      raise ValueError(f"beta: must be positive, not {self.beta}")
    ema.from_config(self.momentum)

  @property
  def vocabularies(self):
    """{path in the config: ids that it has embeddings for}, of a text tower of the target."""
    found = getattr(self.target, "vocabularies", {})
    return {f"target.{path}": size for path, size in found.items()}

  def init(self, rng, batch):
    keys = jax.random.split(rng, 6)
    with within("encoder"):
      grid = self.encoder.grid_of(batch[self.input].shape)
    params = {"encoder": self.encoder.init(keys[0], batch[self.input])["params"]}
    state = {"target": self.target.init(keys[1], batch)}
    mask = self._any_mask(batch, grid)
    features = self._encode(mesh_lib.unbox(params), batch, mask)

    def add(name, module, key, *args):
      params[name] = module.init(key, *args)["params"]
      return module.apply({"params": mesh_lib.unbox(params[name])}, *args)

    tokens = features["tokens"]
    if self.decoder is not None:
      tokens = jax.tree.leaves(add("decoder", self.decoder, keys[2], features, mask, grid))[0]
    if self.head:
      add("head", self._head(batch, grid, tokens.dtype), keys[3], tokens)
    self._check_target(mesh_lib.unbox(state["target"]), batch, grid, tokens)
    if self.loss_predictor is not None:
      tokens = add("loss_predictor", self.loss_predictor, keys[4], features, mask, grid)
      add("loss_head", _loss_head(tokens.dtype), keys[5], tokens)
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
    costs = {name: self._loss(x, features["target"]) for name, x in features["predictions"].items()}
    terms = {name: weigh(cost, weight) for name, cost in costs.items()}
    if self.loss_predictor is not None:
      ranking = losses.ranking(features["expected"], costs[PREDICTION])
      terms["ranking"] = weigh(ranking, batch["valid"])
    return terms, {}

  def teachers(self, params):
    if self.loss_predictor is None:
      return {}
    return {TEACHER: {name: params[name] for name in ("encoder", "loss_predictor", "loss_head")}}

  def teacher_decay(self, step):
    return {} if self.loss_predictor is None else {TEACHER: ema.from_config(self.momentum)(step)}

  def trivial(self, batch_size):
    value = getattr(self.target, "trivial", lambda loss: None)(self.loss)
    return {} if value is None else {PREDICTION: value}

  def _loss(self, prediction, target):
    if self.loss == "smooth_l1":
      return losses.smooth_l1(prediction, target, self.beta)
    return LOSSES[self.loss](prediction, target)

  def _masked_pass(self, ctx, params, batch):
    """Predictions {name: [B, P, d]} and target [B, P, d] (ids: [B, P]) of `places` int32 [B, P];
    `masked` bool [B, N]; with a loss predictor what it expects there, float32 [B, P]."""
    grid = self.encoder.grid_of(batch[self.input].shape)
    target, mask = self._hide(ctx, batch, grid)
    keys = functools.partial(ctx.keys, batch=batch) if ctx.train else lambda name: None
    features = self._encode(params, batch, mask, keys("model"), ctx.train)
    run = dict(keys=keys("decoder"), train=ctx.train)
    x = features["tokens"] if self.decoder is None else (
        self.decoder.apply({"params": params["decoder"]}, features, mask, grid, **run))
    x = x if isinstance(x, dict) else {PREDICTION: x}
    places = self._places(mask)
    if (self.hide, self.predict) != ("drop", "seen"):  # else there are no others
      x = {name: _take(tokens, places) for name, tokens in x.items()}
    if self.head:
      head = functools.partial(self._head(batch, grid, jax.tree.leaves(x)[0].dtype).apply,
                               {"params": params["head"]})
      x = {name: head(tokens) for name, tokens in x.items()}
    result = {"predictions": x, "target": _take(target, places), "places": places,
              "masked": mask.masked}
    if self.loss_predictor is not None:
      result["expected"] = _take(self._expect(params, features, mask, grid, **run), places)
    return result

  def _hide(self, ctx, batch, grid):
    """The targets of all tokens, and the mask; without gradient."""
    guided = self.mask.guided
    keys = ctx.keys("mask", batch)
    if guided == "loss":
      target, _ = self.target(ctx.state["target"], batch, grid)
      teacher = ctx.teachers[TEACHER]
      features = self._encode(teacher, batch)
      expected = self._expect(teacher, features, None, grid)
      mask = self.mask(keys, grid, jax.lax.stop_gradient(expected), ctx.step if ctx.train else None)
    else:
      target, guide = self.target(ctx.state["target"], batch, grid, guided)
      mask = self.mask(keys, grid, guide)
    return jax.lax.stop_gradient(target), mask

  def _expect(self, params, features, mask, grid, **run):
    """The loss of each token that the loss predictor expects, on any scale: float32 [B, N]."""
    x = self.loss_predictor.apply({"params": params["loss_predictor"]}, features, mask, grid, **run)
    x = _loss_head(x.dtype).apply({"params": params["loss_head"]}, x)
    return x[..., 0].astype(jnp.float32)

  def _check_target(self, state, batch, grid, tokens):
    """Raises ValueError where target, decoder and mask do not go together; nothing is computed."""
    size = self.target.size(batch, grid)
    if not self.head and tokens.shape[-1] != size:
      raise ValueError(f"decoder: gives {tokens.shape[-1]} numbers a token where the target has {size}; "
                       "let it give as many, or take head=True")
    if getattr(self.target, "text", None) is not None and self.mask.guided != "text":
      raise ValueError("target.text: only a mask guided by 'text' has a use for it, and this one is "
                       f"guided by {self.mask.guided!r}; leave it out, or take mask.name='text_guided'")
    if self.mask.guided not in (None, "loss"):
      jax.eval_shape(lambda: self.target(state, batch, grid, self.mask.guided))

  def _any_mask(self, batch, grid):
    """One of the right shape, for `init`."""
    x = batch[self.input]
    keys = jax.random.split(jax.random.key(0), len(x))
    guide = jnp.zeros((len(x), math.prod(grid))) if self.mask.guided else None
    with within("mask"):
      mask = self.mask(keys, grid, guide)
      masking.check_kind(mask, masking.Mask)
    return mask

  def _encode(self, params, batch, mask=None, keys=None, train=False):
    """The encoder's features of what it sees, without a mask of all: "tokens" [B, K or N, D],
    "prefix" [B, P, D] and what the decoder asks for (`decoder.want`)."""
    hidden = {} if mask is None else (
        {"keep": mask.keep} if self.hide == "drop" else {"masked": mask.masked})
    want = ("tokens", "prefix", *getattr(self.decoder, "want", ()))
    _, features = self.encoder.apply({"params": params["encoder"]}, batch[self.input], keys=keys,
                                     train=train, want=want, **hidden)
    return features

  def _head(self, batch, grid, dtype):
    """Logits are float32 whatever the tokens are: with thousands of ids bfloat16 would blur their loss."""
    ids = self.loss == "cross_entropy"
    return Linear((self.target.size(batch, grid),), ("embed", "vocab" if ids else "prediction"),
                  dtype="float32" if ids else str(dtype))

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
    ctx = dataclasses.replace(ctx, want=want)
    features, _ = Encoder(self.encoder).forward(
        ctx, params["encoder"], {**batch, "image": batch[self.input]})
    return {name.replace("image/", f"{self.input}/", 1): x for name, x in features.items()}

  def _pictures(self, ctx, params, batch):
    """What `PICTURES` names; see the class."""
    if self.predict == "seen" or not hasattr(self.target, "pixels"):
      raise ValueError("there is no reconstruction to see: the objective predicts no masked pixels")
    image = batch[self.input]
    grid = self.encoder.grid_of(image.shape)
    found = self._masked_pass(ctx, params, batch)
    prediction, places = found["predictions"][PREDICTION], found["places"]
    nothing = jnp.zeros((*found["masked"].shape, prediction.shape[-1]), jnp.float32)
    rows = jnp.arange(len(places))[:, None]
    every = nothing.at[rows, places].set(prediction.astype(jnp.float32))
    patch = [side // count for side, count in zip(image.shape[1:-1], grid)]
    masked = found["masked"].reshape(*found["masked"].shape, *[1] * (len(patch) + 1))
    masked = unpatchify(jnp.broadcast_to(masked, (*masked.shape[:2], *patch, 1)), grid)
    made = lambda prediction: jnp.where(masked, self.target.pixels(prediction, batch, grid), image)
    return dict(zip(self._named(PICTURES), (made(every), masked, made(nothing))))

  def _named(self, names):
    return tuple(f"{self.input}/{name}" for name in names)


def _loss_head(dtype):
  """Without a bias: it would change no ranking."""
  return Linear((1,), ("embed", "prediction"), use_bias=False, dtype=str(dtype))


def _take(x, places):
  """[B, N, ...] at int32 [B, P]."""
  return jnp.take_along_axis(x, places.reshape(*places.shape, *[1] * (x.ndim - 2)), axis=1)


build = Masked
