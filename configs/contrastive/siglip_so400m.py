"""SigLIP with the shape-optimised So400m/14 twice, 877M parameters (Zhai et al. 2023,
arXiv:2303.15343; the shape: Alabdulmohsin et al. 2023, arXiv:2305.13035).

  mmjax train --config=contrastive/siglip_so400m:smoke --workdir=runs/siglip_so400m
  mmjax train --config=contrastive/siglip_so400m:v5e_16x16 --workdir=gs://bucket/siglip_so400m
  mmjax plan --config=contrastive/siglip_so400m:v5e_16x16 --topology=v5e:16x16

Variants: v5e_4x4, v5e_16x16, v5e_16x16_x16, v5p_16x16x16, v6e_16x16, tpu7x_4x4x4, smoke.
A pod's name is its topology; `_x16` are 16 slices: `--topology=v5e:16x16 --slices=16`. What the
models need of such chips stands in docs/scaling.md.
Published: So400m/14 at 384 pixels on WebLI, 83.2% ImageNet zero-shot.
Differs here: 224 pixels; the built-in data unless `data` is replaced;
Adam instead of Adafactor.
"""

from configs.contrastive import siglip

# Batch size, micro-batches, remat policy. 32,768 pairs are the paper's, more gain little (sec. 4.2);
# 4,096 chips are kept busy by 32 pairs each.
PODS = {
    "v5e_4x4": (32_768, 16, "full"),
    "v5e_16x16": (32_768, 1, "full"),
    "v5e_16x16_x16": (131_072, 1, "full"),
    "v5p_16x16x16": (131_072, 1, "none"),
    "v6e_16x16": (32_768, 1, "full"),
    "tpu7x_4x4x4": (32_768, 1, "full"),
}


def get_config(arg=None):
  return siglip.for_pod(arg, PODS, "so400m", 14)
