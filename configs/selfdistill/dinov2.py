"""DINOv2: iBOT with two heads, Sinkhorn and KoLeo (Oquab et al. 2023, arXiv:2304.07193).

  mmjax train --config=selfdistill/dinov2:smoke --workdir=runs/dinov2 # 2 CPU cores, about a minute
  mmjax train --config=selfdistill/dinov2:l16 --workdir=gs://bucket/dinov2
  mmjax plan --config=selfdistill/dinov2:l16 --topology=v5e:8x8

Variants: l16 (224 pixels, 8 local views; 16 images a chip of v5e:8x8), smoke.
Published: L/16 on ImageNet-1k, 125,000 steps: 82.9% linear probe, 81.6% nearest neighbours.
Differs here: the built-in data unless `data` is replaced; 1024 images a step rather than 2048;
weight decay stays at 0.04 rather than rising to 0.4; drop-path grows with depth; two heads and
Sinkhorn as in the paper, where the code for these figures has one head and a centre; KoLeo is over
the whole batch and not over a device's part.
"""

from configs import common
from configs.selfdistill import ibot

LAYERS = "encoder/trunk/layers"
BEFORE = "encoder/(position|class_token|class_position|registers|mask_token)"


def get_config(arg=None):
  arg = common.variant(arg, "l16", "smoke")
  smoke = arg == "smoke"
  size = (64, 2, 2) if smoke else common.SIZES["l"]
  # KoLeo weighs 0.1 for each of the two global views.
  c = ibot.recipe(smoke, size, {"class": 1.0, "patch": 1.0, "koleo": 0.2}, total_steps=125_000,
                  local_views=8)
  c.objective.update(
      centring="sinkhorn", patch_prototypes=256 if smoke else 65_536,
      freeze_percent=0 if smoke else 1,
      mask={"name": "block_range", "low": 0.1, "high": 0.5, "probability": 0.5})
  scene = dict(count=2_000 if smoke else 20_000, size=64 if smoke else 224, preset="half" if smoke else "imagenet")
  c.evals.update(common.token_pictures(**scene))
  if not smoke:
    c.evals.update(common.dense_probes(**scene, every_percent=25))
  c.objective.encoder.update(mask_token=True, layer_scale=1e-1 if smoke else 1e-5,
                             registers=2 if smoke else 0, drop_path=0.0 if smoke else 0.3)
  if not smoke:
    c.objective.momentum.start = 0.992
    c.data.transforms[1].update(global_scale=(0.32, 1.0), local_scale=(0.05, 0.32))
    c.optim.lr = 4e-3
    decay = {"layer_decay": 0.9}
    c.optim.groups = [
        {"match": f"{LAYERS}/.*kernel", **decay}, {"match": f"{LAYERS}/.*", "decay": 0.0, **decay},
        {"match": "encoder/patch_embed/.*", "before": LAYERS, "lr": 0.2, **decay},
        {"match": BEFORE, "before": LAYERS, "decay": 0.0, **decay},
        {"match": "(.*/)?kernel"}, {"match": ".*", "decay": 0.0}]
    c.mesh.fsdp = 8  # chips that share one copy of the state, see contrastive/siglip
  return c
