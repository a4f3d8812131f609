"""Dual encoder: an image and a text tower that meet in one space (CLIP, SigLIP, LiT)."""

import math

from flax import linen as nn
import jax
import jax.numpy as jnp

from mmjax.nn.linear import logical

# Below this squared norm a vector counts as zero, and its gradient stays finite.
MIN_SQUARED_NORM = 1e-16


def unit(x):
  """x / |x| in float32 over the last axis; a zero vector stays zero, with a finite gradient."""
  x = x.astype(jnp.float32)
  squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.maximum(squared, MIN_SQUARED_NORM))


class DualEncoder(nn.Module):
  """Two towers whose pooled results are compared by their cosine.

  The towers project to the common width themselves (their `out_dim`).

  Attributes:
    image: a module called as `ViT` is.
    text: a module called as `TextTransformer` is.
    scale_init: initial logit scale; its logarithm is the parameter. SigLIP 10, CLIP 1 / 0.07.
    scale_max: the scale used is never above it; None for no bound. CLIP 100.
    bias_init: initial logit bias; None for a model without one. SigLIP -10, CLIP None.
  """
  image: nn.Module
  text: nn.Module
  scale_init: float = 10.0
  scale_max: float | None = None
  bias_init: float | None = -10.0

  def __post_init__(self):
    if self.scale_init <= 0:
      raise ValueError(f"DualEncoder.scale_init = {self.scale_init} must be positive.")
    super().__post_init__()

  @nn.compact
  def __call__(self, batch_image=None, text=None, text_mask=None, *, keep=None, image_mask=None,
               image_grid=None, keys=None, train=False, want=()):
    """Encodes what is given. Both are needed to initialise the parameters.

    Args:
      batch_image: float [B, H, W, C] or None; or patches, with image_mask and image_grid, see `ViT`.
      text: int32 [B, L] or None.
      text_mask: bool [B, L], True for real tokens; None when all are.
      keep: int32 [B, K], indices of the visible patches, see `ViT`.
      keys: one PRNG key a row, [B]; needed in training with drop-path or dropout.
      train: drop-path and dropout are active.
      want: "image/..." and "text/..." names of the towers' features, and "image/pooled",
        "text/pooled", the embeddings before they are made unit vectors.

    Returns:
      A dict of "image/embed" and "text/embed" float32 [B, D] (unit norm), "logit_scale" float32 []
      (exponentiated), "logit_bias" float32 [] where the model has one, and what `want` names. A
      modality that is not given is left out.

    Raises:
      ValueError: the towers' widths differ, `want` has a name that is of neither tower.
    """
    for name in want:
      if not name.startswith(("image/", "text/")):
        raise ValueError(f"DualEncoder want {name!r}: names begin with 'image/' or 'text/'.")
    keys = (None, None) if keys is None else jnp.moveaxis(jax.vmap(jax.random.split)(keys), 1, 0)
    features = {}
    if batch_image is not None:
      how = {} if image_grid is None else dict(image_mask=image_mask, image_grid=image_grid)
      how |= {} if keep is None else dict(keep=keep)
      pooled, extra = self.image(batch_image, keys=keys[0], train=train,
                                 want=_of_tower(want, "image"), **how)
      features |= _named("image", pooled, extra, want)
    if text is not None:
      pooled, extra = self.text(text, text_mask, keys=keys[1], train=train,
                                want=_of_tower(want, "text"))
      features |= _named("text", pooled, extra, want)
    widths = [features[name].shape[-1] for name in ("image/embed", "text/embed")
              if name in features]
    if len(set(widths)) > 1:
      raise ValueError(f"DualEncoder: the image embedding has width {widths[0]}, the text "
                       f"embedding {widths[1]}; give the towers the same out_dim.")
    return features | self._scale()

  def _scale(self):
    """The learned scale and bias of the logits."""
    scale = jnp.exp(self.param("logit_scale", _scalar(math.log(self.scale_init)), ()))
    if self.scale_max is not None:
      scale = jnp.minimum(scale, self.scale_max)
    if self.bias_init is None:
      return {"logit_scale": scale}
    bias = self.param("logit_bias", _scalar(self.bias_init), ())
    return {"logit_scale": scale, "logit_bias": bias}


def _scalar(value):
  return logical(lambda key, shape: jnp.full(shape, value, jnp.float32))


def _of_tower(want, tower):
  """The names in `want` that `tower` itself knows."""
  names = [name.removeprefix(f"{tower}/") for name in want if name.startswith(f"{tower}/")]
  return tuple(name for name in names if name != "pooled")


def _named(tower, pooled, extra, want):
  """A tower's results under their full names."""
  features = {f"{tower}/{name}": value for name, value in extra.items()}
  if f"{tower}/pooled" in want:
    features[f"{tower}/pooled"] = pooled
  return features | {f"{tower}/embed": unit(pooled)}


build = DualEncoder
