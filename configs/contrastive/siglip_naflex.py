"""SigLIP at each picture's own aspect ratio: NaFlex of SigLIP 2 (Tschannen et al. 2025, arXiv:2502.14786,
sec. 2.4.2), after NaViT (Dehghani et al. 2023, arXiv:2307.06304).

  mmjax train --config=contrastive/siglip_naflex:smoke --workdir=runs/naflex
  mmjax train --config=contrastive/siglip_naflex:b16 --workdir=gs://bucket/naflex --config.data.train=SPEC

A picture is scaled to as many patches as fit in 256 with its aspect ratio kept; the rest is padding,
which nothing sees. Learned positions are resampled to each picture's grid. All shapes are static.

Variants: b16, l16, smoke.
Published: SigLIP 2 B/16 at 256 pixels, all of one shape: 79.1% ImageNet zero-shot; NaFlex as curves.
Differs here: one sequence length instead of five that take turns; sigmoid loss alone; the built-in
data, whose pictures are square (a random part of each is not), unless `data` is replaced.
"""

from configs import common
from configs.contrastive import siglip

PATCHES = 256


def get_config(arg=None):
  arg = common.variant(arg, "b16", "l16", "smoke")
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
    stream.transforms = native(stream.transforms, patch, patches)
  return c


def native(transforms, patch, patches):
  """The transforms with pictures as sequences of patches instead of squares of one size."""
  changed = []
  for step in transforms:
    step = dict(step)
    if step["name"] == "RandomResizedCrop":
      changed.append({**step, "size": None, "scale": (0.6, 1.0), "ratio": (0.6, 1 / 0.6)})
    elif step["name"] == "Normalise":
      changed.append({"name": "Patchify", "patch": patch, "max_patches": patches})
    elif step["name"] == "Keep":
      changed.append({**step, "keys": [*step["keys"], "image_mask", "image_grid"]})
    elif step["name"] != "Resize":
      changed.append(step)
  return changed
