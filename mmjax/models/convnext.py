"""ConvNeXt (Liu et al. 2022, arXiv:2201.03545), which can compute on part of an image only.

Leaving cells out is what a sparse convolution does (SparK, Tian et al. 2023, arXiv:2301.03580,
sec. 3.1): a cell that is not seen is zero in the input of every convolution, and stays so. What is
seen then depends on what is seen alone, and no hole is filled layer by layer.
"""

import functools
from typing import ClassVar

from flax import linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.conv import by_rows
from mmjax.nn.linear import KERNEL_INITS, Linear, logical
from mmjax.nn.mlp import Mlp
from mmjax.nn.names import check_choice
from mmjax.nn.norm import layer_norm
from mmjax.nn.patch import patch_grid, patchify
from mmjax.nn.transformer import REMAT_POLICIES, drop_path
from mmjax.parallel import mesh as mesh_lib

KERNEL = 7  # side of the depthwise convolutions
EXPANSION = 4  # hidden width of a block's MLP, in widths


class DepthwiseConv(nn.Module):
  """Convolution of each channel by itself: [B, H, W, C] -> same shape, zeros around.

  Parameters, float32: `kernel` [KERNEL, KERNEL, 1, C], `bias` [C].
  """
  dtype: str = "float32"

  @nn.compact
  def __call__(self, x):
    width = x.shape[-1]
    kernel = self.param("kernel", logical(KERNEL_INITS["truncated_normal"], "kernel_height",
                                          "kernel_width", None, "norm"),
                        (KERNEL, KERNEL, 1, width), jnp.float32)
    bias = self.param("bias", logical(nn.initializers.zeros, "norm"), (width,), jnp.float32)
    y = depthwise(by_rows(x.astype(self.dtype)), kernel.astype(self.dtype))
    return by_rows(y + bias.astype(self.dtype))


def _depthwise(x, kernel):
  return jax.lax.conv_general_dilated(
      x, kernel, (1, 1), "SAME", feature_group_count=x.shape[-1],
      dimension_numbers=("NHWC", "HWIO", "NHWC"))


@jax.custom_vjp
def depthwise(x, kernel):
  """Convolution of each channel by itself: [B, H, W, C] and [K, K, 1, C], K odd -> [B, H, W, C].

  On CPUs the kernel's gradient has a form of its own: XLA makes a dense convolution of it there, which
  computes all C x C pairs of channels.
  """
  return _depthwise(x, kernel)


def _depthwise_bwd(saved, dy):
  x, kernel = saved
  dx = jax.vjp(lambda x: _depthwise(x, kernel), x)[1](dy)[0]
  of_xla = lambda x, dy: jax.vjp(lambda k: _depthwise(x, k), kernel)[1](dy)[0]
  return dx, jax.lax.platform_dependent(x, dy, cpu=functools.partial(
      _kernel_gradient, side=len(kernel)), default=of_xla)


def _kernel_gradient(x, dy, side):
  """[side, side, 1, C], place by place: the sum over [B, H, W] of x, shifted, times dy."""
  rows, columns, far = x.shape[1], x.shape[2], side // 2
  x = jnp.pad(x, ((0, 0), (far, far), (far, far), (0, 0)))
  one = lambda i, j: jnp.einsum("bhwc,bhwc->c", x[:, i:i + rows, j:j + columns], dy)
  return jnp.stack([jnp.stack([one(i, j) for j in range(side)]) for i in range(side)])[:, :, None]


depthwise.defvjp(lambda x, kernel: (_depthwise(x, kernel), (x, kernel)), _depthwise_bwd)


