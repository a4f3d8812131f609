"""SimMIM: masked pixels from a linear layer (Xie et al. 2022, arXiv:2111.09886).

  mmjax train --config=masked/simmim:smoke --workdir=runs/simmim          # 2 CPU cores, about a minute
  mmjax train --config=masked/simmim:b16 --workdir=gs://bucket/simmim --config.mesh.fsdp=8

Variants: b16 (224 pixels), smoke.
Published: B/16 after 800 epochs of ImageNet-1k, 83.8% fine-tuned.
Differs here: learned positions instead of relative ones; cosine instead of step schedule; the
built-in data unless `data` is replaced.
"""

from configs import common
from configs.masked import mae


def get_config(arg=None):
  arg = common.variant(arg, "b16", "smoke")
  smoke = arg == "smoke"
  c = common.base(batch_size=2048, total_epochs=800)
  side = 8 if smoke else 14
  c.objective = {
      "name": "masked", "hide": "token", "loss": "l1",
      "mask": {"name": "squares", "ratio": 0.6, "side": 2},  # of 32 pixels, sec. 4.1.2
      "target": {"name": "pixels", "normalise": False},
      "encoder": {"name": "vit", "pool": "mean", "position": "learned", "grid": (side, side),
                  "activation": "gelu", "class_token": True, "layer_scale": 0.1, "drop_path": 0.1,
                  "kernel_init": "truncated_normal", "mask_token": True, **mae.trunk(arg)}}
  c.optim.update(lr=8e-4, weight_decay=0.05, clip_norm=5.0)
  c.optim.groups = [{"match": "(.*/)?kernel"}, {"match": ".*", "decay": 0.0}]
  c.optim.schedule = {"name": "cosine", "warmup_percent": 2.5}  # 20 epochs
  c = common.on_images(c, arg, preset="imagenet", crop=(0.67, 1.0))
  c.evals.reconstruction = {"name": "reconstruction"}
  if smoke:
    c.objective.encoder.update(layer_scale=None, drop_path=0.0, kernel_init="xavier_uniform")
    c.optim.lr = 3e-3
  return c
