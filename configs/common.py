"""What the recipes share: sizes, the built-in data, evaluators. A recipe says what differs."""

import difflib

from ml_collections import ConfigDict

# width, depth, heads: ViT (arXiv:2010.11929, table 1); S: DeiT (arXiv:2012.12877, table 1); So400m:
# arXiv:2305.13035, sec. 4; g: arXiv:2106.04560, table 2.
SIZES = {"s": (384, 12, 6), "b": (768, 12, 12), "l": (1024, 24, 16), "so400m": (1152, 27, 16),
         "g": (1408, 40, 16)}
MLP_DIMS = {"so400m": 4304, "g": 6144}  # of the sizes whose MLP is not 4 times as wide

# Labels of the built-in dataset in their order; a test compares them with mmjax/data/scenes.
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "white")
SHAPES = ("sphere", "cube", "cylinder", "cone", "torus", "cross")
# A prompt names colour and shape, as captions do; what is not asked for is averaged over.
PROMPTS = {
    "colour": [f"a {{}} {shape}" for shape in SHAPES],
    "shape": [f"a {colour} {{}}" for colour in COLOURS],
    "colour_shape": ["a {}", "there is a {}"],
}


def variant(arg, *options):
  """`arg`, by default the first of `options`; an unknown one is an error that names the nearest."""
  arg = arg or options[0]
  if arg not in options:
    near = difflib.get_close_matches(arg, options, 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown variant {arg!r}{hint} (valid: {', '.join(options)})")
  return arg


def scenes(split, *, count, size, length=32, choose="random", crop=None, preset="half",
           captions=("objects", "attributes"), bos=False, **source):
  """A stream of the built-in dataset: picture, one caption, and the labels of single objects.

  Args:
    choose: which caption, see the transform `SampleCaption`; captions: of which kinds.
    crop: (low, high) area of a random crop, for training.
    preset: of the transform `Normalise`.
    bos: captions begin with the tokenizer's begin token.
    source: further arguments of `mmjax/data/sources/scenes.py`, such as objects=1.
  """
  augment = [{"name": "RandomResizedCrop", "size": size, "scale": crop}] if crop else []
  resize = [] if crop else [{"name": "Resize", "size": size}]
  return {
      "source": {"name": "scenes", "split": split, "count": count, "captions": captions, **source},
      "transforms": [
          {"name": "Decode"}, *augment, *resize, {"name": "Normalise", "preset": preset},
          {"name": "SampleCaption", "choose": choose},
          {"name": "Tokenise", "tokenizer": "scenes", "length": length, **({"bos": True} if bos else {})},
          {"name": "Keep", "keys": ["image", "text", "text_mask", "colour", "shape", "colour_shape"]},
      ],
      "shuffle": split == "train",
  }


def zero_shot(label, classes, data, length):
  """The zero-shot evaluator for one label of single-object scenes."""
  return {"name": "zero_shot", "label": label, "classes": classes, "templates": PROMPTS[label], "data": data,
          "tokenise": {"name": "Tokenise", "tokenizer": "scenes", "length": length}}


def scenes_evals(*, count, size, length, every_percent=None, unseen=False):
  """Retrieval among 512 captions, and zero-shot colour, shape and both, on the test split.

  Args:
    unseen: the same on the compositional split too, whose colour-shape pairs are never trained on, and
      retrieval in which captions may repeat.
  """
  scene = dict(count=count, size=size, length=length)
  pairs = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES]
  evals = {}
  for split, suffix in (("test", ""), ("compositional", "_unseen")) if unseen else (("test", ""),):
    single = scenes(split, objects=1, choose="first", **scene)
    many = scenes(split, choose="first", captions=("attributes",), **scene)
    among = {"name": "retrieval", "max_records": 512, "data": many}
    evals |= {
        f"retrieval{suffix}": {**among, "distinct": True},
        f"colour{suffix}": zero_shot("colour", COLOURS, single, length),
        f"shape{suffix}": zero_shot("shape", SHAPES, single, length),
        f"both{suffix}": zero_shot("colour_shape", pairs, single, length),
    }
  if unseen:
    short = scenes("test", choose="first", captions=("objects",), **scene)
    evals["repeated"] = {"name": "retrieval", "max_records": 512, "data": short}
  return {name: {**node, "every_percent": every_percent} for name, node in evals.items()}


