"""Features of a frozen teacher as targets.

  MaskDistill  the last tokens, normalised                      arXiv:2210.10615, sec. 3
  EVA, EVA-02  the last tokens, projected as CLIP's             arXiv:2211.07636; arXiv:2303.11331
  MaskAlign    several blocks, normalised, beside each other    arXiv:2211.08887, sec. 3

They also say what a guided mask goes by: how the teacher attends to each patch (MaskAlign), or how
much of the caption it finds there (Text-Guided Video MAE, arXiv:2408.00759; SyCoCa, arXiv:2401.02137).
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.dual_encoder import unit
from mmjax.models.vit import sides
from mmjax.nn.mlp import default_mlp_dim
from mmjax.nn.norm import normalise
from mmjax.nn.pooling import AttentionPool

EPSILON = 1e-5  # of the layer norm without parameters, as where it has some
GUIDES = (None, "attention", "text")
POOLS = ("cls", "mean", "map")  # after which a single patch has a place among the texts


@dataclasses.dataclass(frozen=True)
class Features:
  """What a frozen teacher makes of each patch of the whole image.

  The teacher sees `image` [B, H, W, C] as the student does, with nothing hidden, brought to the
  size at which it has as many patches as the student.

  State: {"teacher": parameters of the teacher}, and with `text` {"text": those of the text tower}.

  Attributes:
    teacher: a ViT; of which weights, see `mmjax/training/frozen.py`.
    layers: the blocks whose results are the target, numbered from 0 (from the end if negative),
      one beside the other: d = len(layers) * width. None: the tokens after the final norm.
    project: these go through the teacher's projection, so they are in the space in which images
      meet texts: d = teacher.out_dim.
    normalise: layer norm without parameters, of each token (and each of `layers`) on its own.
    text: the text tower of the teacher's dual encoder, for a mask that is guided by "text". It reads
      the caption's tokens, `text` int32 [B, L] (`text_mask` bool [B, L]).
  """

  teacher: nn.Module
  layers: tuple | None = None
  project: bool = False
  normalise: bool = True
  text: nn.Module | None = None

  def __post_init__(self):
    depth = self.teacher.depth
    if self.layers is not None and not (
        self.layers and all(isinstance(i, int) and -depth <= i < depth for i in self.layers)):
      raise ValueError(f"layers: expected numbers of the teacher's {depth} blocks, from 0 to "
                       f"{depth - 1} or from -{depth} to -1, not {self.layers}")
    if self.project and (self.layers or not self.teacher.out_dim):
      raise ValueError("project: the teacher's projection acts on its last tokens; here are "
                       f"teacher.out_dim={self.teacher.out_dim} and layers={self.layers}")
    if self.text is not None:
      self._check_towers()

  def _check_towers(self):
    """Raises ValueError unless the teacher's patches and the texts are in one space."""
    if self.teacher.pool not in POOLS or self.teacher.rep_dim:
      raise ValueError(f"text: goes with a teacher of pool {', '.join(POOLS)} and no rep_dim, not "
                       f"pool={self.teacher.pool!r}, rep_dim={self.teacher.rep_dim}")
    widths = [tower.out_dim or tower.width for tower in (self.teacher, self.text)]
    if widths[0] != widths[1]:
      raise ValueError(f"text.out_dim: texts have {widths[1]} numbers and pictures {widths[0]} "
                       "(teacher.out_dim); both towers must be of one dual encoder")

  @property
  def vocabularies(self):
    """{path in the target's config: ids that it has embeddings for}."""
    return {} if self.text is None else {"text.vocab": self.text.vocab}

  def init(self, rng, batch):
    text = None if self.text is None else self._caption(batch)[0][:1]
    grid = sides(self.teacher.grid or 1)  # parameters depend on no other
    image = jnp.zeros((1, *self._size(grid), self._image(batch).shape[-1]))
    state = {"teacher": self.teacher.init(rng, image)["params"]}
    if text is not None:
      state["text"] = self.text.init(jax.random.fold_in(rng, 1), text)["params"]
    return state

  def size(self, batch, grid):
    self._seen(self._image(batch), grid)
    return self.teacher.out_dim if self.project else len(self.layers or (0,)) * self.teacher.width

  def __call__(self, state, batch, grid, guide=None):
    self._check_guide(guide)
    image = self._seen(self._image(batch), grid)
    names = [f"layer/{i % self.teacher.depth}" for i in self.layers or ()] or ["tokens"]
    seen_by = {"attention": ["attention"], "text": ["tokens"]}.get(guide, [])
    want = tuple(dict.fromkeys([*names, *seen_by]))
    _, found = self.teacher.apply({"params": state["teacher"]}, image, want=want)
    count = math.prod(grid)
    tokens = jnp.concatenate([self._target(found[name][:, -count:], state) for name in names], -1)
    if guide == "text":
      return tokens, self._similarity(found["tokens"][:, -count:], state, batch)
    # How the class token attends to the patches in the last block, mean over the heads.
    return tokens, found["attention"][:, :, 0, -count:].mean(axis=1) if guide else None

  def _check_guide(self, guide):
    if guide not in GUIDES:
      raise ValueError(f"target: a teacher has no {guide} for the mask to go by")
    if guide == "text" and self.text is None:
      raise ValueError("target.text: is missing, and the mask goes by the text; give the text tower "
                       "of the teacher's dual encoder, or take a mask that is not guided by it")
    if guide == "attention" and not self.teacher.class_token:
      raise ValueError("target.teacher.class_token: there is none, whose attention the mask could "
                       "go by; take another teacher, or a mask that is not guided")

  def _target(self, x, state):
    """float32 [B, N, d] of one layer's patches [B, N, D]."""
    x = self._projected(x, state) if self.project else x
    x = x.astype(jnp.float32)
    return normalise(x, EPSILON) if self.normalise else x

  def _projected(self, x, state):
    projection = state["teacher"]["projection"]
    x = x @ projection["kernel"].astype(x.dtype)
    return x + projection["bias"].astype(x.dtype) if "bias" in projection else x

  def _similarity(self, x, state, batch):
    """float32 [B, N]: the cosine of each of the last patches [B, N, D] with the row's caption.

    A patch is where the picture would be if the patch were all that the teacher pools.
    """
    teacher, (text, mask) = self.teacher, self._caption(batch)
    if teacher.pool == "map":
      pool = AttentionPool(teacher.heads, teacher.mlp_dim or default_mlp_dim(
          teacher.width, teacher.activation), teacher.activation, teacher.norm_eps, dtype=teacher.dtype)
      alone = pool.apply({"params": state["teacher"]["pool"]}, x.reshape(-1, 1, x.shape[-1]))
      x = alone.reshape(x.shape)
    x = self._projected(x, state) if teacher.out_dim else x
    caption, _ = self.text.apply({"params": state["text"]}, text, mask)
    return jnp.sum(unit(x) * unit(caption)[:, None], axis=-1)

  def _caption(self, batch):
    """The caption's tokens int32 [B, L], and bool [B, L] which of them are real, or None."""
    if "text" not in batch:
      raise ValueError("target.text: the batch has no tokens `text` of a caption; let data tokenise "
                       "one, or take a mask that is not guided by the text")
    if batch["text"].shape[1] > self.text.length:
      raise ValueError(f"target.text.length: {self.text.length} positions for captions of "
                       f"{batch['text'].shape[1]} tokens; tokenise to that length")
    return batch["text"], batch.get("text_mask")

  def _image(self, batch):
    if batch["image"].ndim != 4:
      raise ValueError("target: a teacher takes images of one size [B, H, W, C], not "
                       f"{list(batch['image'].shape)}")
    return batch["image"]

  def _seen(self, image, grid):
    """The image at the size at which the teacher has the student's grid of patches."""
    if len(grid) != 2 or len(sides(self.teacher.patch)) != 2:
      raise ValueError(f"target.teacher.patch: {self.teacher.patch} for the encoder's grid of "
                       f"{grid}; both must be of images")
    known = self.teacher.grid
    if known is not None and tuple(known) != tuple(grid) and self.teacher.resample is None:
      raise ValueError(
          f"target.teacher.grid: it has learned positions for {known[0]}x{known[1]} patches, and "
          f"the encoder {grid[0]}x{grid[1]} patches; target.teacher.resample='bicubic' adapts them")
    size = self._size(grid)
    if image.shape[1:3] == size:
      return image
    return jax.image.resize(image, (len(image), *size, image.shape[-1]), "bicubic")

  def _size(self, grid):
    """Pixels of an image of so many of the teacher's patches."""
    return tuple(count * side for count, side in zip(grid, sides(self.teacher.patch)))


build = Features
