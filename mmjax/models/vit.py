"""Vision transformer (Dosovitskiy et al. 2021, arXiv:2010.11929) and its common variants.

  CLIP     pool="cls", class_token=True, class_position=True, position="learned", pre_norm=True,
           patch_bias=False, activation="quick_gelu", norm_eps=1e-5, out_dim=512
  SigLIP   the defaults: pool="map", position="learned"
  DINOv2   pool="cls", class_token=True, class_position=True, position="learned", registers=4,
           layer_scale=1e-5, activation="gelu" or "swiglu"
  MAE      pool="mean" or "cls", class_token=True, position="sincos", activation="gelu"
"""

from flax import linen as nn
import jax.numpy as jnp

from mmjax.nn.linear import Linear, logical
from mmjax.nn.mlp import default_mlp_dim
from mmjax.nn.names import check_choice, pair
from mmjax.nn.norm import layer_norm
from mmjax.nn.patch import patch_grid, patchify
from mmjax.nn.pooling import AttentionPool, mean_pool
from mmjax.nn.positions import rotary_2d, sincos_2d
from mmjax.nn.transformer import Transformer, check_trunk

POOLS = ("cls", "mean", "map", "none")
POSITIONS = ("learned", "sincos", "sincos_endpoint", "rotary", "none")
FEATURES = ("tokens", "prefix")


