"""EVA-02: CLIP's features at masked places, by a newer ViT (Fang et al. 2023, arXiv:2303.11331).

  mmjax train --config=masked/eva02:smoke --workdir=runs/eva02          # 2 CPU cores, a minute
  mmjax train --config=masked/eva02:l14 --workdir=gs://bucket/eva02 --config.mesh.fsdp=8 \\
    --config.objective.target.teacher.from=clip-vit-large-patch14
  mmjax train --config=masked/eva02:text_guided --workdir=gs://bucket/eva02 --config.mesh.fsdp=8 \\
    --config.objective.target.teacher.from=clip-vit-large-patch14 \\
    --config.data.train=pairs/*.tar --config.data.tokenizer=clip-vit-large-patch14

`text_guided` masks the patches in which that CLIP finds most of the picture's caption, in place of
blocks: the mask of Text-Guided Video MAE (arXiv:2408.00759). It needs captions.

Variants: b14, l14 (224 pixels, of CLIP L/14), smoke (see `masked/maskdistill`), text_guided (B/14),
  text_guided_smoke.
Published: L/14 after 56 epochs of 38M pictures, 90.0% ImageNet fine-tuned at 448 pixels.
Differs here: CLIP L/14 for a teacher, as in EVA (arXiv:2211.07636), not EVA-CLIP g/14; no norm
  inside MLPs (sub-LN), no learned positions beside the rotary ones; the built-in data unless
  replaced.
"""

from configs import common
from configs.masked import maskdistill


def get_config(arg=None):
  arg = common.variant(arg, "b14", "l14", "smoke", "text_guided", "text_guided_smoke")
  guided = arg.startswith("text_guided")
  arg = {"text_guided": "b14", "text_guided_smoke": "smoke"}.get(arg, arg)
  c = common.base(batch_size=2048, total_epochs=150)
  encoder = maskdistill.student(
      arg, mask_token=True, activation="swiglu", position="rotary", kernel_init="xavier_uniform",
      drop_path=0.1 if arg == "l14" else 0.0)
  encoder.update(grid=None, class_position=False)  # the rotary positions are of patches alone
  c.objective = {"name": "masked", "hide": "token", "loss": "cosine", "encoder": encoder,
                 "mask": {"name": "block", "ratio": 0.4, "least": 4 if arg == "smoke" else 16},
                 "target": {"name": "features", "project": True, "normalise": False,
                            "teacher": maskdistill.teacher(arg if arg == "smoke" else "l14", 14)}}
  c.optim.update(lr=1.5e-3, b2=0.98, eps=1e-6, weight_decay=0.05, clip_norm=3.0)
  c.optim.schedule = {"name": "cosine", "warmup_epochs": 1}
  c = common.on_images(c, arg, preset="half" if arg == "smoke" else "clip")
  return by_captions(c, arg) if guided else c


def by_captions(c, arg):
  """Has the mask go by captions, which the data then have."""
  c.objective.mask = {"name": "text_guided", "ratio": c.objective.mask.ratio}
  c.objective.target.text = text = maskdistill.text_tower(arg if arg == "smoke" else "l14")
  length = text["length"]
  scene = (dict(count=2_000, size=64, length=length) if arg == "smoke" else
           dict(count=20_000, size=224, length=length, preset="clip", bos=True))
  c.data = common.scenes("train", crop=(0.8, 1.0), **scene)  # what captions name stays in sight
  c.eval_data = common.scenes("validation", **scene)
  return c
