"""VQ-KD, the tokenizer of BEiT v2: its codes tell what a teacher sees (arXiv:2208.06366, sec. 2.2).

  mmjax train --config=masked/vq_kd:smoke --workdir=runs/vq_kd        # 2 CPU cores, about a minute
  mmjax train --config=masked/vq_kd --workdir=runs/vq_kd --config.objective.target.teacher.from=clip

Variants: b16 (224 pixels, teacher CLIP B/16), smoke (a random teacher; or
  --config.objective.target.teacher.from=PATH of what `contrastive/clip:smoke` trained).
Published: all 8192 codes in use; a ViT-B/16 that BEiT v2 trains with them is at 85.5%.
Differs here: the built-in data unless `data` is replaced; codes are averages of unit vectors, and
dead ones are revived; sine-cosine positions; one linear layer from tokens to codes.
"""

from configs import common
from configs.masked import maskdistill


def get_config(arg=None):
  arg = common.variant(arg, "b16", "smoke")
  smoke = arg == "smoke"
  c = common.base(**({"batch_size": 32, "total_steps": 200} if smoke else
                     {"batch_size": 512, "total_epochs": 100}))
  trunk = dict(width=64, heads=2, scan=False) if smoke else dict(
      width=768, heads=12, dtype="bfloat16", remat="full")
  encoder = {"name": "vit", "patch": 8 if smoke else 16, "depth": 2 if smoke else 12,
             "pool": "mean", "position": "sincos", "activation": "gelu", **trunk}
  teacher = maskdistill.teacher("smoke" if smoke else "b16")
  decoder = {"name": "token_decoder", "depth": 1 if smoke else 3, "out_dim": teacher["out_dim"], **trunk}
  c.objective = {
      "name": "tokenizer", "losses": {"cosine": 1.0}, "commitment": 1.0,
      "decay": 0.9 if smoke else 0.99,
      "target": {"name": "features", "teacher": teacher, "project": True, "normalise": False},
      "tokenizer": {"name": "vq", "codes": 64 if smoke else 8192, "dim": 8 if smoke else 32,
                    "normalise": True, "encoder": encoder, "decoder": decoder}}
  picture = dict(count=2_000, size=64) if smoke else dict(count=20_000, size=224, preset="clip")
  c.data = common.images("train", crop=(0.2, 1.0), **picture)
  c.eval_data = common.images("validation", **picture)
  c.evals = {"loss": {"every_percent": 25}, "codebook": {"every_percent": 25, "max_records": 512},
             **common.linear_probes(records=500 if smoke else None, **picture)}
  c.optim.update(lr=2e-3 if smoke else 2e-4, b2=0.99, weight_decay=1e-4)
  if smoke:
    c.checkpoint.every_steps, c.log_every_steps = 200, 20
  return c
