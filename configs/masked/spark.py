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
  c = common.base(batch_size=4096, total_epochs=1600)
  encoder = {"name": "convnext", "widths": (96, 192, 384, 768), "depths": (3, 3, 27, 3),
             "dtype": "bfloat16", "remat": "full"}
  decoder = {"name": "unet_decoder", "width": 768, "dtype": "bfloat16"}
  if smoke:  # cells of 8 pixels
    encoder = {"name": "convnext", "widths": (32, 64), "depths": (1, 2), "layer_scale": None,
               "scan": False}
    decoder = {"name": "unet_decoder", "stages": 2, "patch": 8, "width": 32}
  c.objective = {"name": "masked", "encoder": encoder, "mask": {"name": "random", "ratio": 0.6},
                 "target": {"name": "pixels"}, "decoder": decoder, "head": False}
  c.optim.update(name="lamb", lr=2e-4 * 4096 / 256, weight_decay=0.04, clip_norm=5.0)
  c.optim.schedule = {"name": "cosine", "warmup_percent": 2.5}
  common.on_images(c, arg, crop=(0.67, 1.0))
  if smoke:
    c.optim.name = "adamw"
  return c
