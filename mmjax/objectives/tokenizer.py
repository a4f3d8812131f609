"""Training of an image tokenizer: pictures become codes, and the codes are to tell what they were.

  VQ-VAE   conv_encoder, conv_decoder, losses {"l2": 1}                  arXiv:1711.00937
  VQGAN    the same with critic=patch_critic                             arXiv:2012.09841
  VQ-KD    vit, token_decoder, normalise, target features of a teacher,  arXiv:2208.06366, sec. 2.2
           losses {"cosine": 1}
"""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.losses import adversarial, prediction
from mmjax.models.vq import VQ
from mmjax.nn import quantize
from mmjax.nn.names import check_choice
from mmjax.objectives.contract import Objective, Term, weigh

LOSSES = {"l1": prediction.l1, "l2": prediction.l2, "cosine": prediction.cosine}
SLOT = "revive_slot"  # what `augment` adds to a batch


@dataclasses.dataclass(frozen=True)
class Tokenizer(Objective):
  """loss = sum of `losses` + commitment * |z - sg(e)|^2 (VQ-VAE, eq. 3), codes by moving averages.

  Parameters: "tokenizer", those of `VQ` without its codes; "critic". State: "tokenizer" {"codes"};
  "uses", the averages that the codes follow from; "target", that of the target.

  Features in evaluation: "image/pooled" and "image/embed" of the encoder; if wanted "image/tokens"
  [B, N, D], "image/ids" int32 [B, N], "image/vocabulary" int32 [] (how many codes there are), and,
  where the decoder makes pictures, "image/reconstruction" float32 [B, H, W, C].

  Attributes:
    tokenizer: encoder, codebook and decoder.
    target: what the decoder is to give, one vector a token; None for the picture itself.
    losses: {name of `LOSSES`: weight}, between what the decoder gives and the target.
    commitment: weight of the commitment loss.
    decay: of the codes' moving averages (gamma in VQ-VAE, app. A.1, and VQ-VAE-2).
    revive: how many dead codes a step may at most begin anew, each as an encoder output of another
      row of the batch; 0 for none.
    revive_below: a code is dead whose average use is below this share of that of all codes.
    critic: a discriminator of pictures, [B, H, W, C] -> [B, h, w]; None for none.
    adversarial: weight of the generator's loss, where there is a critic.
    adversarial_from_steps: both adversaries begin to learn from each other after so many steps.
  """

  tokenizer: VQ
  target: Any = None
  losses: dict = dataclasses.field(default_factory=lambda: {"l2": 1.0})
  commitment: float = 0.25
  decay: float = 0.99
  revive: int = 256
  revive_below: float = 0.02
  critic: nn.Module | None = None
  adversarial: float = 0.1
  adversarial_from_steps: int = 0

  def __post_init__(self):
    for name in self.losses:
      check_choice("losses", name, LOSSES)
    if not self.losses:
      raise ValueError(f"losses: none given; valid names: {', '.join(LOSSES)}")
    if not 0 <= self.decay < 1:
      raise ValueError(f"decay: must be at least 0 and below 1, not {self.decay}")
    if not 0 <= self.revive_below < 1:
      raise ValueError(f"revive_below: must be at least 0 and below 1, not {self.revive_below}")
    for name in ("revive", "commitment", "adversarial", "adversarial_from_steps"):
      if getattr(self, name) < 0:
        raise ValueError(f"{name}: must not be negative, but is {getattr(self, name)}")
    if self.critic is not None and self.target is not None:
      raise ValueError("critic: judges pictures, and the decoder is to give the target's features; "
                       "leave one of them out")
    if getattr(self.target, "text", None) is not None:
      raise ValueError("target.text: is for a mask that goes by the text, and nothing is masked here; "
                       "leave it out")

  def init(self, rng, batch):
    keys = jax.random.split(rng, 3)
    weights = self.tokenizer.init(keys[0], batch["image"])
    codes = weights.pop("codes")
    params = {"tokenizer": weights}
    state = {"tokenizer": {"codes": codes},
             "uses": {"count": jnp.zeros(len(codes)), "sum": jnp.zeros_like(codes)}}
    if self.critic is not None:
      params["critic"] = self.critic.init(keys[1], batch["image"])["params"]
    if self.target is not None:
      state["target"] = self.target.init(keys[2], batch)
    self._check_decoder(weights, batch)
    return params, state

  def augment(self, ctx, batch):
    """Gives each row a place in a random order of the batch in which the valid ones come first.

    So the sum over rows of what each puts into its own place is a list of single encoder outputs.
    """
    draw = jax.vmap(jax.random.uniform)(ctx.keys("revive", batch))
    order = jnp.argsort(jnp.where(batch["valid"], draw, jnp.inf))
    return {**batch, SLOT: jnp.argsort(order).astype(jnp.int32)}

  def forward(self, ctx, params, batch):
    if ctx.train:
      return self._pass(ctx, params, batch)
    weights = self._weights(ctx, params)
    pooled, tokens, vectors = self.tokenizer.encode(weights, batch["image"])
    ids = quantize.nearest(vectors, weights["codes"])
    features = {"image/pooled": pooled.astype(jnp.float32), "image/embed": quantize.unit(pooled)}
    grid = self.tokenizer.grid_of(batch["image"].shape)
    extra = {"image/tokens": lambda: tokens, "image/ids": lambda: ids,
             "image/vocabulary": lambda: jnp.int32(self.tokenizer.codes),
             "image/reconstruction": lambda: self.tokenizer.picture(weights, ids, grid)}
    for name in ctx.want:
      check_choice("want", name, (*features, *extra))
    return features | {name: extra[name]() for name in extra if name in ctx.want}, {}

  def terms(self, ctx, params, features, batch):
    if not ctx.train:  # evaluators of features never pay for it
      features = self._pass(ctx, params, batch)[0]

    def term(values):
      return weigh(values, jnp.broadcast_to(
          batch["valid"].reshape(-1, *[1] * (values.ndim - 1)), values.shape))

    made, wanted = features["made"], features["wanted"]
    terms = {name: term(LOSSES[name](made, wanted)) for name in self.losses}
    terms["commitment"] = term(prediction.l2(features["vectors"], features["chosen"]))
    if self.critic is not None:
      terms["adversarial"] = term(adversarial.generator(features["fooled"]))
      terms["critic/real"] = term(adversarial.hinge_real(features["real"]))
      terms["critic/fake"] = term(adversarial.hinge_fake(features["fake"]))
    return terms, {}

  def couple(self, ctx, params, features, batch):
    """No term, but once a step how many codes are in use, by the averages before it."""
    count, one = ctx.state["uses"]["count"], jnp.float32(1)
    used = jnp.mean(count > self.revive_below * jnp.mean(count))
    return {}, {"codes_perplexity": Term(quantize.perplexity(count), one),
                "codes_used": Term(used, one)}

  def update(self, ctx, stats):
    uses = ctx.state["uses"]
    book = quantize.Codebook(ctx.state["tokenizer"]["codes"], uses["count"], uses["sum"])
    book = quantize.moved(book, stats["count"], stats["sum"], self.decay, self.tokenizer.normalise)
    if self.revive:
      book = quantize.revived(book, stats["candidates"], stats["rows"], self.revive_below)
    return {**ctx.state, "tokenizer": {"codes": book.codes},
            "uses": {"count": book.count, "sum": book.sum}}

  def weights(self, step):
    begun = jnp.where(step >= self.adversarial_from_steps, 1.0, 0.0)
    # Half of each: the critic's loss is the mean over both kinds (VQGAN's code).
    critic = {"adversarial": self.adversarial * begun, "critic/real": 0.5 * begun,
              "critic/fake": 0.5 * begun} if self.critic is not None else {}
    return {**self.losses, "commitment": self.commitment, **critic}

  def _pass(self, ctx, params, batch):
    """Features and statistics of the whole way: encoder, codes, decoder, critic."""
    weights, image = self._weights(ctx, params), batch["image"]
    keys = ctx.keys("model", batch) if ctx.train else None
    _, _, vectors = self.tokenizer.encode(weights, image, keys, ctx.train)
    ids = quantize.nearest(jax.lax.stop_gradient(vectors), weights["codes"])
    chosen = weights["codes"][ids]
    grid = self.tokenizer.grid_of(image.shape)
    made = self.tokenizer.decode(weights, quantize.straight_through(vectors, chosen), grid)
    wanted = image if self.target is None else (
        jax.lax.stop_gradient(self.target(ctx.state["target"], batch, grid)[0]))
    features = {"vectors": vectors, "chosen": chosen, "made": made, "wanted": wanted}
    if self.critic is not None:
      features |= self._judged(params["critic"], image, made)
    return features, self._stats(ctx, batch, vectors, ids) if ctx.train else {}

  def _judged(self, params, image, made):
    """What the critic says; each player's term holds the other's parameters fixed."""
    judge = lambda params, picture: self.critic.apply({"params": params}, picture)
    fixed = jax.lax.stop_gradient
    return {"fooled": judge(fixed(params), made), "real": judge(params, image),
            "fake": judge(params, fixed(made))}

  def _stats(self, ctx, batch, vectors, ids):
    valid = batch["valid"]
    every = jnp.broadcast_to(valid[:, None], ids.shape)
    count, total = quantize.uses(vectors, ids, every, self.tokenizer.codes)
    stats = {"count": count, "sum": total}
    if self.revive:
      token = jax.vmap(lambda key: jax.random.randint(key, (), 0, ids.shape[1]))(
          ctx.keys("revive_token", batch))
      one = jnp.take_along_axis(vectors, token[:, None, None], axis=1)[:, 0]
      _, stats["candidates"] = quantize.uses(one, batch[SLOT], valid, self.revive)
      stats["rows"] = jnp.sum(valid.astype(jnp.float32))
    return stats

  def _weights(self, ctx, params):
    return {**params["tokenizer"], "codes": ctx.state["tokenizer"]["codes"]}

  def _check_decoder(self, weights, batch):
    """Raises ValueError where the decoder gives another shape than that of its target."""
    shape, grid = batch["image"].shape, self.tokenizer.grid_of(batch["image"].shape)
    wanted = shape[1:] if self.target is None else (
        grid[0] * grid[1], self.target.size(batch, grid))
    codes = jnp.zeros((shape[0], grid[0] * grid[1], self.tokenizer.dim))
    decode = lambda: self.tokenizer.decode(nn.meta.unbox(weights), codes, grid)
    made = jax.eval_shape(decode).shape[1:]
    if made != wanted:
      what = "pictures are" if self.target is None else "the target is"
      raise ValueError(f"tokenizer.decoder: gives {list(made)} for {grid[0]}x{grid[1]} codes, "
                       f"but {what} {list(wanted)}")


build = Tokenizer
