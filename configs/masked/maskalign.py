"""MaskAlign: a teacher's features of what is seen (Xue et al. 2023, arXiv:2211.08887).

  mmjax train --config=masked/maskalign:smoke --workdir=runs/maskalign    # 2 CPU cores, a minute
  mmjax train --config=masked/maskalign:b16 --workdir=gs://bucket/maskalign \\
    --config.objective.target.teacher.from=clip-vit-base-patch16

The student sees the patches to which the teacher attends, and nothing stands for the others. The
teacher's last five blocks are predicted from learned mixtures of all of the student's. `uta` is
Unmasked Token Alignment (Liu et al. 2024, arXiv:2405.19009): half of the patches, in blocks, and
the cosine to the teacher's last tokens in the space where images meet texts.

Variants: b16, l16, smoke, uta (B/16), uta_smoke (teachers as in `masked/maskdistill`).
Published: B/16 after 200 epochs, 85.4% ImageNet fine-tuned; UTA B/16, 77.0% zero-shot.
Differs here: the class token is not aligned, so UTA gives no zero-shot classifier by itself; the
  built-in data unless replaced.
"""

from configs import common
from configs.masked import maskdistill

LAYERS = 5  # of the teacher, the last (sec. 4.4 and the published command)


def get_config(arg=None):
  arg = common.variant(arg, "b16", "l16", "smoke", "uta", "uta_smoke")
  uta, size = arg.startswith("uta"), {"uta": "b16", "uta_smoke": "smoke"}.get(arg, arg)
  c = common.base(batch_size=1024, total_epochs=200)
  encoder = maskdistill.student(size, drop_path=0.2 if size == "l16" else 0.1, position="sincos",
                                kernel_init="xavier_uniform")
  encoder.update(grid=None, class_position=False)
  teacher = maskdistill.teacher(size)
  c.objective = {"name": "masked", "hide": "drop", "predict": "seen", "encoder": encoder,
                 **(aligned(teacher) if uta else mixed(encoder, teacher))}
  c.optim.update(lr=6e-4, b2=0.95, weight_decay=0.05, clip_norm=None)
  c.optim.schedule = {"name": "cosine", "warmup_epochs": 20}
  return common.on_images(c, size, preset="half" if size == "smoke" else "clip")


def mixed(encoder, teacher):
  """MaskAlign's mask, targets, and mixtures of blocks."""
  layers = min(LAYERS, teacher["depth"])
  return {"mask": {"name": "attentive", "ratio": 0.7},
          "target": {"name": "features", "layers": tuple(range(-layers, 0)), "teacher": teacher},
          "decoder": {"name": "aligner", "layers": tuple(range(encoder["depth"])),
                      "outputs": layers, "width": teacher["width"]},
          "head": False, "loss": "smooth_l1"}


def aligned(teacher):
  """UTA's mask and targets."""
  return {"mask": {"name": "block", "ratio": 0.5, "least": 4},
          "target": {"name": "features", "project": True, "normalise": False, "teacher": teacher},
          "loss": "cosine"}
