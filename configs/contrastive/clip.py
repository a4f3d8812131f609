"""CLIP: softmax contrastive pretraining (Radford et al. 2021, arXiv:2103.00020).

  mmjax train --config=contrastive/clip:smoke --workdir=runs/clip         # 2 CPU cores, about a minute
  mmjax train --config=contrastive/clip:b16 --workdir=gs://bucket/clip --config.mesh.fsdp=8

Variants: b16, b32 (224 pixels), smoke.
Published: L/14 at 336 pixels on 400M pairs, 76.2% ImageNet zero-shot.
Differs here: the built-in data unless `data` is replaced; both towers have the image tower's width.
"""

from configs import common


def get_config(arg=None):
  arg = common.variant(arg, "b16", "b32", "smoke")
  c = common.base(batch_size=32_768, total_examples=12_800_000_000)  # 32 epochs of 400M
  c.objective = {"name": "contrastive", "losses": {"softmax": 1.0}, "scale_init": 1 / 0.07, "scale_max": 100.0}
  c.optim.update(lr=5e-4, b2=0.98, eps=1e-6, weight_decay=0.2, clip_norm=None)  # table 19, for B
  if arg == "smoke":
    c.optim.update(weight_decay=1e-4, clip_norm=1.0)
    c = common.on_scenes(c, arg)
  else:
    patch = int(arg[1:])
    c.objective.image, c.objective.text = common.towers(
        "b", patch, 224, length=77, vocab=49_408, out_dim=512)
    c.data = common.scenes("train", count=20_000, size=224, length=77)
    c.evals = common.scenes_evals(count=20_000, size=224, length=77, every_percent=10)
    c.optim.schedule = {"name": "cosine", "warmup_steps": 2000}
  c.objective.image.update(pool="cls", class_token=True, class_position=True, patch_bias=False,
                           pre_norm=True, activation="quick_gelu", norm_eps=1e-5)
  c.objective.text.update(causal=True, pool="last", activation="quick_gelu", norm_eps=1e-5)
  return c
