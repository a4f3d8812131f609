"""MaskDistill: a teacher's features at masked places (Peng et al. 2022, arXiv:2210.10615).

  mmjax train --config=masked/maskdistill:smoke --workdir=runs/maskdistill  # 2 CPU cores, a minute
  mmjax train --config=masked/maskdistill:b16 --workdir=gs://bucket/maskdistill \\
    --config.objective.target.teacher.from=clip-vit-base-patch16

The teacher is a folder that transformers wrote, or whatever else `init_from` takes. One of another
size: --config.objective.target.teacher='{"name": "pretrained", "from": PATH}'.

Variants: b16 (of CLIP B/16), l16 (of CLIP L/14), smoke (of random weights; with
--config.objective.target.teacher.from=PATH of what `contrastive/clip:smoke` trained).
Published: H/14 after 300 epochs, 88.3% ImageNet fine-tuned.
Differs here: learned positions instead of relative biases; the built-in data unless replaced.
"""

from configs import common
from configs.contrastive import clip

# Of CLIP (arXiv:2103.00020, table 20): width of its joint space, width and heads of its text tower.
PROJECTIONS = {"b": 512, "l": 768}
TEXTS = {"b": (512, 8), "l": (768, 12)}


def get_config(arg=None):
  arg = common.variant(arg, "b16", "l16", "smoke")
  c = common.base(batch_size=2048, total_epochs=300)
  c.objective = {"name": "masked", "hide": "token", "loss": "smooth_l1",
                 "encoder": student(arg, mask_token=True, layer_scale=0.1, drop_path=0.1),
                 "mask": {"name": "block", "ratio": 0.4, "least": 4 if arg == "smoke" else 16},
                 "target": {"name": "features", "teacher": teacher(arg)}}
  c.optim.update(lr=1.5e-3, b2=0.999, weight_decay=0.05, clip_norm=3.0)
  c.optim.schedule = {"name": "cosine", "warmup_epochs": 10}
  return common.on_images(c, arg, preset="half" if arg == "smoke" else "clip")


def student(arg, **changes):
  """A ViT with a class token whose patches are averaged.

  Args:
    arg: size and patch, "b16", or "smoke".
    changes: further keys of the node.
  """
  if arg == "smoke":
    return {"name": "vit", "patch": 8, "grid": (8, 8), "width": 64, "depth": 2, "heads": 2,
            "pool": "mean", "class_token": True, "scan": False, **changes, "drop_path": 0.0}
  (width, depth, heads), patch = common.SIZES[arg[0]], int(arg[1:])
  return {"name": "vit", "patch": patch, "grid": (224 // patch, 224 // patch), "width": width,
          "depth": depth, "heads": heads, "activation": "gelu", "pool": "mean", "class_token": True,
          "class_position": True, "kernel_init": "truncated_normal", "dtype": "bfloat16",
          "remat": "full", **changes}


def teacher(arg, patch=16):
  """The image tower of CLIP at the grid of a student with such a patch.

  Args:
    arg: of which size the student is: B/16 for "b16", L/14 for "l16"; that of `contrastive/clip`'s
      smoke variant for "smoke".
  """
  if arg == "smoke":
    return dict(clip.get_config("smoke").objective.image)
  size = arg[0]
  width, depth, heads = common.SIZES[size]
  return {"name": "vit", "from": "", "patch": {"b": 16, "l": 14}[size],
          "grid": (224 // patch, 224 // patch), "width": width, "depth": depth, "heads": heads,
          "pool": "cls", "class_token": True, "class_position": True, "patch_bias": False,
          "pre_norm": True, "activation": "quick_gelu", "norm_eps": 1e-5,
          "out_dim": PROJECTIONS[size], "dtype": "bfloat16"}


def text_tower(arg):
  """The text tower of the CLIP whose image tower is `teacher(arg)`, from the same checkpoint."""
  beside = {"beside": "target.teacher", "tower": "text"}
  if arg == "smoke":
    return {**clip.get_config("smoke").objective.text, **beside}
  width, heads = TEXTS[arg[0]]
  return {"name": "text", **beside, "vocab": 49_408, "length": 77, "width": width, "depth": 12,
          "heads": heads, "causal": True, "pool": "eos", "mask_padding": False,
          "activation": "quick_gelu", "norm_eps": 1e-5, "out_dim": PROJECTIONS[arg[0]],
          "dtype": "bfloat16"}
