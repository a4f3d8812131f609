"""SigLIP with ViT-B/16 and a text tower of its shape, 203M parameters
(Zhai et al. 2023, arXiv:2303.15343).

  mmjax train --config=contrastive/siglip_b16:smoke --workdir=runs/siglip_b16
  mmjax train --config=contrastive/siglip_b16:v5e_16x16 --workdir=gs://bucket/siglip_b16
  mmjax plan --config=contrastive/siglip_b16:v5e_16x16 --topology=v5e:16x16

Variants: v5e_4x4, v5e_16x16, v5e_16x16_x16, v5p_16x16x16, v6e_16x16, tpu7x_4x4x4, smoke.
A pod's name is its topology; `_x16` are 16 slices: `--topology=v5e:16x16 --slices=16`. What the
models need of such chips stands in docs/scaling.md.
Published: B/16 on WebLI, 73.4% ImageNet zero-shot.
Differs here: the built-in data unless `data` is replaced; Adam instead of Adafactor.
"""

from configs.contrastive import siglip

# Batch size, micro-batches, remat policy. 32,768 pairs are the paper's, more gain little (sec. 4.2);
# 4,096 chips are kept busy by 32 pairs each.
PODS = {
    "v5e_4x4": (32_768, 4, "full"),
    "v5e_16x16": (32_768, 1, "full"),
    "v5e_16x16_x16": (131_072, 1, "dots_no_batch"),
    "v5p_16x16x16": (131_072, 1, "none"),
    "v6e_16x16": (32_768, 1, "dots_no_batch"),
    "tpu7x_4x4x4": (32_768, 1, "dots_no_batch"),
}


def get_config(arg=None):
  return siglip.for_pod(arg, PODS, "b", 16)
