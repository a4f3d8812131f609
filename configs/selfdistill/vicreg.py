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
  c = common.base(batch_size=2048, total_epochs=1000)
  trunk = {"scan": False} if smoke else {"dtype": "bfloat16", "remat": "full"}
  c.objective = {
      "name": "joint_embedding",
      "encoder": {"name": "vit", "patch": patch, "width": width, "depth": depth, "heads": heads,
                  "pool": "mean", "position": "sincos", **trunk},
      "expander": {"name": "expander", "widths": [256] * 3 if smoke else [8192] * 3,
                   "dtype": "float32" if smoke else "bfloat16"}}
  c.optim.weight_decay = 0.05
  c.optim.schedule = {"name": "cosine", "warmup_percent": 1}  # 10 epochs
  c = common.on_images(c, arg, preset="imagenet")
  del c.evals.loss, c.eval_data  # the terms are of two views
  crops = {"name": "MultiCrop", "global_size": pixels, "global_scale": (0.08, 1.0),
           "local_views": 0}
  c.data.transforms = [  # appendix C.1
      {"name": "Decode"}, crops,
      {"name": "Normalise", "preset": "imagenet", "key": "global_views"},
      {"name": "Keep", "keys": ["global_views"]}]
  return c
