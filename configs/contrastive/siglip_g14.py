"""SigLIP with ViT-g/14 (arXiv:2106.04560, table 2) and a text tower of So400m's shape,
1.5B parameters (Zhai et al. 2023, arXiv:2303.15343; the pairing: SigLIP 2, arXiv:2502.14786).

  mmjax train --config=contrastive/siglip_g14:smoke --workdir=runs/siglip_g14
  mmjax train --config=contrastive/siglip_g14:v5e_16x16 --workdir=gs://bucket/siglip_g14
  mmjax plan --config=contrastive/siglip_g14:v5e_16x16 --topology=v5e:16x16

Variants: v5e_4x4, v5e_16x16, v5e_16x16_x16, v5p_16x16x16, v6e_16x16, tpu7x_4x4x4, smoke.
A pod's name is its topology; `_x16` are 16 slices: `--topology=v5e:16x16 --slices=16`. What the
models need of such chips stands in docs/scaling.md.
Published: none of this shape. SigLIP 2's g/16 at 256 pixels, width 1536: 84.5% ImageNet zero-shot.
Differs here: ViT-g as first published, 1408 wide; SigLIP's loss alone, vocabulary 32,000, 224
pixels; the built-in data unless `data` is replaced; Adam instead of Adafactor.
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
  return siglip.for_pod(arg, PODS, "g", 14, text="so400m")
