"""MultiMAE: masked autoencoding of image, depth and segmentation at once (arXiv:2204.01678)."""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.losses.classification import softmax_cross_entropy
from mmjax.masking import budgets
from mmjax.models.fourm import take
from mmjax.models import multimae
from mmjax.models.multimae import TASKS
from mmjax.nn.names import within
from mmjax.nn.patch import patchify
from mmjax.objectives.contract import Objective, weigh
from mmjax.objectives.encoder import Encoder

EPSILON = 1e-6  # added to a variance


def standardise(depth, trim=0.1):
  """Depth of mean 0 and variance 1 over all but its nearest and its farthest part.

  Bachmann et al. 2022, arXiv:2204.01678 (after Yin et al. 2021, arXiv:2012.09365).

  Args:
    depth: float [B, H, W, 1].
    trim: the part that is cut off on each side.

  Returns:
    float32 [B, H, W, 1]; nothing is clipped.
  """
  values = jnp.sort(depth.reshape(len(depth), -1).astype(jnp.float32), axis=1)
  size = values.shape[1]
  middle = values[:, int(trim * size):int((1 - trim) * size)]
  mean = jnp.mean(middle, axis=1)[:, None, None, None]
  variance = jnp.var(middle, axis=1, ddof=1)[:, None, None, None]
  return (depth - mean) * jax.lax.rsqrt(variance + EPSILON)


