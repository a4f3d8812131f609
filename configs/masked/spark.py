"""SparK: masked image modelling for convolutional networks (Tian et al. 2023, arXiv:2301.03580).

  mmjax train --config=masked/spark:smoke --workdir=runs/spark            # 2 CPU cores, about a minute

The encoder is a ConvNeXt that computes on the seen cells only, as sparse convolutions do; a light
UNet fills the holes of its maps.
Variants: s (ConvNeXt-S at 224 pixels), smoke.
Published: ConvNeXt-S, 84.1% ImageNet top-1 after fine-tuning.
Differs here: the built-in data unless `data` is replaced; weight decay is constant instead of growing
from 0.04 to 0.2; group norm instead of batch norm in the decoder.
"""

from configs import common


def get_config(arg=None):
  arg = common.variant(arg, "s", "smoke")
  smoke = arg == "smoke"
  count, pixels = (2_000, 64) if smoke else (20_000, 224)
  c = common.base(batch_size=64 if smoke else 4096,
                  **({"total_steps": 200} if smoke else {"total_epochs": 1600}))
  encoder = {"name": "convnext", "widths": (96, 192, 384, 768), "depths": (3, 3, 27, 3),
             "dtype": "bfloat16", "remat": "full"}
  if smoke:  # cells of 8 pixels
    encoder = {"name": "convnext", "widths": (16, 32, 64), "depths": (1, 1, 2), "stem": 2,
               "layer_scale": None}
  cell, stages = (8, 3) if smoke else (32, 4)
  c.objective = {
      "name": "masked", "encoder": encoder, "mask": {"name": "random", "ratio": 0.6},
      "target": {"name": "pixels"}, "head": False,
      "decoder": {"name": "unet_decoder", "stages": stages, "patch": cell,
                  "width": 32 if smoke else encoder["widths"][-1], "dtype": encoder.get("dtype", "float32")}}
  c.data = common.images("train", count=count, size=pixels, crop=(0.67, 1.0))
  c.eval_data = common.images("test", count=count, size=pixels)
  c.evals = {"loss": {"name": "loss", "every_percent": 25},
             **common.probes(count=count, size=pixels)}
  c.optim = {"name": "lamb", "lr": 2e-4 * 4096 / 256, "weight_decay": 0.04, "clip_norm": 5.0,
             "schedule": {"name": "cosine", "warmup_percent": 2.5}}
  if smoke:
    c.optim = {"name": "adamw", "lr": 2e-3, "weight_decay": 0.05,
               "schedule": {"name": "cosine", "warmup_percent": 10}}
    c.checkpoint.every_steps, c.log_every_steps = 100, 20
  return c