class Block(nn.Module):
  """x + scale * mlp(norm(depthwise(x))) (fig. 4 of the paper).

  Attributes: as in `ConvNeXt`.
  """
  layer_scale: float | None
  drop_path: float
  norm_eps: float
  dtype: str

  @nn.compact
  def __call__(self, x, drop_rate, seen, keys):
    """One block.

    Args:
      x: [B, H, W, C], zero where nothing is seen.
      drop_rate: float32 [].
      seen: bool [B, H, W, 1], or None for all.
      keys: PRNG keys of this block, one a row [B], or None when nothing is random.

    Returns:
      [B, H, W, C], zero where nothing is seen.
    """
    y = DepthwiseConv(self.dtype, name="depthwise")(x)
    y = layer_norm(self.norm_eps, "norm")(y).astype(self.dtype)
    tokens = y.reshape(len(y), -1, y.shape[-1])
    y = Mlp(EXPANSION * x.shape[-1], "gelu", "truncated_normal", self.dtype, name="mlp")(
        tokens).reshape(y.shape)
    if self.layer_scale is not None:
      init = logical(nn.initializers.constant(self.layer_scale), "embed")
      y = y * self.param("scale", init, y.shape[-1:], jnp.float32).astype(y.dtype)
    if keys is not None:
      y = drop_path(y, drop_rate, keys)
    return _only(x + y, seen)


