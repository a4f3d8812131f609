"""4M: any subset of modalities to any other (arXiv:2312.06647; 4M-21, arXiv:2406.09406).

Tokens of all modalities are divided into input, target and neither (`mmjax/masking/modalities.py`);
an encoder reads the input, a decoder predicts the ids of the target.
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.generate import any_to_any
from mmjax.losses.classification import token_cross_entropy
from mmjax.masking import budgets, modalities
from mmjax.models import fourm
from mmjax.models.modality import Modality
from mmjax.nn.names import within
from mmjax.objectives.contract import Objective, weigh
from mmjax.objectives.encoder import Encoder


@dataclasses.dataclass(frozen=True)
class FourM(Objective):
  """Masked prediction over a table of modalities.

  Loss terms: for each modality of the target its cross-entropy, a mean over its tokens. Their
  weights are those of the table, divided by the number of modalities. Logits of all targets are
  made for every such modality, in blocks of its vocabulary.

  Parameters: "encoder", exactly those of the encoder; "decoder", all else (`models.fourm.FourM`).
  State: {"modalities": {name: {"target": that of the tokenizer}}}.
  Features in evaluation: those of `Encoder`, of the whole image.

  Attributes:
    encoder: a ViT, without rotary positions. Its patches are the modality of kind "patches".
    modalities: {name: {"name": "modality", ...}}, see `models.modality.Modality`.
    input_tokens, target_tokens: of a row, over all modalities.
    decoder_width, decoder_depth, decoder_heads: None for those of the encoder. Whatever else the
      decoder needs is as in the encoder.
  """

  encoder: nn.Module
  modalities: dict
  input_tokens: int
  target_tokens: int
  decoder_width: int | None = None
  decoder_depth: int | None = None
  decoder_heads: int | None = None

  def __post_init__(self):
    wrong = [name for name, row in self.modalities.items() if not isinstance(row, Modality)]
    if wrong:
      raise ValueError(f'modalities.{wrong[0]}: expected {{"name": "modality", ...}}')
    if self.encoder.position.startswith("rotary"):
      raise ValueError("encoder.position: what joins the patches has no rotary position; take "
                       "'sincos'")
    kinds = [row.kind for row in self.modalities.values()]
    if kinds.count("patches") != 1:
      raise ValueError("modalities: one must be of kind 'patches', which the encoder reads; there "
                       f"are {kinds.count('patches')}")
    first = next(iter(self.modalities))
    parts = len(self.modalities[first].alphas("input_alpha"))
    for name, row in self.modalities.items():
      for key in ("input_alpha", "target_alpha"):
        if len(row.alphas(key)) != parts:
          raise ValueError(f"modalities.{name}.{key}: has {len(row.alphas(key))} parts of a "
                           f"mixture, but {first} has {parts}")
    if not any(row.told for row in self.modalities.values()):
      raise ValueError("modalities: every target_alpha is 0, so there is nothing to predict")

  @property
  def vocabularies(self):
    """{config path: ids} of the sequences, whose tokenizer the data has."""
    return {f"modalities.{name}.vocab": row.vocab for name, row in self.modalities.items()
            if row.kind == "sequence"}

  def decoder(self, batch):
    """The module `models.fourm.FourM` for images of this batch's shape."""
    encoder = self.encoder
    same = {key: getattr(encoder, key) for key in
            ("activation", "norm_eps", "scan", "remat", "attention", "kernel_init", "dtype")}
    return fourm.FourM(self.modalities, encoder.grid_of(batch[self._image].shape), encoder.width,
                       self.decoder_width or encoder.width, self.decoder_depth or encoder.depth,
                       self.decoder_heads or encoder.heads, **same)

  def init(self, rng, batch):
    keys = jax.random.split(rng, 2 + len(self.modalities))
    state = {}
    with within("encoder"):
      self.encoder.grid_of(batch[self._image].shape)
    for key, (name, row) in zip(keys[2:], sorted(self.modalities.items())):
      own = {"target": row.target.init(key, batch)} if row.kind == "tokens" else {}
      self._check(name, row, own, batch)
      state |= {name: own} if own else {}
    decoder = self.decoder(batch)
    budgets.check("input_tokens", self.input_tokens, sum(decoder.input_sizes.values()))
    budgets.check("target_tokens", self.target_tokens, sum(decoder.target_sizes.values()))
    params = {"encoder": self.encoder.init(keys[0], batch[self._image])["params"],
              "decoder": decoder.init(keys[1])["params"]}
    return params, {"modalities": state}

  def forward(self, ctx, params, batch):
    if ctx.train:
      return self._masked_pass(ctx, params, batch), {}
    image = {**batch, "image": batch[self._image]}
    return Encoder(self.encoder).forward(ctx, params["encoder"], image)

  def terms(self, ctx, params, features, batch):
    if not ctx.train:  # evaluators of features never pay for it
      features = self._masked_pass(ctx, params, batch)
    decoder, terms = self.decoder(batch), {}
    for number, name in enumerate(decoder.targets):
      head = params["decoder"][f"head_{name}"]["embedding"]
      own = (features["modality"] == number) & features["there"]
      loss = token_cross_entropy(features["decoder/hidden"],
                                 head.astype(features["decoder/hidden"].dtype),
                                 jnp.where(own, features["ids"], 0))
      terms[name] = weigh(loss, own & batch["valid"][:, None])
    return terms, {}

  def weights(self, step):
    told = {name: row.weight for name, row in self.modalities.items() if row.told}
    return {name: weight / len(told) for name, weight in told.items()}

  def trivial(self, batch_size):
    """That of equal probabilities."""
    return {name: math.log(row.ids) for name, row in self.modalities.items() if row.told}

  def encode(self, params, image, ids, index, there, keys=None, train=False):
    """The encoder's tokens [B, P + K, D]: what stands before its patches, and what it is shown.

    Args:
      image: float [B, H, W, C].
      ids: {name: int32 [B, N]} of all inputs but the image's patches.
      index, there: int32 and bool [B, K], what of the input pool is shown; the rest is padding.
      keys, train: as in `ViT`.
    """
    def join(patches):
      pool = self.decoder({self._image: image}).apply({"params": params["decoder"]}, ids, patches,
                                                      method="read")
      return fourm.take(pool, index), there

    _, tokens = self.encoder.apply({"params": params["encoder"]}, image, join=join, keys=keys,
                                   train=train, want=("prefix", "tokens"))
    return jnp.concatenate([tokens["prefix"], tokens["tokens"]], axis=1)

  def ids(self, state, batch, names=None):
    """{name: int32 [B, N]} of the modalities `names` (None: all), as their tokenizers give them;
    without the patches."""
    names = sorted(self.modalities) if names is None else names
    return {name: self._ids_of(self.modalities[name], state["modalities"].get(name), batch)
            for name in names if self.modalities[name].kind != "patches"}

  def generate(self, ctx, params, batch, *, condition, stages):
    """Modalities that the model makes, and the true ones beside them.

    The keys of what is drawn follow from (seed, row) by the name "generate".

    Args:
      batch: has what the modalities named here are made of, and in any case images.
      condition, stages: see `any_to_any.generate`.

    Returns:
      {"made": those of `stages`, "true": these and those of `condition`}, each {name: {...}}. In it
      "ids" int32 [B, N], but of the patches; of a sequence "mask" bool [B, N], which of them are
      there; of the patches, and of a grid whose tokenizer makes one, "picture" float32
      [B, H, W, C]: with one channel a map of levels from 0 to 1, else pixels as the inputs have.

    Raises:
      ValueError: a modality cannot be had from this model.
    """
    made = any_to_any.generate(self, params, ctx.state, batch, ctx.keys("generate", batch),
                               condition=condition, stages=stages)
    names, table = [stage.modality for stage in stages], self.modalities
    true = {name: self._shown(ctx.state, name, ids, batch.get(f"{table[name].source}_mask"))
            for name, ids in self.ids(ctx.state, batch, [*condition, *names]).items()}
    patches = [name for name in condition if table[name].kind == "patches"]
    return {"made": {name: self._shown(ctx.state, name, made[name], made.get(f"{name}_mask"))
                     for name in names},
            "true": true | {name: {"picture": batch[self._image]} for name in patches}}

  def _shown(self, state, name, ids, mask):
    """One modality of `generate`; `mask` of a sequence, None: all is there."""
    row = self.modalities[name]
    if row.kind == "sequence":
      return {"ids": ids, "mask": jnp.ones(ids.shape, bool) if mask is None else mask}
    if not hasattr(row.target, "picture"):
      return {"ids": ids}
    try:
      picture = row.target.picture(state["modalities"][name]["target"], ids, row.grid)
    except ValueError:  # a tokenizer of features
      return {"ids": ids}
    return {"ids": ids, "picture": picture.astype(jnp.float32)}

  @property
  def _image(self):
    return next(row.source for row in self.modalities.values() if row.kind == "patches")

  def _masked_pass(self, ctx, params, batch):
    """Hidden states "decoder/hidden" [B, T, D] of the targets, their "ids", "modality" (its number
    in `models.fourm.FourM.targets`) and whether they are "there", each [B, T]."""
    ids, decoder = self.ids(ctx.state, batch), self.decoder(batch)
    row = self.divide(ctx, batch, ids)
    ids |= row.seen
    keys = ctx.keys("model", batch) if ctx.train else None
    tokens = self.encode(params, batch[self._image], ids, row.index, row.there, keys, ctx.train)
    hidden = decoder.apply({"params": params["decoder"]}, tokens, row.index, row.there, row.given,
                           row.target_index, row.target_there, method="predict")
    pool = jnp.concatenate([{**ids, **row.wanted}[name] for name in decoder.targets], axis=1)
    return {"decoder/hidden": hidden, "ids": jnp.take_along_axis(pool, row.target_index, axis=1),
            "modality": decoder.modality(row.target_index), "there": row.target_there}

  def divide(self, ctx, batch, ids):
    """What each row shows and predicts, `masking.modalities.Division` with arrays [B, ...]."""
    decoder = self.decoder(batch)
    grids = {name: row.size(decoder.patches) for name, row in self.modalities.items()
             if row.kind != "sequence"}
    real = {name: batch.get(f"{row.source}_mask", jnp.ones(ids[name].shape, bool))
            for name, row in self.modalities.items() if row.kind == "sequence"}

    def divide(key, ids, real):
      sequences = {name: modalities.Sequence(ids[name], real[name], self.modalities[name].vocab)
                   for name in real}
      return modalities.divide(key, self.modalities, grids, sequences, self.input_tokens,
                               self.target_tokens)

    return jax.vmap(divide)(ctx.keys("budgets", batch), {name: ids[name] for name in real}, real)

  def _ids_of(self, row, state, batch):
    if row.kind == "sequence":
      return batch[row.source]
    ids, _ = row.target(state["target"], batch, row.grid)
    return jax.lax.stop_gradient(ids)

  def _check(self, name, row, state, batch):
    """Raises ValueError, naming a key of the config, where the batch does not fit the table."""
    at = f"modalities.{name}"
    if row.kind != "tokens" and row.source not in batch:
      raise ValueError(f"{at}.source: the batch has no {row.source!r}; data gives "
                       f"{', '.join(batch)}: see data.transforms")
    if row.kind == "sequence" and batch[row.source].shape[1] != row.length:
      raise ValueError(f"{at}.length: {row.length}, but {row.source!r} has "
                       f"{batch[row.source].shape[1]} tokens")
    if row.kind != "tokens":
      return
    try:
      size = row.target.size(batch, row.grid)
      ids = jax.eval_shape(lambda batch: self._ids_of(row, state, batch), batch)
    except KeyError as error:
      raise ValueError(f"{at}.target: it reads {error}, which the batch has not; data gives "
                       f"{', '.join(batch)}: see data.transforms") from error
    if size != row.vocab:
      raise ValueError(f"{at}.vocab: {row.vocab}, but its tokenizer has {size} ids")
    if ids.shape[1:] != (math.prod(row.grid),) or ids.dtype != jnp.int32:
      raise ValueError(f"{at}.target: must give ids int32 [B, {math.prod(row.grid)}], not "
                       f"{ids.dtype} {list(ids.shape)}")


build = FourM
