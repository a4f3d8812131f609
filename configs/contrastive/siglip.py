"""SigLIP: sigmoid loss for language-image pretraining (Zhai et al. 2023, arXiv:2303.15343).

  mmjax train --config=contrastive/siglip:smoke --workdir=runs/siglip     # 2 CPU cores, about a minute
  mmjax train --config=contrastive/siglip:b16 --workdir=gs://bucket/siglip --config.mesh.fsdp=8

Variants: b16, l16 (224 pixels), smoke, demo (what `launch/demo.sh` trains).
Published: B/16 on WebLI, 73.4% ImageNet zero-shot.
Differs here: the built-in data unless `data` is replaced; Adam instead of Adafactor.
"""

from configs import common

# Chips that share one copy of the state on a pod. 256 would not divide widths such as 1152, and would
# leave shards of 3 or 4 columns of the others, which a TPU pads to 128.
FSDP = 8
# On several slices of v6e XLA's scheduler spends memory that is left on work beside what is sent: the
# peak grows by 9% from 256 to 4,096 chips, and the HBM traffic by more. In 3% of the memory it does not
# (docs/scaling.md).
SCHEDULER = {"xla_tpu_scheduler_percent_shared_memory_limit": 3}


def get_config(arg=None):
  arg = common.variant(arg, "b16", "l16", "smoke", "demo")
  if arg in ("smoke", "demo"):
    return _heads(common.on_scenes(_recipe(), arg))
  return published(arg[0], 16)


def published(size, patch, text=None):
  """The recipe at a published size and 224 pixels.

  Args:
    size: of the image tower, a key of `common.SIZES`.
    patch: its patches' side in pixels.
    text: size of the text tower; None for that of the image tower.
  """
  c = _recipe()
  shape = dict(length=64, vocab=32_000, out_dim=None)
  c.objective.image, _ = common.towers(size, patch, 224, **shape)
  _, c.objective.text = common.towers(text or size, patch, 224, **shape)
  c.data = common.scenes("train", count=20_000, size=224, length=64)
  c.evals = common.scenes_evals(count=20_000, size=224, length=64, every_percent=10)
  c.optim.schedule = {"name": "rsqrt", "warmup_examples": 300_000_000, "cooldown_examples": 300_000_000}
  return _heads(c)


def for_pod(arg, pods, size, patch, text=None):
  """`published` for the pod that `arg` names, or "smoke": towers of a sixteenth of the widths.

  Args:
    pods: {topology: (batch size, micro-batches, remat policy)}. "v5e_16x16_x16" are 16 slices
      of what `mmjax plan` calls v5e:16x16.
    size, patch, text: as in `published`.
  """
  arg = common.variant(arg, *pods, "smoke")
  if arg == "smoke":
    c = get_config("smoke")
    for tower, like in ((c.objective.image, size), (c.objective.text, text or size)):
      tower.update(width=common.SIZES[like][0] // 16, mlp_dim=common.mlp_dim(like) // 16)
    return _heads(c)
  c = published(size, patch, text)
  c.batch_size, c.micro_batches, remat = pods[arg]
  c.objective.image.remat = c.objective.text.remat = remat
  c.mesh.fsdp = FSDP
  if arg.startswith("v6e"):
    c.compiler_options = dict(SCHEDULER)
  return c


def _recipe():
  """What all sizes have in common; without towers and data."""
  c = common.base(batch_size=32_768, total_examples=9_000_000_000)
  c.objective = {"name": "contrastive", "losses": {"sigmoid": 1.0}, "scale_init": 10.0, "bias_init": -10.0}
  c.optim.b2 = 0.95  # steadies large batches, sec. 4.6
  return c


def _heads(c):
  """The image is what its pooling head gives; the text reads its padding too, and is projected."""
  c.objective.image.out_dim = None
  c.objective.text.update(pool="final", out_dim=c.objective.image.width, out_bias=True,
                          mask_padding=False)
  return c
