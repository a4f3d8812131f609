"""A classifier of your labels from any image encoder (after Dong et al. 2022, arXiv:2212.06138).

  mmjax train --config=finetune/classify:smoke --workdir=runs/smoke     # 2 CPU cores, a minute
  mmjax train --config=finetune/classify --workdir=runs/pets --config.init_from=PATH \\
    --config.data.source.path=pets/train --config.eval_data.source.path=pets/test

PATH is a workdir of mmjax or a folder that Hugging Face's transformers, OpenCLIP or big_vision
wrote; model and preprocessing are the checkpoint's. pets/train holds a folder of pictures for each
class. Or an .npz of `image` (uint8 [N, H, W] or [N, H, W, C]) and `label`:
--config.data.source.name=arrays, and the same for eval_data.

Variants: full, linear (the encoder is frozen), cnn (full, for what is no ViT: neither layer-wise
decay nor drop-path), smoke (a tiny encoder from scratch, built-in data).
Published: CLIP B/16 at 224 pixels, 85.7% ImageNet top-1.
Differs here: 40 epochs of 64 pictures; no exponential average, mixup or RandAugment.
From a model pretrained at length take a lower rate, --config.optim.lr=1e-4 or less; 1e-3 suits small ones.
On accelerators --config.objective.model.dtype=bfloat16 is quicker. Where a mirrored picture is of
the same class: --config.data.transforms.0.flip=0.5. Other sizes: --config.init.size=384.
"""

from configs import common

LAYER_DECAY = 0.75  # of the learning rate, from block to block towards the input
EMBEDDINGS = ("(patch_embed/.*|token_embed|position|class_token|class_position|registers|"
              "pre_norm/.*)")


def get_config(arg=None):
  arg = common.variant(arg, "full", "linear", "cnn", "smoke")
  c = common.base(batch_size=64, total_epochs=40)
  c.init_from = None
  c.objective = {"name": "classification", "smoothing": 0.1,
                 "model": {"name": "pretrained", "classes": "data.classes", "drop_path": 0.1}}
  view = {"name": "pretrained_image", "augment": True, "scale": (0.8, 1.0), "flip": 0.0}
  c.data = labelled(view)
  c.eval_data = {**labelled({"name": "pretrained_image"}), "shuffle": False}
  c.evals = {"classification": {"every_percent": 25}}
  c.checkpoint = {"every_percent": 25, "keep_last": 1}
  c.optim.lr, c.optim.weight_decay = 1e-3, 0.05
  c.optim.groups = [
      {"match": "trunk/.*kernel", "layer_decay": LAYER_DECAY},
      {"match": "trunk/.*", "layer_decay": LAYER_DECAY, "decay": 0.0},
      {"match": EMBEDDINGS, "layer_decay": LAYER_DECAY, "before": "trunk/layers", "decay": 0.0},
      {"match": "(.*/)?kernel"}, {"match": ".*", "decay": 0.0}]
  if arg == "linear":
    c.objective.smoothing = c.objective.model.drop_path = 0.0
    c.data = labelled({"name": "pretrained_image"})
    c.optim.lr, c.optim.weight_decay = 1e-2, 0.0
    c.optim.groups = [{"match": "classifier/.*"}, {"match": ".*", "freeze": True}]
  if arg == "cnn":
    del c.objective.model.drop_path
    c.optim.groups = c.optim.groups[3:]
  return small(c) if arg == "smoke" else c


def labelled(view):
  return {"source": {"name": "folder", "path": ""},
          "transforms": [view, {"name": "Keep", "keys": ["image", "label"]}]}


def small(c):
  """The same recipe without a checkpoint: which shape is in the picture?"""
  c.objective.label = "shape"
  c.objective.model = {"name": "vit", "patch": 8, "grid": (8, 8), "width": 64, "depth": 2,
                       "heads": 2, "classes": "data.classes", "drop_path": 0.1}
  crop = {"name": "RandomResizedCrop", "size": 64, "scale": (0.8, 1.0)}
  whole = {"name": "Resize", "size": 64}
  for node, split, resize in (c.data, "train", crop), (c.eval_data, "test", whole):
    node.source = {"name": "scenes", "split": split, "count": 2_000, "objects": 1}
    node.transforms = [{"name": "Decode"}, resize, {"name": "Normalise", "preset": "half"},
                       {"name": "Keep", "keys": ["image", "shape"]}]
  c.evals.classification.label = "shape"
  del c.total_epochs
  c.total_steps, c.log_every_steps = 100, 20
  return c
