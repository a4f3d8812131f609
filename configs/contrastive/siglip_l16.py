"""SigLIP with ViT-L/16 and a text tower of its shape, 652M parameters
(Zhai et al. 2023, arXiv:2303.15343).

  mmjax train --config=contrastive/siglip_l16:smoke --workdir=runs/siglip_l16
  mmjax train --config=contrastive/siglip_l16:v5e_16x16 --workdir=gs://bucket/siglip_l16
  mmjax plan --config=contrastive/siglip_l16:v5e_16x16 --topology=v5e:16x16

Variants: v5e_4x4, v5e_16x16, v5e_16x16_x16, v5p_16x16x16, v6e_16x16, tpu7x_4x4x4, smoke.
A pod's name is its topology; `_x16` are 16 slices: `--topology=v5e:16x16 --slices=16`. What the
models need of such chips stands in docs/scaling.md.
Published: L/16 at 256 pixels on WebLI, 80.5% ImageNet zero-shot.
Differs here: 224 pixels; the built-in data unless `data` is replaced;
Adam instead of Adafactor.
"""

from configs.contrastive import siglip

# Batch size, micro-batches, remat policy. 32,768 pairs are the paper's, more gain little (sec. 4.2);
# 4,096 chips are kept busy by 32 pairs each.
PODS = {
    "v5e_4x4": (32_768, 8, "full"),
    "v5e_16x16": (32_768, 1, "full"),
    "v5e_16x16_x16": (131_072, 1, "full"),
    "v5p_16x16x16": (131_072, 1, "none"),
    "v6e_16x16": (32_768, 1, "full"),
    "tpu7x_4x4x4": (32_768, 1, "dots_no_batch"),
}


def get_config(arg=None):
  return siglip.for_pod(arg, PODS, "l", 16)