class ConvNeXt(nn.Module):
  """Image encoder of stages, each with half the sides of the one before.

  Tokens are the cells of the last stage, row by row.

  Attributes:
    widths, depths: channels and blocks of each stage; (96, 192, 384, 768) and (3, 3, 9, 3) is T,
      depths (3, 3, 27, 3) S, and with widths (128, 256, 512, 1024) B.
    stem: side of the patches that the first stage begins with, in pixels.
    layer_scale: initial value of a learned scale on each branch; None for no scale.
    drop_path: rate of the last block; it grows linearly from 0 at the first.
    norm_eps: of all layer norms.
    final_norm_eps: of the last one; None for norm_eps. Hugging Face's has 1e-12 by default.
    out_dim: width of a linear projection of the result; None for none.
    out_bias: that projection has a bias.
    classes: number of outputs of a classifier, zero at the start; None for none.
    scan, remat: as in `Transformer`.
    dtype: of the computation, "float32" or "bfloat16". Parameters and norms are float32.
  """
  widths: tuple[int, ...] = (96, 192, 384, 768)
  depths: tuple[int, ...] = (3, 3, 9, 3)
  stem: int = 4
  layer_scale: float | None = 1e-6
  drop_path: float = 0.0
  norm_eps: float = 1e-6
  final_norm_eps: float | None = None
  out_dim: int | None = None
  out_bias: bool = False
  classes: int | None = None
  scan: bool = True
  remat: str = "none"
  dtype: str = "float32"
  pool: ClassVar[str] = "mean"
  mask_token: ClassVar[bool] = False

  def __post_init__(self):
    if len(self.widths) != len(self.depths) or not self.widths:
      raise ValueError(f"ConvNeXt.depths: {len(self.depths)} stages, but widths has "
                       f"{len(self.widths)}")
    check_choice("ConvNeXt.remat", self.remat, REMAT_POLICIES)
    check_choice("ConvNeXt.dtype", self.dtype, ("float32", "bfloat16"))
    super().__post_init__()

  @property
  def patch(self) -> int:
    """Pixels a side that a token stands for."""
    return self.stem * 2 ** (len(self.widths) - 1)

  def grid_of(self, shape):
    """(rows, columns) of the tokens of images of `shape` (B, H, W, C).

    Raises:
      ValueError: the sides are no multiples of `patch`.
    """
    return patch_grid(shape, (self.patch, self.patch))

  @nn.compact
  def __call__(self, image, *, keep=None, keys=None, train=False, want=()):
    """Encodes images.

    Args:
      image: float [B, H, W, C].
      keep: int32 [B, K], the tokens that are seen; None for all. The others are left out of all
        that is computed.
      keys: one PRNG key a row, [B]; needed in training with drop-path.
      train: drop-path is active.
      want: features wanted too, see below.

    Returns:
      The layer norm of the tokens' mean, [B, D] (projected with `out_dim`), and a dict of
        "tokens" [B, K or N, D] and "prefix" [B, 0, D] (there is no class token), if wanted;
        "stage/i" [B, rows_i, columns_i, width_i], if wanted: what stage i gives, zero where nothing
          is seen;
        "logits" float32 [B, classes], if there is a classifier.

    Raises:
      ValueError: the image does not fit, `want` has an unknown name, or `keys` are missing.
    """
    stages = [f"stage/{i}" for i in range(len(self.widths))]
    for name in want:
      check_choice("ConvNeXt want", name, ("tokens", "prefix", *stages))
    random = train and self.drop_path > 0
    if random and keys is None:
      raise ValueError("drop_path in training needs `keys`, one PRNG key a row.")
    seen = None if keep is None else seen_cells(keep, self.grid_of(image.shape))
    self.grid_of(image.shape)
    x, features, first = image, {}, 0
    rates = jnp.linspace(0.0, self.drop_path, sum(self.depths), dtype=jnp.float32)
    for i, (width, depth) in enumerate(zip(self.widths, self.depths)):
      fine = 2 ** (len(self.widths) - 1 - i)
      visible = None if seen is None else seen.repeat(fine, axis=1).repeat(fine, axis=2)
      x = _only(self._shrink(x, width, i), visible)
      layers = jnp.arange(first, first + depth, dtype=jnp.int32), rates[first:first + depth]
      x = self._stage(f"stage_{i}", depth)(x, visible, keys if random else None, layers)
      first += depth
      features[f"stage/{i}"] = x
    tokens = x.reshape(len(x), -1, x.shape[-1])
    if keep is not None:
      tokens = jnp.take_along_axis(tokens, keep[:, :, None], axis=1)
    features |= {"tokens": tokens, "prefix": tokens[:, :0]}
    eps = self.norm_eps if self.final_norm_eps is None else self.final_norm_eps
    pooled = layer_norm(eps, "final_norm", settled=True)(
        jnp.mean(tokens, axis=1, dtype=jnp.float32)).astype(self.dtype)
    return self._head(pooled, {name: features[name] for name in want})

  def _shrink(self, x, width, stage):
    """Patches of the image with a norm after, or of the stage before with a norm ahead of them."""
    side = 2 if stage else self.stem
    if stage:
      x = layer_norm(self.norm_eps, f"down_{stage}_norm")(x).astype(self.dtype)
    grid = patch_grid(x.shape, (side, side))
    y = Linear((width,), ("patch_height", "patch_width", "channels", "embed"),
               kernel_init=KERNEL_INITS["truncated_normal"], dtype=self.dtype,
               name=f"down_{stage}" if stage else "patch_embed")(patchify(x, (side, side)))
    if not stage:
      y = layer_norm(self.norm_eps, "patch_norm")(y).astype(self.dtype)
    return y.reshape(len(y), *grid, width)

  def _stage(self, name, depth):
    """(x, seen, keys, (numbers, rates)) -> x: the blocks, their parameters stacked."""

    def body(block, x, layer, seen, keys):
      number, rate = layer
      if keys is not None:
        keys = jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)
      x = block(x, rate, seen, keys)
      return mesh_lib.constrain(x, ("batch", None, None, "embed")), None

    block = Block
    if self.remat != "none":
      block = nn.remat(Block, policy=REMAT_POLICIES[self.remat], prevent_cse=not self.scan)
    module = block(self.layer_scale, self.drop_path, self.norm_eps, self.dtype, name=name)
    scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=depth,
                   in_axes=(0, nn.broadcast, nn.broadcast), unroll=1 if self.scan else depth,
                   metadata_params={nn.PARTITION_NAME: "layers"})
    return lambda x, seen, keys, layers: scan(module, x, layers, seen, keys)[0]

  def _head(self, y, features):
    if self.out_dim:
      y = Linear((self.out_dim,), ("embed", "joint"), self.out_bias, dtype=self.dtype,
                 name="projection")(y)
    if self.classes:
      head = Linear((self.classes,), ("embed", "classes"), kernel_init=nn.initializers.zeros,
                    dtype=self.dtype, name="classifier")
      features["logits"] = head(y).astype(jnp.float32)
    return mesh_lib.constrain(y, ("batch", "embed")), features


def seen_cells(keep, grid):
  """Tokens int32 [B, K] of a grid (rows, columns) as bool [B, rows, columns, 1], True where seen."""
  rows = jnp.arange(len(keep))[:, None]
  seen = jnp.zeros((len(keep), grid[0] * grid[1]), bool).at[rows, keep].set(True)
  return seen.reshape(len(keep), *grid, 1)


def _only(x, seen):
  return x if seen is None else jnp.where(seen, x, 0)


build = ConvNeXt
