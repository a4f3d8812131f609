"""iBOT: masked patches and views, told by an online tokenizer (Zhou et al. 2022, arXiv:2111.07832).

  mmjax train --config=selfdistill/ibot:smoke --workdir=runs/ibot     # 2 CPU cores, about a minute
  mmjax train --config=selfdistill/ibot:s16 --workdir=gs://bucket/ibot

Variants: s16 (224 pixels, 10 local views), smoke.
Published: S/16 on ImageNet-1k, 800 epochs: 77.9% linear probe, 75.2% nearest neighbours.
Differs here: the built-in data unless `data` is replaced; weight decay stays at 0.04 rather than
rising to 0.4; prototypes have length one, which the paper's small model learns; the centre of the
patches is that of the masked ones.
"""

from configs import common


def get_config(arg=None):
  arg = common.variant(arg, "s16", "smoke")
  smoke = arg == "smoke"
  size = (64, 2, 2) if smoke else common.SIZES["s"]
  c = recipe(smoke, size, {"class": 1.0, "patch": 1.0}, total_epochs=800, local_views=10)
  c.objective.update(centring="mean", freeze_percent=0 if smoke else 0.125,  # one epoch
                     mask={"name": "block_range", "low": 0.1, "high": 0.5, "probability": 0.5})
  c.objective.encoder.update(mask_token=True, drop_path=0.0 if smoke else 0.1)
  if not smoke:
    c.objective.prototypes = 8192
    c.objective.teacher_temperature.ramp_percent = 3.75  # 30 epochs
    c.optim.lr = 2e-3  # 5e-4 for 256 images
    c.optim.schedule = {"name": "cosine", "warmup_percent": 1.25}  # 10 epochs
  return c


def recipe(smoke, size, losses, *, local_views, **length):
  """What the recipes of self-distillation have in common: objective, views, probes.

  Args:
    smoke: 64 pixels, local views of 32, 150 steps; else 224 and 96 pixels.
    size: of the encoder, (width, depth, heads).
    losses: {term: weight}.
    length: of the published run.
  """
  length = {"total_steps": 150} if smoke else length
  c = common.base(batch_size=64 if smoke else 1024, **length)
  patch, pixels = (8, 64) if smoke else (16, 224)
  trunk = {"scan": False} if smoke else {"dtype": "bfloat16", "remat": "full"}
  init = "xavier_uniform" if smoke else "truncated_normal"  # the latter is made for large widths
  head = {"prototypes": 256, "hidden": 128, "bottleneck": 64, "head_init": init} if smoke else {}
  c.objective = {
      "name": "self_distillation", "losses": losses, **head,
      "teacher_temperature": {"start": 0.04} if smoke else {
          "start": 0.04, "final": 0.07, "ramp_percent": 30.0},
      # With 0.996 so few steps would hardly move the teacher.
      "momentum": {"start": 0.98 if smoke else 0.996, "final": 1.0, "ramp_percent": 100},
      "encoder": {"name": "vit", "patch": patch, **dict(zip(("width", "depth", "heads"), size)),
                  "pool": "cls", "class_token": True, "class_position": True,
                  "position": "learned", "grid": [pixels // patch] * 2, "resample": "bicubic",
                  "activation": "gelu", "kernel_init": init, **trunk}}
  preset = "half" if smoke else "imagenet"
  scene = dict(count=2_000 if smoke else 20_000, size=pixels, preset=preset)
  small = {"global_size": 64, "local_size": 32, "local_views": 4}
  crops = small if smoke else {"local_views": local_views}
  c.data = views(crops, **scene, **({"objects": 1} if smoke else {}))
  c.evals = common.linear_probes(**scene, every_percent=None if smoke else 10)
  c.optim.update(weight_decay=0.04, clip_norm=3.0)
  if smoke:
    c.checkpoint.every_steps, c.log_every_steps = 100, 20
  return c


def views(crops, *, preset, **scene):
  """Pictures as `global_views` and `local_views`; `crops` are arguments of `MultiCrop`."""
  keys = ("global_views", "local_views")
  stream = common.images("train", preset=preset, keys=keys, **scene)
  scale = {"global_scale": (0.25, 1.0), "local_scale": (0.05, 0.25)}
  stream["transforms"] = [
      {"name": "Decode"}, {"name": "MultiCrop", **scale, **crops},
      {"name": "Normalise", "preset": preset, "key": keys}, stream["transforms"][-1]]
  return stream
