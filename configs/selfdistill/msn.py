"""MSN: a masked view goes to the prototypes of another (Assran et al. 2022, arXiv:2204.07141).

  mmjax train --config=selfdistill/msn:smoke --workdir=runs/msn       # 2 CPU cores, about a minute
  mmjax train --config=selfdistill/msn:s16 --workdir=gs://bucket/msn

Variants: s16 (224 pixels, 10 local views), smoke.
Published: B/4 on ImageNet-1k: 75.7% with 1% of the labels. S/16 is the size of the released config.
Differs here: the built-in data unless `data` is replaced; no batch norm in the head, so that
micro-batches change nothing; weight decay stays at 0.04 rather than rising to 0.4; Sinkhorn begins
with the columns.
"""

from configs import common
from configs.selfdistill import ibot


def get_config(arg=None):
  arg = common.variant(arg, "s16", "smoke")
  smoke = arg == "smoke"
  size = (64, 2, 2) if smoke else common.SIZES["s"]
  c = ibot.recipe(smoke, size, {"class": 1.0, "mean_entropy": 1.0}, total_epochs=800,
                  local_views=10)
  c.objective.update(
      targets="first", centring="sinkhorn", teacher_prototypes="student",
      mask={"name": "random", "ratio": 0.15}, prototypes=64 if smoke else 1024)
  c.objective.teacher_temperature = {"start": 0.025}  # 0.1, sharpened to the power of 1 / 0.25
  c.data.transforms[1].update(global_scale=(0.3, 1.0), local_scale=(0.05, 0.3))
  if not smoke:
    c.optim.schedule = {"name": "cosine", "warmup_percent": 1.875}  # 15 epochs
  return c
