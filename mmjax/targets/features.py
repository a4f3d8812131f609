"""Features of a frozen teacher as targets.

  MaskDistill  the last tokens, normalised                      arXiv:2210.10615, sec. 3
  EVA, EVA-02  the last tokens, projected as CLIP's             arXiv:2211.07636; arXiv:2303.11331
  MaskAlign    several blocks, normalised, beside each other    arXiv:2211.08887, sec. 3
"""

import dataclasses
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from mmjax.models.vit import sides
from mmjax.nn.norm import normalise

EPSILON = 1e-5  # of the layer norm without parameters, as where it has some


@dataclasses.dataclass(frozen=True)
class Features:
  """What a frozen teacher makes of each patch of the whole image.

  The teacher sees `image` [B, H, W, C] as the student does, with nothing hidden, brought to the
  size at which it has as many patches as the student.

  State: {"teacher": parameters of the teacher}.

  Attributes:
    teacher: a ViT; of which weights, see `mmjax/training/frozen.py`.
    layers: the blocks whose results are the target, numbered from 0 (from the end if negative),
      one beside the other: d = len(layers) * width. None: the tokens after the final norm.
    project: these go through the teacher's projection, so they are in the space in which images
      meet texts: d = teacher.out_dim.
    normalise: layer norm without parameters, of each token (and each of `layers`) on its own.
  """

  teacher: nn.Module
  layers: tuple | None = None
  project: bool = False
  normalise: bool = True

  def __post_init__(self):
    depth = self.teacher.depth
    if self.layers is not None and not (
        self.layers and all(isinstance(i, int) and -depth <= i < depth for i in self.layers)):
      raise ValueError(f"layers: expected numbers of the teacher's {depth} blocks, from 0 to "
                       f"{depth - 1} or from -{depth} to -1, not {self.layers}")
    if self.project and (self.layers or not self.teacher.out_dim):
      raise ValueError("project: the teacher's projection acts on its last tokens; here are "
                       f"teacher.out_dim={self.teacher.out_dim} and layers={self.layers}")

  def init(self, rng, batch):
    grid = sides(self.teacher.grid or 1)  # parameters depend on no other
    image = jnp.zeros((1, *self._size(grid), self._image(batch).shape[-1]))
    return {"teacher": self.teacher.init(rng, image)["params"]}

  def size(self, batch, grid):
    self._seen(self._image(batch), grid)
    return self.teacher.out_dim if self.project else len(self.layers or (0,)) * self.teacher.width

  def __call__(self, state, batch, grid, guide=None):
    if guide not in (None, "attention"):
      raise ValueError(f"target: a teacher of images has no {guide} for the mask to go by")
    if guide and not self.teacher.class_token:
      raise ValueError("target.teacher.class_token: there is none, whose attention the mask could "
                       "go by; take another teacher, or a mask that is not guided")
    image = self._seen(self._image(batch), grid)
    names = [f"layer/{i % self.teacher.depth}" for i in self.layers or ()] or ["tokens"]
    want = (*names, *([guide] if guide else []))
    _, found = self.teacher.apply({"params": state["teacher"]}, image, want=want)
    count = math.prod(grid)
    tokens = jnp.concatenate([self._target(found[name][:, -count:], state) for name in names], -1)
    # How the class token attends to the patches in the last block, mean over the heads.
    return tokens, found["attention"][:, :, 0, -count:].mean(axis=1) if guide else None

  def _target(self, x, state):
    """float32 [B, N, d] of one layer's patches [B, N, D]."""
    if self.project:
      projection = state["teacher"]["projection"]
      x = x @ projection["kernel"].astype(x.dtype)
      x = x + projection["bias"].astype(x.dtype) if "bias" in projection else x
    x = x.astype(jnp.float32)
    return normalise(x, EPSILON) if self.normalise else x

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
