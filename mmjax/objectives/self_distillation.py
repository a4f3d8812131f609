"""Self-distillation: a student learns what its own moving average says of other views.

One objective, three recipes by config:

  iBOT      losses class, patch; centring="mean"; a head for both      arXiv:2111.07832
  DINOv2    losses class, patch, koleo; centring="sinkhorn"; two heads   arXiv:2304.07193
  MSN       losses class, mean_entropy; targets="first"; patches dropped   arXiv:2204.07141
"""

import dataclasses
import math
from typing import Any

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from mmjax import masking
from mmjax.losses import self_distillation as losses
from mmjax.masking.block_range import RangeMask
from mmjax.nn.linear import KERNEL_INITS
from mmjax.nn.names import check_choice, within
from mmjax.nn.prototypes import ProjectionHead, prototypes_of, unit
from mmjax.objectives import monitors
from mmjax.objectives.contract import Objective, Term, weigh
from mmjax.objectives.encoder import Encoder
from mmjax.optim import ema
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel import prototypes as sharded

LOSSES = ("class", "patch", "koleo", "mean_entropy")
TEACHER = "teacher"


@dataclasses.dataclass(frozen=True)
class SelfDistillation(Objective):
  """`global_views` [B, V, H, W, C] and `local_views` [B, L, h, w, C] (may be absent) of each image.

  Student and teacher say which of K prototypes a view, or a patch, belongs to. The teacher is the
  exponential moving average of the student: encoder, heads and prototypes. Loss terms:

    class         cross-entropy of every pair of different views, the teacher's a global one
    patch         cross-entropy of masked patches of the student's global views with the same
                  patches of the teacher, which sees them; the mean over a view's patches
    koleo         see `losses.koleo`, on the student's global views, each view for itself
    mean_entropy  see `losses.unused`, of the student's predictions for views

  Parameters: "encoder", exactly those of the encoder; "class_head"; "patch_head" with
  `patch_prototypes`. State, with centring="mean": the centres float32 [K].

  Memory: what couples rows reads features of `bottleneck` numbers, and logits are made from them
  block by block (see `parallel/prototypes.py`), so that K may be large.

  Features in evaluation are those of `Encoder`, of the whole `image` [B, H, W, C] or, where there
  is none, of the first global view.

  Attributes:
    encoder: a module called as `ViT` is; a view is what it pools.
    losses: {name of a term: weight}.
    prototypes: K.
    patch_prototypes: K of the patches' own head; None: patches go through the head of the views.
    hidden, layers, bottleneck, head_init: of the heads, see `ProjectionHead`.
    mask: what the student does not see of its global views; None: it sees all. Masked patches are
      replaced if `encoder.mask_token`, else dropped.
    targets: "all": every global view is a target and is seen by the student; "first": the first is
      the target, the student sees the others.
    centring: how targets are kept from collapsing: "mean" subtracts a running mean from the
      teacher's logits (DINO, arXiv:2104.14294, eq. 4), "sinkhorn" see `sharded.sinkhorn`, "none".
    centre_momentum: of the running mean.
    sinkhorn_iterations: 3 in all three papers' code.
    student_temperature: of the student's softmax.
    teacher_temperature: {"start", "final", "ramp_steps"}: of the teacher's, a linear ramp; or
      {"start"}. MSN's sharpening to the power 1 / T is a temperature T times the student's.
    momentum: of the teacher, {"start": 0.996, "final": 1.0, "ramp_steps": n}, a cosine ramp.
    freeze_steps: so long the prototypes get no gradient.
    teacher_prototypes: "average", or "student": the teacher is compared with the student's (MSN).
    eval_with: whose features are evaluated, "teacher" or "student".
  """

  encoder: nn.Module
  losses: dict
  prototypes: int = 65_536
  patch_prototypes: int | None = None
  hidden: int = 2048
  layers: int = 3
  bottleneck: int = 256
  head_init: str = "truncated_normal"
  mask: Any = None
  targets: str = "all"
  centring: str = "mean"
  centre_momentum: float = 0.9
  sinkhorn_iterations: int = 3
  student_temperature: float = 0.1
  teacher_temperature: dict = dataclasses.field(default_factory=lambda: {"start": 0.04})
  momentum: dict = dataclasses.field(default_factory=lambda: {"start": 0.996})
  freeze_steps: int = 0
  teacher_prototypes: str = "average"
  eval_with: str = TEACHER

  def __post_init__(self):
    wrong = [name for name in self.losses if name not in LOSSES]
    if wrong or not self.losses:
      raise ValueError(f"losses: {wrong or 'none given'}; valid names: {', '.join(LOSSES)}")
    check_choice("targets", self.targets, ("all", "first"))
    check_choice("centring", self.centring, ("mean", "sinkhorn", "none"))
    check_choice("teacher_prototypes", self.teacher_prototypes, ("average", "student"))
    check_choice("eval_with", self.eval_with, (TEACHER, "student"))
    check_choice("head_init", self.head_init, KERNEL_INITS)
    for name in ("prototypes", "hidden", "layers", "bottleneck", "sinkhorn_iterations"):
      if getattr(self, name) < 1:
        raise ValueError(f"{name}: must be at least 1, not {getattr(self, name)}")
    if not 0 <= self.centre_momentum < 1:
      raise ValueError("centre_momentum: must be at least 0 and below 1, "
                       f"not {self.centre_momentum}")
    if self.student_temperature <= 0:
      raise ValueError(f"student_temperature: must be above 0, not {self.student_temperature}")
    linear(self.teacher_temperature, "teacher_temperature")
    ema.from_config(self.momentum)
    if self.encoder.pool == "none":
      raise ValueError("encoder.pool: 'none' leaves no view to compare; take 'cls' or 'mean'")
    if "patch" not in self.losses and self.patch_prototypes:
      raise ValueError("patch_prototypes: are of no use without losses.patch")
    if "patch" in self.losses:
      self._check_patches()

  def _check_patches(self):
    if self.mask is None:
      raise ValueError("mask: is missing; losses.patch is about what it hides")
    if not self._replaces:
      raise ValueError("encoder.mask_token: losses.patch needs True, so that the student has a "
                       "token for each masked patch")
    if self.targets != "all":
      raise ValueError("targets: losses.patch needs 'all', so that both sides have views in common")
    if self.patch_prototypes is not None and self.patch_prototypes < 1:
      raise ValueError(f"patch_prototypes: must be at least 1, not {self.patch_prototypes}")

  # What is encoded, row by row.

  def init(self, rng, batch):
    views = batch["global_views"]
    first = views[:, 0]
    with within("encoder"):
      self.encoder.grid_of(first.shape)
    keys = jax.random.split(rng, 3)
    variables = self.encoder.init(keys[0], first)
    params = {"encoder": variables["params"]}
    self._check_views(batch, params["encoder"])
    pooled, _ = jax.eval_shape(self.encoder.apply, mesh_lib.unbox(variables), first)
    width = jnp.zeros((1, pooled.shape[-1]), jnp.float32)
    params["class_head"] = self._head("class").init(keys[1], width)["params"]
    if self.patch_prototypes:
      width = jnp.zeros((1, self.encoder.width), jnp.float32)
      params["patch_head"] = self._head("patch").init(keys[2], width)["params"]
    centres = {part: jnp.zeros(self._count(part), jnp.float32) for part in self._parts}
    return params, {"centre": centres} if self.centring == "mean" else {}

  def _check_views(self, batch, params):
    """Raises ValueError where the views, the mask and the encoder do not fit each other."""
    views = batch["global_views"]
    local = batch.get("local_views")
    count = views.shape[1] + (0 if local is None else local.shape[1])
    if self.targets == "first" and views.shape[1] < 2:
      raise ValueError("targets='first' needs two global views, one for the student; the batch has "
                       "one")
    if count < 2:
      raise ValueError("a view is compared with other views, and the batch has one only")
    if local is not None:
      with within("encoder"):
        self.encoder.grid_of(local[:, 0].shape)
      jax.eval_shape(self.encoder.apply, {"params": mesh_lib.unbox(params)}, local[:, 0])
    if self.mask is not None:
      grid = self.encoder.grid_of(views[:, 0].shape)
      with within("mask"):
        mask = jax.eval_shape(lambda: self.mask(jax.random.split(jax.random.key(0), 1), grid))
        if not self._replaces and isinstance(mask, RangeMask):
          raise ValueError("rows that mask different numbers of patches cannot drop them; set "
                           "encoder.mask_token, or take a mask of one ratio")
        masking.check_kind(mask, masking.Mask, RangeMask)

  def forward(self, ctx, params, batch):
    features, stats = {}, {}
    if "global_views" in batch:
      features, stats = self._compare_views(ctx, params, batch)
    if not ctx.train:
      source = ctx.teachers[TEACHER] if self.eval_with == TEACHER else params
      whole = batch if "image" in batch else {"image": batch["global_views"][:, 0]}
      features |= Encoder(self.encoder).forward(ctx, source["encoder"], whole)[0]
    return features, stats

  def _compare_views(self, ctx, params, batch):
    """Features that `couple` reads and sums for `update`; T targets, S views of the student."""
    teacher = lax.stop_gradient(ctx.teachers[TEACHER])
    views = batch["global_views"]
    targets, seen = (views, views) if self.targets == "all" else (views[:, :1], views[:, 1:])
    hidden, places, used = self._hide(ctx, batch, seen)
    want = ("tokens",) if "patch" in self.losses else ()

    target, target_tokens = self._encode(ctx, teacher, batch, targets, want=want)
    pooled, tokens = self._encode(ctx, params, batch, seen, "model", want, **hidden)
    all_views = pooled
    if "local_views" in batch:
      local, _ = self._encode(ctx, params, batch, batch["local_views"], "local_model")
      all_views = jnp.concatenate([pooled, local], axis=1)
    features = {"class/teacher": self._project(teacher, "class", target),             # [B, T, D]
                "class/student": self._project(params, "class", all_views),           # [B, S, D]
                "class/pooled": pooled.astype(jnp.float32)}
    weights = {"class": jnp.ones(target.shape[:2])}
    if "patch" in self.losses:
      of = lambda tokens: _take(tokens, places).reshape(len(views), -1, tokens.shape[-1])
      features |= {"patch/teacher": self._project(teacher, "patch", of(target_tokens)),  # [B, P, D]
                   "patch/student": self._project(params, "patch", of(tokens)),
                   "patch/used": used.reshape(*seen.shape[:2], -1).astype(jnp.float32)}
      weights["patch"] = features["patch/used"].reshape(len(views), -1)
    if self.centring != "mean":
      return features, {}
    sums = {}
    for part in self._parts:
      weight = weights[part] * batch["valid"][:, None]
      total = jnp.einsum("bp,bpd->d", weight, features[f"{part}/teacher"], precision="highest")
      # A mean of logits is the logit of the mean.
      logits = jnp.matmul(total, lax.stop_gradient(self._teacher_kernel(ctx, params, part)),
                          precision="highest")
      sums[part] = {"logits": logits, "weight": jnp.sum(weight)}
    return features, sums

  def _hide(self, ctx, batch, views):
    """What the student's global views hide, of all rows and views [B * V].

    Returns:
      Arguments for the encoder, places int32 [B * V, M] of the masked patches, and which of these
      are used, bool [B * V, M].
    """
    if self.mask is None:
      return {}, None, None
    shape = (views.shape[0] * views.shape[1], *views.shape[2:])
    mask = self.mask(_keys(ctx, "mask", batch, views.shape[1]), self.encoder.grid_of(shape))
    hidden = {"masked": mask.masked} if self._replaces else {"keep": mask.keep}
    return hidden, mask.drop, getattr(mask, "used", jnp.ones(mask.drop.shape, bool))

  def _encode(self, ctx, params, batch, views, name=None, want=(), **hidden):
    """[B, V, H, W, C] -> pooled [B, V, D] and, if wanted, tokens [B * V, N, D].

    With a `name`, that of its draws, the encoder is in training.
    """
    count = views.shape[1]
    images = views.reshape(-1, *views.shape[2:])
    images = mesh_lib.constrain(images, ("batch", None, None, None))
    train = ctx.train and name is not None
    keys = _keys(ctx, name, batch, count) if train else None
    pooled, extra = self.encoder.apply({"params": params["encoder"]}, images, keys=keys,
                                       train=train, want=want, **hidden)
    return pooled.reshape(-1, count, pooled.shape[-1]), extra.get("tokens")

  def _project(self, params, part, x):
    """[B, P, width] -> [B, P, bottleneck] by the head of `part`."""
    return self._head(part).apply({"params": params[self._head_name(part)]}, x)

  # What couples rows.

  @property
  def couples(self):
    names = [f"{part}/{side}" for part in self._parts for side in ("teacher", "student")]
    return ("class/pooled", *names, *(["patch/used"] if "patch" in self.losses else []))

  def couple(self, ctx, params, features, batch):
    if "class/teacher" not in features:  # an evaluation of images
      return {}, {}
    valid = batch["valid"].astype(jnp.float32)
    terms, metrics = self._class_terms(ctx, params, features, valid)
    if "patch" in self.losses:
      more, extra = self._patch_terms(ctx, params, features, valid)
      terms, metrics = terms | more, metrics | extra
    if "koleo" in self.losses:
      pooled = unit(features["class/pooled"])
      spread = [losses.koleo(pooled[:, i], batch["valid"]) for i in range(pooled.shape[1])]
      terms["koleo"] = weigh(jnp.stack(spread, 1), valid[:, None])
    metrics |= monitors.of_features(ctx, features["class/pooled"], batch["valid"])
    metrics |= {"teacher_momentum": weigh(self.teacher_decay(ctx.step)[TEACHER]),
                "teacher_temperature": weigh(self._temperature(ctx.step))}
    return {name: terms[name] for name in self.losses}, lax.stop_gradient(metrics)

  def _class_terms(self, ctx, params, features, valid):
    teacher, student = features["class/teacher"], features["class/student"]
    first, second = self._pairs(teacher.shape[1], student.shape[1])
    mass = valid[:, None] * jnp.ones(teacher.shape[1])
    out = self._distil(ctx, params, "class", teacher, mass, (teacher[:, first], student[:, second]),
                       valid[:, None] * jnp.ones(len(first)))
    terms = {"class": weigh(out.loss, valid[:, None]),
             "mean_entropy": Term(losses.unused(out.usage), jnp.float32(1))}
    return terms, _signs("", out, valid[:, None])

  def _patch_terms(self, ctx, params, features, valid):
    teacher, student = features["patch/teacher"], features["patch/student"]
    used = features["patch/used"] * valid[:, None, None]                               # [B, V, M]
    weight = used.reshape(len(used), -1)
    out = self._distil(ctx, params, "patch", teacher, weight, (teacher, student), weight)
    # Each view's mean over its masked patches; views without any count as zero, as in both papers.
    of_view = jnp.sum(out.loss.reshape(used.shape) * used, -1) / jnp.maximum(jnp.sum(used, -1), 1)
    return {"patch": weigh(of_view, valid[:, None])}, _signs("patch_", out, weight)

  def _distil(self, ctx, params, part, teacher, mass, pairs, weight):
    """`sharded.distil`.

    Args:
      teacher: all rows [B, T, D] that are assigned together, of `mass` [B, T].
      pairs: teacher's and student's side, each [B, P, D], of `weight` [B, P] in the metrics.
    """
    target_kernel = lax.stop_gradient(self._teacher_kernel(ctx, params, part))
    kernel = prototypes_of(params[self._head_name(part)])
    kernel = jnp.where(ctx.step < self.freeze_steps, lax.stop_gradient(kernel), kernel)
    temperature, dtype = self._temperature(ctx.step), self._dtype
    bias = jnp.zeros(self._count(part))
    if self.centring == "sinkhorn":
      bias = sharded.sinkhorn(teacher, target_kernel, mass, temperature, self.sinkhorn_iterations,
                              dtype=dtype)
    elif self.centring == "mean":
      bias = -ctx.state["centre"][part] / temperature
    return sharded.distil(*pairs, target_kernel, kernel, weight, bias, temperature,
                          self.student_temperature, dtype=dtype)

  def _pairs(self, targets, seen):
    """Places of both sides of all pairs of different views; global views come first."""
    offset = 0 if self.targets == "all" else 1  # number of the student's first view
    pairs = [(i, j) for i in range(targets) for j in range(seen) if i != j + offset]
    return np.array(pairs).T

  # What is not trained.

  def update(self, ctx, stats):
    if self.centring != "mean":
      return ctx.state

    def follow(centre, sums):
      mean = sums["logits"] / jnp.maximum(sums["weight"], 1)
      moved = self.centre_momentum * centre + (1 - self.centre_momentum) * mean
      return jnp.where(sums["weight"] > 0, moved, centre)

    centres = ctx.state["centre"]
    return {"centre": {part: follow(centres[part], stats[part]) for part in self._parts}}

  def teachers(self, params):
    return {TEACHER: params}

  def teacher_decay(self, step):
    return {TEACHER: ema.from_config(self.momentum)(step)}

  def weights(self, step):
    return self.losses

  def trivial(self, batch_size):
    """Those of equal probabilities; `koleo` and `mean_entropy` have none."""
    return {part: math.log(self._count(part)) for part in self._parts if part in self.losses}

  def collapsed_below(self, batch_size):
    prototypes = tuple(f"{prefix}prototype_entropy" for prefix in ("", "patch_")[:len(self._parts)])
    return monitors.collapsed_below(batch_size, monitors.width_of(self.encoder), prototypes)

  @property
  def _parts(self):
    """What is compared with prototypes."""
    return ("class", "patch") if "patch" in self.losses else ("class",)

  @property
  def _replaces(self):
    return getattr(self.encoder, "mask_token", False)

  @property
  def _dtype(self):
    return getattr(self.encoder, "dtype", "float32")

  def _head_name(self, part):
    return "patch_head" if part == "patch" and self.patch_prototypes else "class_head"

  def _count(self, part):
    return self.patch_prototypes if self._head_name(part) == "patch_head" else self.prototypes

  def _head(self, part):
    return ProjectionHead(self._count(part), self.hidden, self.layers, self.bottleneck,
                          self.head_init, self._dtype)

  def _teacher_kernel(self, ctx, params, part):
    owner = ctx.teachers[TEACHER] if self.teacher_prototypes == "average" else params
    return prototypes_of(owner[self._head_name(part)])

  def _temperature(self, step):
    return linear(self.teacher_temperature, "teacher_temperature")(step)


