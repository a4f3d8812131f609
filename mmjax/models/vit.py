"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) and its common variants.

  CLIP     pool="cls", class_token=True, class_position=True, position="learned", pre_norm=True,
           patch_bias=False, activation="quick_gelu", norm_eps=1e-5, out_dim=512
  SigLIP   the defaults: pool="map", position="learned"
  DINOv2   pool="cls", class_token=True, class_position=True, position="learned", registers=4,
           layer_scale=1e-5, activation="gelu" or "swiglu"
  DINOv3   pool="cls", class_token=True, position="rotary_unit", registers=4, layer_scale=1.0,
           attention_bias="qvo", activation="gelu" or "swiglu", norm_eps=1e-5
  MAE      pool="mean" or "cls", class_token=True, position="sincos", activation="gelu"
  BEiT     as MAE or with other positions, mask_token=True
  video    patch=(frames, height, width), as in space-time MAE (arXiv:2205.09113)
  MAGE     patch=1, tokenizer=...: the patches are ids
  NaFlex   SigLIP 2's variable resolution: images given as patches, see `ViT.__call__`
"""

from typing import Any

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.linear import Linear, logical
from mmjax.nn.mlp import default_mlp_dim
from mmjax.nn.names import check_choice
from mmjax.nn.norm import layer_norm
from mmjax.nn.patch import patch_grid, patchify
from mmjax.nn.pooling import AttentionPool, mean_pool
from mmjax.nn.positions import rotary_2d, rotary_unit_2d, sincos, sincos_2d
from mmjax.nn.resample import METHODS, resample_grid, triangle_weights
from mmjax.nn.transformer import Transformer, check_trunk
from mmjax.parallel import mesh as mesh_lib

POOLS = ("cls", "mean", "cls_mean", "map", "none")
POSITIONS = ("learned", "sincos", "sincos_endpoint", "rotary", "rotary_unit", "none")
FEATURES = ("tokens", "prefix", "attention")


def sides(size):
  """A patch or a grid as a tuple: an int is that of a square."""
  return (size, size) if isinstance(size, int) else tuple(size)


class ViT(nn.Module):
  """Image or video encoder. Inputs of any aspect are encoded, in whole patches.

  The sequence is [class token, registers, patches row by row]; only patches have positions, except
  with `class_position`.

  Attributes:
    patch: size of a patch in pixels, or (height, width); of videos (frames, height, width).
    width, depth, heads: of the trunk.
    mlp_dim: hidden width of the MLPs; None for 4 * width (SwiGLU: two thirds of it).
    activation: a name of `mlp.ACTIVATIONS`, such as "gelu" (exact), "gelu_tanh" or "swiglu".
    pool: "cls", "mean" of the patches, "cls_mean" (both, [B, 2 D]), "map" (attention pooling over the
      patches) or "none".
    class_token: prepend a learned token.
    class_position: the class token has a position of its own, as in CLIP and DINOv2.
    registers: number of learned tokens without position (Darcet et al. 2024, arXiv:2309.16588).
    position: "learned", "sincos" (MAE), "sincos_endpoint" (big_vision), "rotary" (of the patch's
      index), "rotary_unit" (of its place in the image, DINOv3) or "none".
    grid: (rows, columns) of the learned positions; needed with "learned" and only then. Of videos
      (frames, rows, columns): a position is the sum of one in time and one in space, as it is with
      "sincos" (arXiv:2205.09113, sec. 3.1).
    rotary_base: ratio of the fastest to the slowest frequency of rotary positions, about.
    resample: how learned positions are brought to an image of another grid, a name of
      `resample.METHODS`; None: such an image is an error.
    patch_bias: the patch embedding has a bias.
    pre_norm: layer norm before the first block, as in CLIP.
    final_norm: layer norm after the last block.
    rep_dim: width of a tanh layer after pooling; None for none.
    out_dim: width of a linear projection of the result; None for none.
    out_bias: that projection has a bias.
    classes: number of outputs of a classifier, zero at the start; None for none.
    qk_norm, layer_scale, drop_path, dropout, norm_eps, scan, remat, attention: as in `Transformer`.
    kernel_init: "xavier_uniform", "truncated_normal" (0.02) or "lecun_normal", for the trunk. Patch
      embedding and projections are always LeCun normal, positions normal with 1 / sqrt(width).
    dtype: of the computation, "float32" or "bfloat16". Parameters, norms and softmax are float32.
    attention_bias, mlp_bias: as in `Transformer`.
    mask_token: there is a learned token that takes the place of `masked` patches.
    tokenizer: of images (see `mmjax/models/vq.py`), with patch=1: a token is an id that it makes of a
      picture, embedded by the parameter `token_embed` [K + 1, D], whose last row is for ids that are
      masked; then comes the patch embedding. Its weights are frozen and no parameters: they are the
      Linen collection "frozen", which an objective keeps in its state.
  """
  patch: int | tuple[int, int] | tuple[int, int, int] = 16
  width: int = 768
  depth: int = 12
  heads: int = 12
  mlp_dim: int | None = None
  activation: str = "gelu_tanh"
  pool: str = "map"
  class_token: bool = False
  class_position: bool = False
  registers: int = 0
  position: str = "learned"
  grid: tuple[int, int] | tuple[int, int, int] | None = None
  rotary_base: float = 100.0
  resample: str | None = None
  patch_bias: bool = True
  pre_norm: bool = False
  final_norm: bool = True
  rep_dim: int | None = None
  out_dim: int | None = None
  out_bias: bool = False
  classes: int | None = None
  qk_norm: bool = False
  layer_scale: float | None = None
  drop_path: float = 0.0
  dropout: float = 0.0
  norm_eps: float = 1e-6
  scan: bool = True
  remat: str = "none"
  attention: str = "auto"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"
  attention_bias: str = "qkvo"
  mlp_bias: bool = True
  mask_token: bool = False
  tokenizer: Any = None

  def __post_init__(self):
    check_trunk("ViT", self)
    if self.tokenizer is not None and sides(self.patch) != (1, 1):
      raise ValueError(f"ViT.patch: must be 1 with a tokenizer, one token an id, not {self.patch}")
    check_choice("ViT.pool", self.pool, POOLS)
    check_choice("ViT.position", self.position, POSITIONS)
    if (self.grid is None) == (self.position == "learned"):
      raise ValueError("ViT.grid = (rows, columns) of patches goes with position='learned': "
                       f"got grid={self.grid}, position={self.position!r}.")
    if self.resample is not None:
      check_choice("ViT.resample", self.resample, METHODS)
    if not self.class_token and (self.pool.startswith("cls") or self.class_position):
      raise ValueError("ViT: pool='cls' or 'cls_mean' and class_position need class_token=True.")
    if self.pool == "none" and (self.rep_dim or self.out_dim or self.classes):
      raise ValueError("ViT: pool='none' leaves nothing for rep_dim, out_dim or classes to act on.")
    if len(sides(self.patch)) == 3 and self.position not in ("learned", "sincos", "none"):
      raise ValueError(f"ViT.position = {self.position!r} has no form for videos; take 'learned', "
                       "'sincos' or 'none'.")
    if self.grid is not None and len(sides(self.grid)) != len(sides(self.patch)):
      raise ValueError(f"ViT.grid = {self.grid} and ViT.patch = {self.patch} must both be of images "
                       "(rows, columns) or both of videos (frames, rows, columns).")
    super().__post_init__()

  def grid_of(self, shape):
    """The patches of images (B, H, W, C) as (rows, columns); of videos (frames, rows, columns).

    Raises:
      ValueError: they are not a whole number of patches.
    """
    if self.tokenizer is not None:
      return self.tokenizer.grid_of(shape)
    return patch_grid(shape, sides(self.patch))

  @nn.compact
  def __call__(self, image, *, keep=None, masked=None, join=None, image_mask=None, image_grid=None,
               keys=None, train=False, want=()):
    """Encodes images or videos.

    Args:
      image: float [B, H, W, C], or videos [B, T, H, W, C] where the patch has frames; or
        [B, N, patch height, patch width, C], the patches of images of different shapes, row by row
        and padded to N. With a tokenizer also ids, int32 [B, rows, columns]; K is a masked one.
      image_mask: of images given as patches: bool [B, N], False for padding, which is not seen.
      image_grid: of images given as patches: int32 [B, 2], (rows, columns) of each. Learned positions
        are resampled to it ("bilinear"), as in SigLIP 2 (arXiv:2502.14786, sec. 2.4.2).
      keep: int32 [B, K], indices of the patches that are encoded, numbered row by row; None for
        all. Only these N = K patches reach the trunk.
      masked: bool [B, N], True where the mask token takes the place of a patch: nothing of its pixels
        is seen, but its position is. Of all patches, whatever `keep` is.
      join: function from the embedded patches with their positions [B, N, D] to the tokens that reach
        the trunk, [B, K, D], and bool [B, K], False for padding: so other modalities join the patches.
      keys: one PRNG key a row, [B]; needed in training with drop-path or dropout.
      train: drop-path and dropout are active.
      want: features wanted too, see below.

    Returns:
      The pooled image [B, D] (None with pool="none"), and a dict of
        "tokens" [B, N, D] and "prefix" [B, P, D] (class token, then registers), if wanted: after
          the final norm;
        "layer/i" [B, P + N, D], if wanted: what block i gives, before the final norm;
        "attention/i" float32 [B, heads, P + N, P + N], if wanted: the weights of block i, queries
          before keys; "attention" are those of the last block;
        "logits" float32 [B, classes], if there is a classifier.

    Raises:
      ValueError: the image does not fit the patches or the grid, `want` has an unknown name, or
        there is no mask token.
    """
    of_blocks = [f"{kind}/{i}" for kind in ("layer", "attention") for i in range(self.depth)]
    for name in want:
      check_choice("ViT want", name, (*FEATURES, *of_blocks))
    x, rotary = self._embed(image, image_grid, keep, masked)
    if keep is not None and image_mask is not None:
      image_mask = jnp.take_along_axis(image_mask, keep, axis=1)
    if join is not None:
      if rotary is not None:
        raise ValueError("ViT.position: what joins the patches has no rotary position; take 'sincos'.")
      x, image_mask = join(x)
    x, prefix = self._add_prefix(x)
    if rotary is not None:  # an angle of zero: no position
      rotary = jnp.pad(rotary, [(0, 0)] * (rotary.ndim - 2) + [(prefix, 0), (0, 0)])
    if self.pre_norm:
      x = layer_norm(self.norm_eps, "pre_norm")(x).astype(self.dtype)
    x = mesh_lib.constrain(x, ("batch", "length", "embed"))
    padding = image_mask
    if padding is not None:
      padding = jnp.pad(padding, [(0, 0), (prefix, 0)], constant_values=True)
    x, features = Transformer(
        self.depth, self.heads, self._mlp_dim(), self.activation, False, self.qk_norm,
        self.layer_scale, self.drop_path, self.dropout, self.norm_eps, self.scan, self.remat,
        self.attention, self.kernel_init, self.dtype, self.attention_bias, self.mlp_bias,
        name="trunk")(
            x, padding=padding, rotary=rotary, keys=keys, train=train, want=want)
    if self.final_norm:
      x = layer_norm(self.norm_eps, "final_norm", settled=True)(x).astype(self.dtype)
    tokens = {"prefix": x[:, :prefix], "tokens": x[:, prefix:]}
    features |= {name: tokens[name] for name in tokens if name in want}
    return self._head(x, prefix, image_mask, features)

  def _mlp_dim(self):
    return self.mlp_dim or default_mlp_dim(self.width, self.activation)

  def _embed(self, image, image_grid, keep, masked):
    """The visible patches with their positions [B, N, D], and rotary angles or None."""
    patch = sides(self.patch)
    if self.tokenizer is not None:
      image = self._embed_ids(image)
    given_as_patches = image.ndim == 5 and len(patch) == 2
    if given_as_patches:
      self._check_patches(image, image_grid)
      grid = None
    else:
      grid = patch_grid(image.shape, patch)
    axes = ("patch_frames", "patch_height", "patch_width")[-len(patch):]

    def project(self, image):
      patches = image if given_as_patches else patchify(image, patch)
      return Linear((self.width,), (*axes, "channels", "embed"), self.patch_bias, dtype=self.dtype,
                    name="patch_embed")(patches)

    # The images are there anyway; a copy of them in patches need not be kept.
    x = (project if self.remat == "none" else nn.remat(project))(self, image)
    x = self._hide(x, masked)
    table = self._positions_of_patches(image_grid, x.shape[1]) if given_as_patches else (
        self._position_table(grid))
    if table is not None:
      x = x + table.astype(x.dtype)
    rotary = None
    if self.position.startswith("rotary"):
      angles = rotary_2d if self.position == "rotary" else rotary_unit_2d
      rotary = angles(grid, self.width // self.heads, self.rotary_base)
    if keep is not None:
      x = jnp.take_along_axis(x, keep[:, :, None], axis=1)
      rotary = None if rotary is None else rotary[keep]
    return x, rotary

  def _embed_ids(self, image):
    """Pictures [B, H, W, C], or ids, as an image whose channels are embeddings: [B, rows, columns, D]."""
    init = logical(nn.initializers.normal(0.02), "codes", "embed")
    table = self.param("token_embed", init, (self.tokenizer.codes + 1, self.width), jnp.float32)
    ids = image if image.ndim == 3 else self._ids(image)
    return table.astype(self.dtype)[ids]

  def _ids(self, image):
    """Pictures [B, H, W, C] -> int32 [B, rows, columns], by the frozen tokenizer."""
    if self.is_initializing():
      key = self.make_rng("params")
      self.variable("frozen", "tokenizer", lambda: self.tokenizer.init(key, image))
    weights = mesh_lib.unbox(self.get_variable("frozen", "tokenizer", {}))  # a palette has none
    return self.tokenizer.ids(weights, image).reshape(len(image), *self.grid_of(image.shape))

  def _hide(self, x, masked):
    """[B, N, D] with the mask token where bool [B, N] is True; the parameter is there at any rate."""
    if not self.mask_token:
      if masked is not None:
        raise ValueError("ViT: `masked` patches need ViT.mask_token=True.")
      return x
    init = logical(nn.initializers.normal(0.02), "embed")
    token = self.param("mask_token", init, (self.width,), jnp.float32)
    return x if masked is None else jnp.where(masked[:, :, None], token.astype(x.dtype), x)

  def _check_patches(self, image, image_grid):
    if image.shape[2:4] != sides(self.patch):
      raise ValueError(f"Patches of {image.shape[2]}x{image.shape[3]} pixels, but ViT.patch is "
                       f"{self.patch}.")
    if image_grid is None or self.position not in ("learned", "none"):
      raise ValueError("Images given as patches need `image_grid`, and position='learned' or 'none' "
                       f"rather than {self.position!r}.")

  def _learned(self):
    """The learned positions in space, float32 [rows, columns, D]."""
    init = logical(nn.initializers.normal(self.width ** -0.5), "rows", "columns", "embed")
    return self.param("position", init, (*sides(self.grid)[-2:], self.width), jnp.float32)

  def _learned_in_time(self):
    """The learned positions of videos in time, float32 [frames, D]."""
    init = logical(nn.initializers.normal(self.width ** -0.5), "frames", "embed")
    return self.param("position_time", init, (sides(self.grid)[0], self.width), jnp.float32)

  def _position_table(self, grid):
    """What is added to the patches of a `grid`: float32 [N, D] or None."""
    if self.position == "sincos_endpoint":
      return sincos_2d(grid, self.width, endpoint=True)
    if self.position == "sincos":
      return sincos(grid, self.width)
    if self.position != "learned":
      return None
    if grid != sides(self.grid) and self.resample is None:
      times = lambda counts: "x".join(map(str, counts))
      raise ValueError(f"The image has {times(grid)} patches, but ViT.grid declares learned "
                       f"positions for {times(sides(self.grid))} (ViT.resample says how to bring "
                       "them to other images).")
    table = self._resampled(self._learned(), grid[-2:]).reshape(-1, self.width)
    if len(grid) == 2:
      return table
    time = self._resampled(self._learned_in_time()[:, None], (grid[0], 1))  # [frames, 1, D]
    return (time + table).reshape(-1, self.width)

  def _resampled(self, table, grid):
    return table if table.shape[:2] == grid else resample_grid(table, grid, self.resample)

  def _positions_of_patches(self, image_grid, length):
    """As `_position_table`, for each image its own grid: int32 [B, 2] -> float32 [B, length, D]."""
    if self.position == "none":
      return None
    table = self._learned()
    rows, columns = jnp.split(jnp.maximum(image_grid, 1), 2, axis=1)  # [B, 1]; padding has none
    place = jnp.arange(length)
    place = jnp.where(place < rows * columns, place, 0)  # padding stands where the first patch does
    y = triangle_weights(place // columns, rows, table.shape[0])      # [B, length, rows of table]
    x = triangle_weights(place % columns, columns, table.shape[1])
    return jnp.einsum("bny,bnx,yxd->bnd", y, x, table)

  def _add_prefix(self, x):
    """Class token and registers before the patches; also their number."""
    normal = logical(nn.initializers.normal(0.02), "token", "embed")
    zeros = logical(nn.initializers.zeros, "token", "embed")
    prefix = []
    if self.class_token:
      token = self.param("class_token", zeros, (1, self.width), jnp.float32)
      if self.class_position:
        token = token + self.param("class_position", normal, (1, self.width), jnp.float32)
      prefix.append(token)
    if self.registers:
      prefix.append(self.param("registers", normal, (self.registers, self.width), jnp.float32))
    if not prefix:
      return x, 0
    tokens = jnp.concatenate(prefix).astype(x.dtype)
    tokens = jnp.broadcast_to(tokens, (x.shape[0], *tokens.shape))
    return jnp.concatenate([tokens, x], axis=1), tokens.shape[1]

  def _head(self, x, prefix, mask, features):
    """Pools the trunk's result; see `__call__` for what is returned."""
    if self.pool == "none":
      return None, features
    if self.pool == "cls":
      y = x[:, 0]
    elif self.pool == "mean":
      y = mean_pool(x[:, prefix:], mask)
    elif self.pool == "cls_mean":
      y = jnp.concatenate([x[:, 0], mean_pool(x[:, prefix:], mask)], axis=-1)
    else:
      y = AttentionPool(self.heads, self._mlp_dim(), self.activation, self.norm_eps,
                        self.kernel_init, self.dtype, name="pool")(x[:, prefix:], mask)
    if self.rep_dim:
      y = jnp.tanh(Linear((self.rep_dim,), ("embed", "joint"), dtype=self.dtype, name="rep")(y))
    if self.out_dim:
      y = Linear((self.out_dim,), ("embed", "joint"), self.out_bias, dtype=self.dtype,
                 name="projection")(y)
    if self.classes:
      head = Linear((self.classes,), ("embed", "classes"), kernel_init=nn.initializers.zeros,
                    dtype=self.dtype, name="classifier")
      features["logits"] = head(y).astype(jnp.float32)
    return mesh_lib.constrain(y, ("batch", "embed")), features


build = ViT
