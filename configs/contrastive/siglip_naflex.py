"""SigLIP at each picture's own aspect ratio: NaFlex of SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786,
sec. 2.4.2), after NaViT (Dehghani et al. 2023, arXiv:2307.06304).

  mmjax train --config=contrastive/siglip_naflex:smoke --workdir=runs/naflex
  mmjax train --config=contrastive/siglip_naflex:b16 --workdir=gs://bucket/naflex --config.data.train=SPEC

A picture is scaled to as many patches as fit in 256 with its aspect ratio kept; the rest is padding,
which nothing sees. Learned positions are resampled to each picture's grid. All shapes are static.
Variants that end in _buckets cut a picture to the nearest of a few aspect ratios instead of rounding its
sides to whole patches, so that nothing is distorted (SDXL: Podell et al. 2023, arXiv:2307.01952, sec. 2.3).

Variants: b16, b16_buckets, l16, l16_buckets, smoke, smoke_buckets.
Published: SigLIP 2 B/16 at 256 pixels, all of one shape: 79.1% ImageNet zero-shot; NaFlex as curves.
Differs here: one sequence length instead of five that take turns; sigmoid loss alone; the built-in
data, whose pictures are square (a random part of each is not), unless `data` is replaced.
"""

from configs import common
from configs.contrastive import siglip

PATCHES = 256


def get_config(arg=None):
  arg = common.variant(arg, "b16", "b16_buckets", "l16", "l16_buckets", "smoke", "smoke_buckets")
  arg, _, buckets = arg.partition("_")
  smoke = arg == "smoke"
  c = siglip.get_config(arg)
  patch, patches = c.objective.image.patch, 64 if smoke else PATCHES
  side = int(patches ** 0.5)
  c.objective.image.grid = (side, side)
  # Of a smoke run's mixture the parts differ in their source only.
  streams = [*c.data.mixture.values()] if smoke else [c.data]
  streams += [node.data for node in c.evals.values() if node.get("data")]
  streams += [c.eval_data] if smoke else []
  for stream in streams:
    stream.transforms = native(stream.transforms, patch, patches, bool(buckets))
  return c


def native(transforms, patch, patches, buckets):
  """The transforms with pictures as sequences of patches instead of squares of one size."""
  changed = []
  # What is cut off stands over in the middle of what is evaluated, and somewhere in what is trained on.
  trained = any(step["name"] == "RandomResizedCrop" for step in transforms)
  bucket = {"name": "AspectBucket", "patch": patch, "max_patches": patches, "crop": "random" if trained else "centre"}
  for step in transforms:
    step = dict(step)
    if step["name"] == "RandomResizedCrop":
      changed.append({**step, "size": None, "scale": (0.6, 1.0), "ratio": (0.6, 1 / 0.6)})
    elif step["name"] == "Normalise":
      patchify = {"name": "Patchify", "patch": patch, "max_patches": patches}
      changed += [bucket, {**patchify, "resize": False}] if buckets else [patchify]
    elif step["name"] == "Keep":
      changed.append({**step, "keys": [*step["keys"], "image_mask", "image_grid"]})
    elif step["name"] != "Resize":
      changed.append(step)
  return changed