def linear(node, path):
  """Step -> float32 []: {"start": a, "final": b, "ramp_steps": n} goes from a to b and stays there.

  Raises:
    ValueError: an unknown or missing key, or a number that is not positive.
  """
  unknown = sorted(set(node) - {"start", "final", "ramp_steps"})
  if unknown:
    raise ValueError(f"{path}.{unknown[0]}: unknown key (valid: start, final, ramp_steps)")
  if "start" not in node or ("final" in node) != ("ramp_steps" in node):
    raise ValueError(f"{path}: needs start, or start, final and ramp_steps; it has "
                     f"{', '.join(node) or 'nothing'}")
  for name, value in node.items():
    if value <= 0:
      raise ValueError(f"{path}.{name}: must be above 0, not {value}")
  start, final = node["start"], node.get("final", node["start"])

  def at(step):
    progress = jnp.clip(jnp.asarray(step).astype(jnp.float32) / node.get("ramp_steps", 1), 0, 1)
    return jnp.float32(start) + (final - start) * progress

  return at


def _keys(ctx, name, batch, count):
  """One key a view: [B * count]."""
  fold = jax.vmap(lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(count)))
  return fold(ctx.keys(name, batch)).reshape(-1)


def _take(tokens, places):
  """[B, N, D], int32 [B, M] -> [B, M, D]."""
  return jnp.take_along_axis(tokens, places[:, :, None], axis=1)


def _signs(prefix, out, weight):
  """Metrics of what prototypes are for: how sure the targets are, and how many the student uses.

  The student's use, for that of targets tells nothing: Sinkhorn spreads them evenly over all prototypes, of
  features that are all the same too.

  Returns:
    {"target_entropy": mean entropy of a target in nats, "prototype_entropy": of the student's mean
    prediction, see `monitors`}.
  """
  total = jnp.sum(out.usage)
  mean = out.usage / jnp.where(total > 0, total, 1)
  spread = monitors.of_prototypes(mean[None], (total > 0)[None])["prototype_entropy"]
  return {f"{prefix}target_entropy": weigh(out.entropy, weight),
          f"{prefix}prototype_entropy": spread}


build = SelfDistillation
