"""C-JEPA: I-JEPA with VICReg's terms against collapse (Mo and Tong 2024, arXiv:2410.19560).

  mmjax train --config=selfdistill/cjepa:smoke --workdir=runs/cjepa   # 2 CPU cores, about a minute
  mmjax train --config=selfdistill/cjepa:b16 --workdir=gs://bucket/cjepa --config.mesh.fsdp=8

Variants: b16 (224 pixels), smoke.
Published: B/16 on ImageNet-1k, 600 epochs: 73.7% linear probe, 84.5% fine-tuned.
Differs here: what `selfdistill/ijepa` says. The terms are of the mean token of the context and of the
predictions; this, their weights and the warm-up have not been compared with the authors' code.
"""

from configs import common
from configs.selfdistill import ijepa

# Weight of all three terms, and of each within (the paper's implementation details).
WEIGHT, TERMS = 0.001, {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}


def get_config(arg=None):
  arg = common.variant(arg, "b16", "smoke")
  if arg == "smoke":
    c = ijepa.smoke()
  else:
    c = ijepa.published(common.SIZES["b"], 16, total_epochs=600)
    c.optim.schedule = {"name": "cosine", "warmup_percent": 2.5}  # 15 epochs
  c.objective.regularise = {name: WEIGHT * weight for name, weight in TERMS.items()}
  return c