def probes(*, count, size, records=1000, every_percent=None, feature="image/pooled",
           preset="half"):
  """Linear probe, nearest neighbours and few-shot of colour and of shape on frozen features:
  `c.evals.update(common.probes(count=20_000, size=64))`.

  Args:
    records: how many training records and test records at most; every one is encoded anew for each.
    feature: what the image is represented by; after a contrastive run also "image/embed".
    preset: of the transform `Normalise`, that with which the run trains.
  """
  def pictures(split):
    return images(split, count=count, size=size, preset=preset, keys=("image", "colour", "shape"), objects=1)

  return {
      f"{label}_{name}": {"name": name, "label": label, "feature": feature,
                          "train": pictures("train"), "data": pictures("test"),
                          "max_records": records, "every_percent": every_percent}
      for label in ("colour", "shape") for name in ("linear_probe", "knn", "few_shot")}


def linear_probes(**scene):
  """The two linear ones of `probes`, whose arguments these are."""
  return {name: node for name, node in probes(**scene).items() if node["name"] == "linear_probe"}


def mlp_dim(size):
  """The hidden width of a key of `SIZES`."""
  return MLP_DIMS.get(size, 4 * SIZES[size][0])


def towers(size, patch, pixels, *, length, vocab, out_dim, dtype="bfloat16", remat="full"):
  """Image and text tower of equal trunk, as (image node, text node).

  Args:
    size: a key of `SIZES`, or (width, depth, heads).
    patch, pixels: sides of a patch and of the image.
  """
  width, depth, heads = SIZES.get(size, size)
  trunk = dict(width=width, depth=depth, heads=heads, out_dim=out_dim, dtype=dtype, remat=remat)
  if size in MLP_DIMS:
    trunk["mlp_dim"] = MLP_DIMS[size]
  grid = (pixels // patch, pixels // patch)
  return ({"name": "vit", "patch": patch, "grid": grid, **trunk},
          {"name": "text", "vocab": vocab, "length": length, **trunk})


def base(*, batch_size, **length):
  """Keys that every run has; `length` is one of total_steps, total_examples, total_epochs."""
  return ConfigDict({
      "seed": 0, "batch_size": batch_size, **length, "micro_batches": 1,
      "mesh": {"preset": "dp"}, "checkpoint": {"every_steps": 1000, "keep_last": 2},
      "log_every_steps": 50,
      "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "clip_norm": 1.0,
                "schedule": {"name": "cosine", "warmup_percent": 10}},
  }, convert_dict=True)


def on_scenes(c, arg):
  """Makes `c` small enough for a CPU: "smoke" runs in about a minute, "demo" in five."""
  smoke = arg == "smoke"
  pixels, length = 64, 32
  scene = dict(count=2_000 if smoke else 20_000, size=pixels, length=length)
  width, depth, heads = (64, 2, 2) if smoke else (96, 4, 3)
  # Among single objects colour alone does not tell the pairs of a batch apart: shape has to be learned.
  c.data = {"mixture": {
      "all": {**scenes("train", crop=(0.8, 1.0), **scene), "weight": 1.0},
      "single": {**scenes("train", crop=(0.8, 1.0), objects=1, **scene), "weight": 2.0}}}
  c.eval_data = scenes("validation", **scene)
  c.evals = scenes_evals(**scene, unseen=not smoke)
  c.evals.loss = {"name": "loss", "every_percent": 25, "batch_size": 64}
  c.batch_size = 64
  c.objective.image, c.objective.text = towers(
      (width, depth, heads), 8, pixels, length=length, vocab=1024, out_dim=width, dtype="float32",
      remat="none")
  c.objective.text.depth = 2
  for tower in c.objective.image, c.objective.text:
    tower.scan = False  # a looped trunk is quicker on a CPU
  del c.total_examples
  c.total_steps = 120 if smoke else 2300
  c.checkpoint.every_steps = 100 if smoke else 500
  c.log_every_steps = 20
  c.optim.lr = 8e-4
  # So few steps would hardly move the scale of the logits.
  c.optim.groups = [{"match": "logit_.*", "lr": 10.0, "decay": 0.0}, {"match": "(.*/)?kernel"},
                    {"match": ".*", "decay": 0.0}]
  return c


