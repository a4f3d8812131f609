"""VICReg: joint embedding with variance and covariance (Bardes et al. 2022, arXiv:2105.04906).

  mmjax train --config=selfdistill/vicreg:smoke --workdir=runs/vicreg  # 2 CPU cores, about a minute
  mmjax train --config=selfdistill/vicreg:s16 --workdir=gs://bucket/vicreg

Variants: s16 (224 pixels), smoke.
Published: ResNet-50 on ImageNet-1k, 1000 epochs: 73.2% linear probe.
Differs here: the built-in data unless `data` is replaced; a ViT-S/16 and AdamW rather than a
ResNet-50 and LARS; layer norm rather than batch norm in the expander, so that micro-batches change
nothing.
"""

from configs import common


def get_config(arg=None):
  arg = common.variant(arg, "s16", "smoke")
  smoke = arg == "smoke"
  pixels, patch = (64, 8) if smoke else (224, 16)
  width, depth, heads = (64, 2, 2) if smoke else common.SIZES["s"]
  length = {"total_steps": 200} if smoke else {"total_epochs": 1000}
  c = common.base(batch_size=64 if smoke else 2048, **length)
  trunk = {"scan": False} if smoke else {"dtype": "bfloat16", "remat": "full"}
  c.objective = {
      "name": "joint_embedding",
      "encoder": {"name": "vit", "patch": patch, "width": width, "depth": depth, "heads": heads,
                  "pool": "mean", "position": "sincos", **trunk},
      "expander": {"name": "expander", "widths": [256] * 3 if smoke else [8192] * 3}}
  preset = "half" if smoke else "imagenet"
  c.data = views(2_000, pixels, preset, objects=1) if smoke else views(20_000, pixels, preset)
  probes = common.probes(count=2_000 if smoke else 20_000, size=pixels, preset=preset,
                         every_percent=None if smoke else 10)
  c.evals = {"shape": probes["shape_linear_probe"], "colour": probes["colour_linear_probe"]
             } if smoke else probes
  c.optim.weight_decay = 0.05
  c.optim.schedule = {"name": "cosine", "warmup_percent": 10 if smoke else 1}  # 10 of 1000 epochs
  if smoke:
    c.checkpoint.every_steps, c.log_every_steps = 100, 20
  return c


def views(count, pixels, preset, **source):
  """Two views of each picture, augmented as in the paper's appendix C.1."""
  stream = common.images("train", count=count, size=pixels, keys=("global_views",), **source)
  crops = {"name": "MultiCrop", "global_size": pixels, "global_scale": (0.08, 1.0),
           "local_views": 0}
  stream["transforms"] = [{"name": "Decode"}, crops,
                          {"name": "Normalise", "preset": preset, "key": "global_views"},
                          stream["transforms"][-1]]
  return stream
