"""MultiMAE: masked image, depth and segmentation (Bachmann et al. 2022, arXiv:2204.01678).

  mmjax train --config=masked/multimae:smoke --workdir=runs/multimae  # 2 CPU cores, about a minute
  mmjax train --config=masked/multimae --workdir=gs://bucket/multimae --config.mesh.fsdp=8

Variants: b16 (224 pixels), smoke.
Published: B/16 after 1600 epochs of ImageNet-1k with pseudo labels, 83.3% fine-tuned.
Differs here: the built-in data with true depth and labels unless `data` is replaced; budgets are
floors of the drawn shares plus draws for what is left, as in 4M, in place of rounding; the
decoders' cross-attention has a residual connection.
"""

from configs import common

CLASSES = 2 + len(common.SHAPES)  # wall, floor and the objects' shapes


def get_config(arg=None):
  arg = common.variant(arg, "b16", "smoke")
  smoke = arg == "smoke"
  c = common.base(batch_size=2048, total_epochs=1600)
  trunk = (dict(patch=8, width=64, depth=2, heads=2, scan=False) if smoke else
           dict(patch=16, width=768, depth=12, heads=12, dtype="bfloat16", remat="full"))
  # A sixth of the patches of all three.
  c.objective = {
      "name": "multimae", "classes": CLASSES, "visible": 32 if smoke else 98, "alpha": 1.0,
      "encoder": {"name": "vit", "pool": "mean", "class_token": True, "position": "sincos",
                  "activation": "gelu", **trunk},
      **(dict(decoder_width=48, decoder_depth=1, decoder_heads=2, class_width=16) if smoke else {})}
  c.optim.update(lr=1e-4 * 2048 / 256, b2=0.95, weight_decay=0.05, clip_norm=None)
  c.optim.groups = [{"match": "(.*/)?kernel"}, {"match": ".*", "decay": 0.0}]
  c.optim.schedule = {"name": "cosine", "warmup_percent": 2.5}  # 40 epochs
  c = common.on_images(c, arg, preset="imagenet")
  scene = dict(count=2_000 if smoke else 20_000, size=64 if smoke else 224, preset="imagenet")
  maps, crop = ("depth", "semantic"), (0.6, 1.0) if smoke else (0.2, 1.0)
  c.data = records("train", maps, crop=crop, **scene)
  c.eval_data = records("validation", maps, **scene)
  if smoke:
    c.optim.lr = 3e-3
  return c


def records(split, maps, **scene):
  stream = common.maps(split, maps, **scene)
  return {**stream, "transforms": [*stream["transforms"], {"name": "Keep", "keys": ["image", *maps]}]}
