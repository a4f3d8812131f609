"""Space-time MAE: clips of which a tenth is seen (Feichtenhofer et al. 2022, arXiv:2205.09113).

  mmjax train --config=masked/mae_st:smoke --workdir=runs/mae_st          # 2 CPU cores, about a minute
  mmjax train --config=masked/mae_st:l16 --workdir=gs://bucket/mae_st --config.mesh.fsdp=8

Variants: l16 (16 frames of 224 pixels), smoke.
Published: L/16 after 800 epochs of Kinetics-400, 84.4% fine-tuned.
Differs here: no repeated sampling; fixed positions in the decoder; the built-in data unless `data`
is replaced.
"""

from configs import common
from configs.masked import mae

# Of a clip of one object; `moves` is whether it does or the camera.
LABELS = ("colour", "shape", "moves")


def get_config(arg=None):
  arg = common.variant(arg, "l16", "smoke")
  smoke = arg == "smoke"
  frames, pixels, side = (8, 32, 8) if smoke else (16, 224, 16)
  c = common.base(batch_size=64 if smoke else 512,
                  **({"total_steps": 200} if smoke else {"total_epochs": 800}))
  c.objective = {
      "name": "masked", "input": "video", "mask": {"name": "random", "ratio": 0.9},
      "target": {"name": "pixels", "key": "video", "frames": 1},
      "encoder": {"name": "vit", "pool": "mean", "activation": "gelu", "class_token": True,
                  "position": "learned", "grid": (frames // 2, pixels // side, pixels // side),
                  **mae.trunk(arg), "patch": (2, side, side)},
      "decoder": {"name": "masked_decoder", **(
          dict(width=48, depth=1, heads=2, scan=False) if smoke else
          dict(depth=4, dtype="bfloat16", remat="full"))}}
  size = dict(count=1_000 if smoke else 20_000, pixels=pixels, frames=frames)
  c.data = clips("train", crop=(0.5, 1.0), **size)
  c.eval_data = clips("validation", **size)
  probe = {"name": "linear_probe", "feature": "video/pooled", "max_records": 1000,
           "train": clips("train", objects=1, **size), "data": clips("test", objects=1, **size)}
  c.evals = {**{f"{label}_linear_probe": {**probe, "label": label} for label in LABELS},
             "loss": {"name": "loss", "every_percent": 25, "batch_size": 64},
             "reconstruction": {"name": "reconstruction", "input": "video"}}
  c.optim.update(lr=1.6e-3 * 512 / 256, b2=0.95, weight_decay=0.05, clip_norm=None)
  c.optim.groups = [{"match": "(.*/)?kernel"}, {"match": ".*", "decay": 0.0}]
  c.optim.schedule = {"name": "cosine", "warmup_percent": 15}  # 120 epochs
  if smoke:
    c.checkpoint.every_steps, c.log_every_steps = 100, 20
  return c


def clips(split, *, count, pixels, frames, crop=None, **source):
  """A stream of the built-in clips with their labels; `crop` and `source` as in `common.images`."""
  view = {"name": "RandomResizedCrop", "scale": crop} if crop else {"name": "Resize"}
  return {
      "source": {"name": "scenes", "split": split, "count": count, "frames": frames,
                 "size": min(pixels, 64), **source},
      "transforms": [{"name": "Decode", "key": "video"}, {**view, "size": pixels, "key": "video"},
                     {"name": "Normalise", "preset": "imagenet", "key": "video"},
                     {"name": "Keep", "keys": ["video", *LABELS]}],
      "shuffle": split == "train"}
