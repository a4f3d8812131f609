"""MAGE: masked generative encoder (Li et al. 2023, arXiv:2211.09117).

  mmjax train --config=masked/mage:smoke --workdir=runs/mage          # 2 CPU cores, about a minute
  mmjax train --config=masked/mage --workdir=runs/mage --config.objective.encoder.tokenizer.from=PATH

Variants: l16, b16 (256 pixels; PATH is a run of masked/vq), smoke (ids of a palette of colours).
What it generates is held against held-out pictures by the evaluator `frechet`; with another
encoder: mmjax eval --workdir=runs/mage --config.evals.frechet.encoder=PATH
Published: ViT-L on ImageNet-1k, Fréchet distance 9.10 unconditionally, 78.9% by a linear probe.
Differs here: the built-in data unless `data` is replaced; the mask's ratio is drawn a row, not a
batch; positions are sine-cosine; the encoder has a linear layer behind the embedding of ids.
"""

from configs import common
from configs.masked import vq

PIXELS, PATCH = 256, 16


def get_config(arg=None):
  arg = common.variant(arg, "l16", "b16", "smoke")
  smoke = arg == "smoke"
  c = common.base(**({"batch_size": 32, "total_steps": 200} if smoke else
                     {"batch_size": 4096, "total_epochs": 1600}))
  width, depth, heads = (64, 2, 2) if smoke else common.SIZES[arg[0]]
  trunk = dict(width=width, heads=heads, **(
      {"scan": False} if smoke else {"dtype": "bfloat16", "remat": "full"}))
  # That of masked/vq; which run's, `from` says.
  tokenizer = {"name": "palette"} if smoke else {
      **vq.get_config().objective.tokenizer.to_dict(), "from": "", "tower": "tokenizer"}
  c.objective = {
      "name": "mage", "mask": {"name": "variable"},
      "encoder": {"name": "vit", "patch": 1, "tokenizer": tokenizer, "depth": depth, "pool": "mean",
                  "class_token": True, "position": "sincos", "dropout": 0.0 if smoke else 0.1,
                  **trunk},
      "decoder": {"name": "masked_decoder", "depth": 1 if smoke else 8, **trunk}}
  count, pixels = (2_000, 32) if smoke else (20_000, PIXELS)
  c.data = common.images("train", count=count, size=pixels, crop=(0.2, 1.0))
  c.eval_data = common.images("validation", count=count, size=pixels)
  c.evals = {"loss": {"every_percent": 25}, "codebook": {"max_records": 512},
             # Of as many pictures as are generated, with the run's own encoder.
             "frechet": {"pictures": "image/generated", "max_records": 128 if smoke else 5_000,
                         "batch_size": 128, "reference": c.eval_data},
             **common.linear_probes(count=count, size=pixels, records=500 if smoke else None)}
  # 1.5e-4 for each 256 rows, app. B; 40 of 1600 epochs of warmup.
  c.optim.update(lr=2e-3 if smoke else 1.5e-4 * 16, b2=0.95, weight_decay=0.05)
  c.optim.schedule = {"name": "cosine", "warmup_percent": 10 if smoke else 2.5}
  if smoke:
    c.checkpoint.every_steps, c.log_every_steps = 200, 20
  return c
