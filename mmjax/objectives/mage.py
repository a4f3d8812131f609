"""MAGE: one encoder for representation and generation (Li et al. 2023, arXiv:2211.09117).

Images are the ids of a frozen tokenizer. A variable share of them is masked; the encoder gets all
but a fixed part of the masked ones, and a decoder predicts all that are masked. What has been
trained so also generates (`mmjax/generate/masked_iterative.py`): the feature "image/generated".
"""

import dataclasses
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax import masking
from mmjax.generate import masked_iterative
from mmjax.losses import classification as losses
from mmjax.masking.variable import VariableMask
from mmjax.models.mage import TokenHead
from mmjax.nn.names import within
from mmjax.objectives.contract import Objective, weigh
from mmjax.objectives.encoder import Encoder
from mmjax.parallel import mesh as mesh_lib

EXTRA = ("image/ids", "image/vocabulary", "image/reconstruction", "image/generated")


@dataclasses.dataclass(frozen=True)
class Mage(Objective):
  """Predicts the ids of masked tokens of `batch["image"]` [B, H, W, C].

  Parameters: "encoder", exactly those of the ViT, whose `token_embed` gives the logits too;
  "decoder"; "head" (`TokenHead`). State: {"encoder": {"tokenizer": its weights}}. The mask of a row
  follows from (seed, row) by the name "mask".

  Features in evaluation, nothing being masked: those of `Encoder`; if wanted "image/ids"
  int32 [B, N], "image/vocabulary" int32 [], how many ids there are, "image/reconstruction"
  float32 [B, H, W, C], what the tokenizer makes of the ids, and "image/generated", the same of ids
  that the model makes out of nothing: for each row another picture, which follows from (seed, row)
  by the name "generate" and has nothing to do with the row's own.

  Attributes:
    encoder: a `vit` with a `tokenizer`, and with a class token, which stands in the places of masked
      tokens in the decoder (sec. 3.2). A tokenizer that a run of the objective `tokenizer` has
      trained is {"name": "pretrained", "from": its workdir, "tower": "tokenizer"}.
    decoder: a `masked_decoder`.
    mask: which tokens are masked, and which of these the encoder still gets (`variable`).
    smoothing: of the labels.
    decoding_steps, temperature, choice_temperature: of what is generated, see
      `masked_iterative.decode`. The defaults are those of the published Fréchet distances (the
      command in the README of the released code).
  """

  encoder: nn.Module
  decoder: nn.Module
  mask: Any
  smoothing: float = 0.1
  decoding_steps: int = 20
  temperature: float = 1.0
  choice_temperature: float = 6.0

  def __post_init__(self):
    if getattr(self.encoder, "tokenizer", None) is None:
      raise ValueError("encoder.tokenizer: is missing; it makes the ids that are predicted")
    if not self.encoder.class_token or self.encoder.pool == "none":
      raise ValueError("encoder: needs class_token=True, which fills the masked places, and a pool")
    if self.mask.guided:
      raise ValueError(f"mask: goes by {self.mask.guided}, which ids do not have; take 'variable'")
    if not 0 <= self.smoothing < 1:
      raise ValueError(f"smoothing: must be at least 0 and below 1, not {self.smoothing}")
    if self.decoding_steps < 1:
      raise ValueError(f"decoding_steps: must be at least 1, not {self.decoding_steps}")
    if self.temperature <= 0:
      raise ValueError(f"temperature: must be positive, not {self.temperature}")
    if self.choice_temperature < 0:
      raise ValueError(f"choice_temperature: must not be negative, not {self.choice_temperature}")

  @property
  def tokenizer(self):
    return self.encoder.tokenizer

  @property
  def head(self) -> TokenHead:
    return TokenHead(self.encoder.dtype)

  def init(self, rng, batch):
    keys = jax.random.split(rng, 3)
    with within("encoder.tokenizer"):
      grid = self.tokenizer.grid_of(batch["image"].shape)
    with within("mask"):
      mask = jax.eval_shape(lambda: self.mask(jax.random.split(keys[0], 1), grid))
      masking.check_kind(mask, masking.Mask, VariableMask)
    variables = self.encoder.init(keys[0], batch["image"])
    encoder = mesh_lib.unbox(variables["params"])
    features = self._encode(encoder, jnp.zeros((len(batch["image"]), *grid), jnp.int32))
    decoder = self.decoder.init(keys[1], features, None, grid)["params"]
    hidden = self.decoder.apply({"params": mesh_lib.unbox(decoder)}, features, None, grid)
    head = self.head.init(keys[2], hidden, encoder["token_embed"])["params"]
    params = {"encoder": variables["params"], "decoder": decoder, "head": head}
    return params, {"encoder": variables["frozen"]}

  def forward(self, ctx, params, batch):
    if ctx.train:
      return self._masked_pass(ctx, params, batch), {}
    want = tuple(name for name in ctx.want if name not in EXTRA)
    own = dataclasses.replace(ctx, want=want, state={"model": ctx.state.get("encoder", {})})
    features, _ = Encoder(self.encoder).forward(own, params["encoder"], batch)
    grid = self.tokenizer.grid_of(batch["image"].shape)
    ids = lambda: self._ids(ctx.state, batch)
    extra = {"image/ids": ids,
             "image/vocabulary": lambda: jnp.int32(self.tokenizer.codes),
             "image/reconstruction": lambda: self.picture(ctx.state, ids(), grid),
             "image/generated": lambda: masked_iterative.pictures(
                 self, params, ctx.state, ctx.keys("generate", batch), grid,
                 steps=self.decoding_steps, temperature=self.temperature,
                 choice_temperature=self.choice_temperature)}
    return features | {name: extra[name]() for name in EXTRA if name in ctx.want}, {}

  def terms(self, ctx, params, features, batch):
    if not ctx.train:  # evaluators of features never pay for it
      features = self._masked_pass(ctx, params, batch)
    weight = features["masked"] & batch["valid"][:, None]
    return ({"cross_entropy": weigh(features["loss"], weight)},
            {"accuracy": weigh(features["correct"], weight)})

  def trivial(self, batch_size):
    """That of equal probabilities, the same with smoothed labels."""
    return {"cross_entropy": math.log(self.tokenizer.codes)}

  def logits(self, params, ids: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Of `ids` int32 [B, N], masked where they are K: float32 [B, N, K]. Nothing is dropped."""
    return self._predict(params, ids, ids == self.tokenizer.codes, grid)

  def picture(self, state, ids: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """What the tokenizer makes of `ids` int32 [B, N]: float32 [B, H, W, C].

    Raises:
      ValueError: it makes no pictures.
    """
    return self.tokenizer.picture(_weights(state), ids, grid)

  def _ids(self, state, batch):
    return self.tokenizer.ids(_weights(state), batch["image"])

  def _masked_pass(self, ctx, params, batch):
    grid = self.tokenizer.grid_of(batch["image"].shape)
    ids = jax.lax.stop_gradient(self._ids(ctx.state, batch))
    mask = self.mask(ctx.keys("mask", batch), grid)
    draws = functools.partial(ctx.keys, batch=batch) if ctx.train else None
    logits = self._predict(params, ids, mask.masked, grid, mask, draws)
    loss = losses.softmax_cross_entropy(logits, ids, self.smoothing if ctx.train else 0.0)
    correct = losses.top_k_correct(jax.lax.stop_gradient(logits), ids)
    return {"loss": loss, "correct": correct, "masked": mask.masked}

  def _predict(self, params, ids, masked, grid, mask=None, draws=None):
    """float32 [B, N, K]. The encoder gets `mask.keep`, or all; nobody sees `masked` ids.

    Args:
      draws: gives the keys [B] of a name; None where this is no training.
    """
    seen = jnp.where(masked, self.tokenizer.codes, ids).reshape(len(ids), *grid)
    keep = None if mask is None else mask.keep
    run = lambda name: {"keys": draws(name), "train": True} if draws else {}
    features = self._encode(params["encoder"], seen, keep=keep, **run("model"))
    tokens, filling = features["tokens"], features["prefix"][:, :1]
    if mask is not None:
      tokens = masking.restore(mask, tokens, filling)
    features = {**features, "tokens": jnp.where(masked[..., None], filling, tokens)}
    hidden = self.decoder.apply({"params": params["decoder"]}, features, mask, grid, **run("decoder"))
    return self.head.apply({"params": params["head"]}, hidden, params["encoder"]["token_embed"])

  def _encode(self, params, ids, **how):
    return self.encoder.apply({"params": params}, ids, want=("tokens", "prefix"), **how)[1]


def _weights(state):
  """Those of the tokenizer; a palette has none."""
  return state.get("encoder", {}).get("tokenizer", {})


build = Mage
