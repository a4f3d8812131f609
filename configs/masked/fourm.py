"""4M: any modalities to any others (Mizrahi et al. 2023, arXiv:2312.06647; arXiv:2406.09406).

  mmjax train --config=masked/fourm:smoke --workdir=runs/fourm        # 2 CPU cores, about a minute
  mmjax train --config=masked/fourm --workdir=gs://bucket/fourm --config.mesh.fsdp=8

One row of `modalities` is all that a further modality takes. A tokenizer that a run of masked/vq
has trained takes the palette's place as `target.tokenizer={"name": "pretrained", "from": PATH,
"tower": "tokenizer"}`, with its own `vocab` and `grid`.

What it generates, depth from labels from the image, is held against the true maps by the evaluator
`generate`; from a caption: mmjax eval --workdir=runs/fourm
--config.evals.generate.condition='["text"]'

Variants: b16 (224 pixels), smoke.
Published: 4M-7 B on CC12M, 84.5% on ImageNet-1k fine-tuned.
Differs here: the built-in data, image, depth, segmentation and captions of it, with tokenizers that
need no training; the budgets that captions leave over go to the grids.
"""

from configs import common

CLASSES = 2 + len(common.SHAPES)  # wall, floor and the objects' shapes


def get_config(arg=None):
  arg = common.variant(arg, "b16", "smoke")
  smoke = arg == "smoke"
  c = common.base(batch_size=8192, total_examples=2_000_000_000)  # 500 billion tokens
  trunk = (dict(patch=8, width=64, depth=2, heads=2, scan=False) if smoke else
           dict(patch=16, width=768, depth=12, heads=12, dtype="bfloat16", remat="full"))
  pixels, length = (64, 16) if smoke else (224, 64)
  c.objective = {
      "name": "fourm", "input_tokens": 48 if smoke else 128, "target_tokens": 48 if smoke else 128,
      "encoder": {"name": "vit", "pool": "mean", "position": "sincos", "activation": "swiglu",
                  "attention_bias": "", "mlp_bias": False, **trunk},
      "modalities": table(pixels, trunk["patch"], length)}
  c.optim.update(lr=1e-4 * 8192 / 256, b2=0.95, weight_decay=0.05, clip_norm=None)
  c.optim.groups = [{"match": "(.*/)?kernel"}, {"match": ".*", "decay": 0.0}]
  c.optim.schedule = {"name": "cosine", "warmup_percent": 2}
  c = common.on_images(c, arg, pixels=pixels)
  scene = dict(count=2_000 if smoke else 20_000, size=pixels)
  c.data = records("train", length, crop=(0.8, 1.0), **scene)
  c.eval_data = records("validation", length, **scene)
  stage = dict(name="Stage", steps=8, temperature=0.1, guidance=2.0)
  c.evals.generate = {"condition": ["image"], "max_records": 64, "stages": [
      {**stage, "modality": "semantic"}, {**stage, "modality": "depth"}]}
  if smoke:
    c.optim.lr = 3e-3
  return c


def table(pixels, patch, length):
  """The modalities. Half of the rows have all of their input from the image."""
  grid = (pixels // patch, pixels // patch)
  token = {"name": "modality", "kind": "tokens", "grid": grid, "input_alpha": (0.0, 0.5),
           "target_alpha": (0.5, 0.5)}
  return {
      "image": {"name": "modality", "kind": "patches", "source": "image",
                "input_alpha": (1.0, 0.5), "target_alpha": (0.0, 0.0)},
      "image_tokens": {**token, "vocab": 216, "target": {
          "name": "tokens", "tokenizer": {"name": "palette", "patch": patch, "levels": 6}}},
      "depth": {**token, "vocab": 64, "target": {"name": "depth_bins", "bins": 64}},
      "semantic": {**token, "vocab": CLASSES,
                   "target": {"name": "patch_class", "classes": CLASSES}},
      "text": {"name": "modality", "kind": "sequence", "source": "text", "vocab": 1024,
               "length": length, "input_alpha": (0.0, 0.5), "target_alpha": (0.5, 0.5)},
  }


def records(split, length, **scene):
  """Pictures with depth, labels and one caption."""
  stream = common.maps(split, ("depth", "semantic"), keys=("caption",),
                       captions=("objects", "attributes"), **scene)
  caption = [{"name": "SampleCaption", "choose": "random" if split == "train" else "first"},
             {"name": "Tokenise", "tokenizer": "scenes", "length": length},
             {"name": "Keep", "keys": ["image", "depth", "semantic", "text", "text_mask"]}]
  return {**stream, "transforms": [*stream["transforms"], *caption]}