@dataclasses.dataclass(frozen=True)
class MultiMAE(Objective):
  """Reads `image` [B, H, W, 3], `depth` [B, H, W, 1] in metres and `semantic` int32 [B, H, W].

  `visible` patches of all three together are seen by the encoder; how many of each is drawn from a
  symmetric Dirichlet distribution. Loss terms, each over the masked patches of its task:
  "image" (squared error of the pixels), "depth" (absolute error of the standardised depth) and
  "semantic" (cross-entropy of its cells; those of a class outside `classes` are left out).

  Parameters: "encoder", exactly those of the encoder; "decoder", all else. Features in evaluation:
  those of `Encoder`, of the whole image alone.

  Attributes:
    encoder: a ViT with sine-cosine positions and a class token, MultiMAE's global token.
    classes: of the segmentation.
    visible: how many patches the encoder sees.
    alpha: concentration of the distribution over tasks; 1 makes all divisions equally likely.
    cells: a patch's classes are those of cells x cells of its pixels (MultiMAE: a quarter of the
      resolution, 4 of 16).
    class_width: of the class embeddings.
    decoder_width, decoder_depth, decoder_heads: of each task's decoder.
    loss_weights: {task: weight}; a task that is missing weighs 1.
  """

  encoder: nn.Module
  classes: int
  visible: int
  alpha: float = 1.0
  cells: int = 4
  class_width: int = 64
  decoder_width: int = 256
  decoder_depth: int = 2
  decoder_heads: int = 8
  loss_weights: dict = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    if self.encoder.position != "sincos":
      raise ValueError(f"encoder.position: {self.encoder.position!r}, but all tasks share "
                       "positions 'sincos'")
    if self.alpha <= 0:
      raise ValueError(f"alpha: must be positive, not {self.alpha}")
    if self.classes < 2:
      raise ValueError(f"classes: at least 2, not {self.classes}")
    unknown = sorted(set(self.loss_weights) - set(TASKS))
    if unknown:
      raise ValueError(f"loss_weights.{unknown[0]}: no such task (valid: {', '.join(TASKS)})")

  def init(self, rng, batch):
    self._check(batch)
    keys = jax.random.split(rng)
    targets = self._patches(batch)
    decoder = self._model(batch).init(keys[1], targets["depth"], targets["semantic"])
    encoder = self.encoder.init(keys[0], batch["image"])
    return {"encoder": encoder["params"], "decoder": decoder["params"]}, {}

  def forward(self, ctx, params, batch):
    if ctx.train:
      return self._masked_pass(ctx, params, batch), {}
    return Encoder(self.encoder).forward(ctx, params["encoder"], batch)

  def terms(self, ctx, params, features, batch):
    if not ctx.train:  # evaluators of features never pay for it
      features = self._masked_pass(ctx, params, batch)
    targets = self._patches(batch)
    error = {task: features[f"{task}/prediction"] - targets[task] for task in ("image", "depth")}
    weight = features["masked"] & batch["valid"][:, None, None]  # [B, 3, N]
    semantic = targets["semantic"]
    known = (semantic >= 0) & (semantic < self.classes)
    logits = features["semantic/prediction"].reshape(*semantic.shape, self.classes)
    entropy = softmax_cross_entropy(logits, jnp.where(known, semantic, 0))
    return {"image": weigh(jnp.mean(jnp.square(error["image"]), -1), weight[:, 0]),
            "depth": weigh(jnp.mean(jnp.abs(error["depth"]), -1), weight[:, 1]),
            "semantic": weigh(entropy, weight[:, 2, :, None] & known)}, {}

  def weights(self, step):
    return self.loss_weights

  def trivial(self, batch_size):
    """Of the segmentation, that of equal probabilities."""
    return {"semantic": math.log(self.classes)}

  def shown(self, ctx, batch):
    """Which patches the encoder sees, of the pool of all: int32 [B, visible], ascending."""
    size = math.prod(self.encoder.grid_of(batch["image"].shape))

    def one(key):
      first, *others = jax.random.split(key, 1 + len(TASKS))
      alpha, most = jnp.full(len(TASKS), self.alpha), jnp.full(len(TASKS), size)
      counts, _ = budgets.draw(first, alpha, self.visible, most)
      rank = jnp.stack([jax.random.permutation(other, size) for other in others])
      return jnp.argsort((rank >= counts[:, None]).reshape(-1), stable=True)[:self.visible]

    return jax.vmap(one)(ctx.keys("mask", batch)).astype(jnp.int32)

  def _masked_pass(self, ctx, params, batch):
    """TASK/prediction, float32 [B, N, d] of all patches, and which are "masked", bool [B, 3, N]."""
    model, targets = self._model(batch), self._patches(batch)
    index, params_of = self.shown(ctx, batch), {"params": params["decoder"]}

    def join(patches):
      pool = model.apply(params_of, patches, targets["depth"], targets["semantic"], method="read")
      return take(pool, index), None

    keys = ctx.keys("model", batch) if ctx.train else None
    _, tokens = self.encoder.apply({"params": params["encoder"]}, batch["image"], join=join,
                                   keys=keys, train=ctx.train, want=("prefix", "tokens"))
    tokens = jnp.concatenate([tokens["prefix"], tokens["tokens"]], axis=1)
    predictions = model.apply(params_of, tokens, index, method="predict")
    rows, size = jnp.arange(len(index))[:, None], targets["depth"].shape[1]
    masked = jnp.ones((len(index), len(TASKS) * size), bool).at[rows, index].set(False)
    return {**{f"{task}/prediction": x for task, x in predictions.items()},
            "masked": masked.reshape(-1, len(TASKS), size)}

  def _model(self, batch):
    encoder, targets = self.encoder, jax.eval_shape(self._patches, batch)
    same = {key: getattr(encoder, key) for key in
            ("activation", "norm_eps", "scan", "remat", "attention", "kernel_init", "dtype")}
    outputs = {task: x.shape[-1] * (self.classes if task == "semantic" else 1)
               for task, x in targets.items()}
    return multimae.MultiMAE(
        encoder.grid_of(batch["image"].shape), encoder.width, outputs, self.classes,
        self.class_width, self.decoder_width, self.decoder_depth, self.decoder_heads, **same)

  def _patches(self, batch):
    """What each task reads and predicts: float32 [B, N, d]; classes int32 [B, N, cells^2]."""
    grid = self.encoder.grid_of(batch["image"].shape)
    height, width = batch["image"].shape[1:3]
    patch = height // grid[0], width // grid[1]
    flat = lambda x: x.reshape(*x.shape[:2], -1)
    step = patch[0] // self.cells, patch[1] // self.cells
    # Of each cell the pixel in its middle.
    classes = batch["semantic"][:, step[0] // 2::step[0], step[1] // 2::step[1], None]
    return {"image": flat(patchify(batch["image"], patch)).astype(jnp.float32),
            "depth": flat(patchify(standardise(batch["depth"]), patch)),
            "semantic": flat(patchify(classes, (self.cells, self.cells)))}

  def _check(self, batch):
    """Raises ValueError where the batch does not fit the config."""
    absent = [task for task in TASKS if task not in batch]
    if absent:
      raise ValueError(f"the batch has no {absent[0]!r}, and multimae reads {', '.join(TASKS)}; "
                       f"data gives {', '.join(batch)}: see data.transforms")
    size = batch["image"].shape[1:3]
    with within("encoder"):
      grid = self.encoder.grid_of(batch["image"].shape)
    for task in TASKS[1:]:
      if batch[task].shape[1:3] != size:
        raise ValueError(f"the batch's {task!r} is of {list(batch[task].shape[1:3])} beside an image of "
                         f"{list(size)}; let data.transforms resize them alike")
    patch = [side // count for side, count in zip(size, grid)]
    if any(side % self.cells for side in patch):
      raise ValueError(f"cells={self.cells}: does not divide a patch of {patch[0]}x{patch[1]} "
                       "pixels")
    count = len(TASKS) * math.prod(grid)
    if not 0 < self.visible < count:
      raise ValueError(f"visible={self.visible}: at least one of the {count} patches of all tasks "
                       "must be seen and one masked")


build = MultiMAE