class ViT(nn.Module):
  """Image encoder. Images of any aspect are encoded, in whole patches.

  The sequence is [class token, registers, patches row by row]; only patches have positions, except
  with `class_position`.

  Attributes:
    patch: size of a patch in pixels, or (height, width).
    width, depth, heads: of the trunk.
    mlp_dim: hidden width of the MLPs; None for 4 * width (SwiGLU: two thirds of it).
    activation: "gelu" (exact), "gelu_tanh", "quick_gelu" or "swiglu".
    pool: "cls", "mean" of the patches, "map" (attention pooling over the patches) or "none".
    class_token: prepend a learned token.
    class_position: the class token has a position of its own, as in CLIP and DINOv2.
    registers: number of learned tokens without position (Darcet et al. 2024, arXiv:2309.16588).
    position: "learned", "sincos" (MAE), "sincos_endpoint" (big_vision), "rotary" or "none".
    grid: (rows, columns) of the learned positions; needed with "learned" and only then.
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
  """
  patch: int | tuple[int, int] = 16
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
  grid: tuple[int, int] | None = None
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
  attention: str = "xla"
  kernel_init: str = "xavier_uniform"
  dtype: str = "float32"

  def __post_init__(self):
    check_trunk("ViT", self)
    check_choice("ViT.pool", self.pool, POOLS)
    check_choice("ViT.position", self.position, POSITIONS)
    if (self.grid is None) == (self.position == "learned"):
      raise ValueError("ViT.grid = (rows, columns) of patches goes with position='learned': "
                       f"got grid={self.grid}, position={self.position!r}.")
    if not self.class_token and (self.pool == "cls" or self.class_position):
      raise ValueError("ViT: pool='cls' and class_position need class_token=True.")
    if self.pool == "none" and (self.rep_dim or self.out_dim or self.classes):
      raise ValueError("ViT: pool='none' leaves nothing for rep_dim, out_dim or classes to act on.")
    super().__post_init__()

  @nn.compact
  def __call__(self, image, *, keep=None, keys=None, train=False, want=()):
    """Encodes images.

    Args:
      image: float [B, H, W, C].
      keep: int32 [B, K], indices of the patches that are encoded, numbered row by row; None for
        all. Only these N = K patches reach the trunk.
      keys: one PRNG key a row, [B]; needed in training with drop-path or dropout.
      train: drop-path and dropout are active.
      want: features wanted too, see below.

    Returns:
      The pooled image [B, D] (None with pool="none"), and a dict of
        "tokens" [B, N, D] and "prefix" [B, P, D] (class token, then registers), if wanted: after
          the final norm;
        "layer/i" [B, P + N, D], if wanted: what block i gives, before the final norm;
        "logits" float32 [B, classes], if there is a classifier.

    Raises:
      ValueError: the image does not fit the patches or the grid, `want` has an unknown name.
    """
    for name in want:
      check_choice("ViT want", name, (*FEATURES, *(f"layer/{i}" for i in range(self.depth))))
    x, rotary = self._embed(image, keep)
    x, prefix = self._add_prefix(x)
    if rotary is not None:  # an angle of zero: no position
      rotary = jnp.pad(rotary, [(0, 0)] * (rotary.ndim - 2) + [(prefix, 0), (0, 0)])
    if self.pre_norm:
      x = layer_norm(self.norm_eps, "pre_norm")(x).astype(self.dtype)
    x = nn.with_logical_constraint(x, ("batch", "length", "embed"))
    x, features = Transformer(
        self.depth, self.heads, self._mlp_dim(), self.activation, False, self.qk_norm,
        self.layer_scale, self.drop_path, self.dropout, self.norm_eps, self.scan, self.remat,
        self.attention, self.kernel_init, self.dtype, name="trunk")(
            x, rotary=rotary, keys=keys, train=train, want=want)
    if self.final_norm:
      x = layer_norm(self.norm_eps, "final_norm")(x).astype(self.dtype)
    all_features = {"prefix": x[:, :prefix], "tokens": x[:, prefix:]}
    features |= {name: all_features[name] for name in FEATURES if name in want}
    return self._head(x, prefix, features)

  def _mlp_dim(self):
    return self.mlp_dim or default_mlp_dim(self.width, self.activation)

  def _embed(self, image, keep):
    """The visible patches with their positions [B, N, D], and rotary angles or None."""
    patch = pair(self.patch)
    grid = patch_grid(image.shape, patch)
    x = Linear((self.width,), ("patch_height", "patch_width", "channels", "embed"), self.patch_bias,
               dtype=self.dtype, name="patch_embed")(patchify(image, patch))
    table = self._position_table(grid)
    if table is not None:
      x = x + table.astype(x.dtype)
    rotary = rotary_2d(grid, self.width // self.heads) if self.position == "rotary" else None
    if keep is not None:
      x = jnp.take_along_axis(x, keep[:, :, None], axis=1)
      rotary = None if rotary is None else rotary[keep]
    return x, rotary

  def _position_table(self, grid):
    """What is added to the patches of a `grid`: float32 [N, D] or None."""
    if self.position == "learned":
      if grid != pair(self.grid):
        raise ValueError(f"The image has {grid[0]}x{grid[1]} patches, but ViT.grid declares "
                         f"learned positions for {self.grid[0]}x{self.grid[1]}.")
      init = logical(nn.initializers.normal(self.width ** -0.5), "position", "embed")
      return self.param("position", init, (grid[0] * grid[1], self.width), jnp.float32)
    if self.position.startswith("sincos"):
      return sincos_2d(grid, self.width, endpoint=self.position == "sincos_endpoint")
    return None

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

  def _head(self, x, prefix, features):
    """Pools the trunk's result; see `__call__` for what is returned."""
    if self.pool == "none":
      return None, features
    if self.pool == "cls":
      y = x[:, 0]
    elif self.pool == "mean":
      y = mean_pool(x[:, prefix:])
    else:
      y = AttentionPool(self.heads, self._mlp_dim(), self.activation, self.norm_eps, self.attention,
                        self.kernel_init, self.dtype, name="pool")(x[:, prefix:])
    if self.rep_dim:
      y = jnp.tanh(Linear((self.rep_dim,), ("embed", "joint"), dtype=self.dtype, name="rep")(y))
    if self.out_dim:
      y = Linear((self.out_dim,), ("embed", "joint"), self.out_bias, dtype=self.dtype,
                 name="projection")(y)
    if self.classes:
      head = Linear((self.classes,), ("embed", "classes"), kernel_init=nn.initializers.zeros,
                    dtype=self.dtype, name="classifier")
      features["logits"] = head(y).astype(jnp.float32)
    return nn.with_logical_constraint(y, ("batch", "embed")), features


build = ViT
