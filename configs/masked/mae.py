"""MAE: masked autoencoder (He et al. 2022, arXiv:2111.06377).

  mmjax train --config=masked/mae:smoke --workdir=runs/mae                # 2 CPU cores, about a minute
  mmjax train --config=masked/mae:l16 --workdir=gs://bucket/mae --config.mesh.fsdp=8

Variants: b16, l16 (224 pixels), smoke.
Published: L/16 after 1600 epochs of ImageNet-1k, 85.9% fine-tuned, 75.8% linear probe.
Differs here: the built-in data unless `data` is replaced.
"""

from configs import common


def get_config(arg=None):
  arg = common.variant(arg, "b16", "l16", "smoke")
  smoke = arg == "smoke"
  c = common.base(batch_size=4096, total_epochs=1600)
  c.objective = {
      "name": "masked", "mask": {"name": "random", "ratio": 0.75}, "target": {"name": "pixels"},
      "encoder": {"name": "vit", "pool": "mean", "position": "sincos", "activation": "gelu",
                  "class_token": True, **trunk(arg)},
      "decoder": {"name": "masked_decoder", **(
          dict(width=48, depth=1, heads=2, scan=False) if smoke else
          dict(dtype="bfloat16", remat="full"))}}
  c.optim.update(lr=1.5e-4 * 4096 / 256, b2=0.95, weight_decay=0.05, clip_norm=None)
  c.optim.groups = [{"match": "(.*/)?kernel"}, {"match": ".*", "decay": 0.0}]
  c.optim.schedule = {"name": "cosine", "warmup_percent": 2.5}  # 40 epochs
  c = common.on_images(c, arg, preset="imagenet")
  c.evals.reconstruction = {"name": "reconstruction"}
  if smoke:
    c.optim.lr = 3e-3
  return c


def trunk(arg):
  """Patch and size of a ViT: "b16" is B with patches of 16 pixels; of "smoke" they have 8."""
  if arg == "smoke":
    return dict(patch=8, width=64, depth=2, heads=2, scan=False)  # unrolled is quicker on a CPU
  width, depth, heads = common.SIZES[arg[0]]
  return dict(patch=int(arg[1:]), width=width, depth=depth, heads=heads, dtype="bfloat16",
              remat="full")
