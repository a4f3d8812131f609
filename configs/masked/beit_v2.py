"""BEiT v2: masked prediction of a semantic tokenizer's ids (Peng et al. 2022, arXiv:2208.06366).

  mmjax train --config=masked/beit_v2:smoke --workdir=runs/beit       # 2 CPU cores, about a minute
  mmjax train --config=masked/beit_v2 --workdir=runs/b --config.objective.target.tokenizer.from=PATH

Variants: b16 (224 pixels; PATH is a run of masked/vq_kd), smoke (ids of a palette of colours).
Published: ViT-B/16 on ImageNet-1k, 85.5% fine-tuned and 80.1% by a linear probe.
Differs here: the built-in data unless `data` is replaced; sine-cosine positions in place of
relative ones; blocks mask an exact count.
"""

from configs import common
from configs.masked import vq_kd


def get_config(arg=None):
  arg = common.variant(arg, "b16", "smoke")
  smoke = arg == "smoke"
  c = common.base(**({"batch_size": 32, "total_steps": 200} if smoke else
                     {"batch_size": 2048, "total_epochs": 1600}))
  trunk = dict(width=64, heads=2, scan=False) if smoke else dict(
      width=768, heads=12, dtype="bfloat16", remat="full", drop_path=0.1)
  large = {} if smoke else {"layer_scale": 0.1, "kernel_init": "truncated_normal"}
  # That of masked/vq_kd; which run's, `from` says.
  tokenizer = {"name": "palette"} if smoke else {
      **vq_kd.get_config().objective.tokenizer.to_dict(), "from": "", "tower": "tokenizer"}
  c.objective = {
      "name": "masked", "hide": "token", "loss": "cross_entropy",
      "encoder": {"name": "vit", "patch": 4 if smoke else 16, "depth": 2 if smoke else 12,
                  "pool": "mean", "class_token": True, "mask_token": True, "position": "sincos",
                  "activation": "gelu", **trunk, **large},
      "mask": {"name": "block", "ratio": 0.4, "least": 4 if smoke else 16},
      "target": {"name": "tokens", "tokenizer": tokenizer},
      # From the tokens, and from the class token with those of an early block, sec. 2.4.
      "decoder": {"name": "patch_aggregation", "layer": 0 if smoke else 8,
                  "depth": 1 if smoke else 2, **trunk}}
  picture = dict(count=2_000, size=32) if smoke else dict(count=20_000, size=224, preset="clip")
  c.data = common.images("train", crop=(0.2 if smoke else 0.08, 1.0), **picture)
  c.eval_data = common.images("validation", **picture)
  c.evals = {"loss": {"every_percent": 25},
             **common.linear_probes(records=500 if smoke else None, **picture)}
  c.optim.update(lr=2e-3 if smoke else 1.5e-3, b2=0.98, weight_decay=0.05, clip_norm=3.0)
  c.optim.schedule = {"name": "cosine", "warmup_percent": 10 if smoke else 0.6}
  if smoke:
    c.checkpoint.every_steps, c.log_every_steps = 200, 20
  return c