def images(split, *, count, size, crop=None, flip=False, preset="half", keys=("image",), **source):
  """A stream of the built-in dataset's pictures without captions.

  Args:
    crop: (low, high) area of a random crop, for training.
    flip: mirror half of them.
    preset: of the transform `Normalise`.
    keys: what a record keeps, such as "shape", the label of a single object.
    source: further arguments of `mmjax/data/sources/scenes.py`, such as objects=1.
  """
  resize = {"name": "RandomResizedCrop", "scale": crop} if crop else {"name": "Resize"}
  view = [{**resize, "size": size}, *([{"name": "Flip"}] if flip else [])]
  return {
      "source": {"name": "scenes", "split": split, "count": count, **source},
      "transforms": [{"name": "Decode"}, *view, {"name": "Normalise", "preset": preset},
                     {"name": "Keep", "keys": list(keys)}],
      "shuffle": split == "train",
  }


def on_images(c, arg, *, pixels=224, preset="half", crop=(0.2, 1.0)):
  """Gives a recipe pictures to pretrain on, the loss on others, and linear probes of its features.

  Args:
    arg: "smoke" for what two CPU cores manage in a minute: 64 pixels, 64 rows, 200 steps.
    preset: of the transform `Normalise`.
    crop: (low, high) area of the random crop.
  """
  smoke = arg == "smoke"
  scene = dict(count=2_000 if smoke else 20_000, size=64 if smoke else pixels, preset=preset)
  c.data = images("train", crop=(0.6, 1.0) if smoke else crop, flip=True, **scene)
  c.eval_data = images("validation", **scene)
  c.evals = {**linear_probes(**scene), "loss": {"name": "loss", "every_percent": 25}}
  if smoke:
    for length in {"total_examples", "total_epochs"} & set(c):
      del c[length]
    c.batch_size, c.total_steps, c.log_every_steps = 64, 200, 20
    c.evals.loss.batch_size = 64
    c.checkpoint.every_steps = 100
    c.optim.lr = 1e-3
    c.optim.schedule = {"name": "cosine", "warmup_percent": 10}
  return c


def maps(split, labels=("depth", "normals", "semantic"), *, count, size, crop=None, preset="half",
         keys=(), **source):
  """A stream of the built-in dataset's pictures with maps on them.

  Args:
    labels: of depth, normals, semantic and instance.
    crop: (low, high) area of a random crop, which is flipped half of the time, for training.
    preset: of the transform `Normalise`.
    keys: what a record keeps besides, such as "shape", the label of a single object.
    source: further arguments of `mmjax/data/sources/scenes.py`, such as objects=1.
  """
  decode = {"depth": "DecodeDepth", "normals": "DecodeNormals", "semantic": "DecodeLabels",
            "instance": "DecodeLabels"}
  view = [{"name": "RandomResizedCrop", "size": size, "scale": crop}, {"name": "Flip"}]
  return {
      "source": {"name": "scenes", "split": split, "count": count,
                 "keys": ["image", *labels, *keys], **source},
      "transforms": [
          {"name": "Decode"}, *({"name": decode[label], "key": label} for label in labels),
          *(view if crop else [{"name": "Resize", "size": size}]),
          {"name": "Normalise", "preset": preset}],
      "shuffle": split == "train",
  }


def token_pictures(*, preset="half", **scene):
  """Attention maps and principal components of patch tokens, for the report: `c.evals.update(token_pictures(...))`.

  Args:
    preset: of the transform `Normalise`, that with which the run trains.
    scene: `count` and `size` of the pictures.
  """
  data = images("test", preset=preset, **scene)
  return {"attention": {"name": "attention_maps", "data": data},
          "components": {"name": "feature_pca", "data": data}}


def dense_probes(*, count, size, records=512, every_percent=None, feature="image/tokens",
                 preset="half"):
  """Linear probes of depth, surface normals and segmentation on frozen patch tokens:
  `c.evals.update(common.dense_probes(count=20_000, size=64))`.

  Args:
    records: how many training records and test records at most.
    feature: tokens [B, N, D] of an image, or a map [B, h, w, D].
    preset: of the transform `Normalise`.
  """
  scene = dict(count=count, size=size, preset=preset)
  return {
      f"{label}_dense_probe": {
          "name": "dense_probe", "label": label, "feature": feature, "max_records": records,
          "train": maps("train", (label,), **scene) | {"shuffle": False},
          "data": maps("test", (label,), **scene), "every_percent": every_percent}
      for label in ("depth", "normals", "semantic")}
