"""What a folder says of its inputs, as config nodes of mmjax's transforms.

`read_image` and `read_text` follow `preprocessor_config.json` (or `processor_config.json`) and the
tokenizer files as transformers does with its Pillow image processors; `read_open_clip` follows
`open_clip_config.json`. The pixels and the token ids are then the same as theirs, from the same
file and the same string, with two remarks. EXIF orientation is applied, as transformers does to
an image that it opens itself (a path or URL), but not to one that the caller opened by Pillow.
And transparency becomes white wherever the processor says `do_convert_rgb`.
"""

import json
import pathlib

from mmjax.checkpoint.interop.pretrained import Node
from mmjax.data import folder_tokenizers
from mmjax.data import resampling
from mmjax.data import tokenizers

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "area", "hamming")  # Pillow's 0 to 5

_HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
_CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073],
         "image_std": [0.26862954, 0.26130258, 0.27577711]}
_IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
_STEPS = {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True}
_CROPPED = {**_STEPS, **_CLIP, "resample": 3, "size": {"shortest_edge": 224},
            "crop_size": {"height": 224, "width": 224}, "do_center_crop": True,
            "do_convert_rgb": True, "default_to_square": False}
_SQUARE = {"height": 224, "width": 224}

# What transformers' image processors assume where the file is silent.
DEFAULTS = {
    "CLIPImageProcessor": _CROPPED,
    "BitImageProcessor": _CROPPED,
    "SiglipImageProcessor": {**_STEPS, **_HALF, "resample": 3, "size": _SQUARE,
                             "do_convert_rgb": True, "default_to_square": False},
    "ViTImageProcessor": {**_STEPS, **_HALF, "resample": 2, "size": _SQUARE},
    "DeiTImageProcessor": {**_STEPS, **_HALF, "resample": 3,
                           "size": {"height": 256, "width": 256}, "crop_size": _SQUARE,
                           "do_center_crop": True},
    "DINOv3ViTImageProcessor": {**_STEPS, **_IMAGENET, "resample": 2, "size": _SQUARE},
    "ConvNextImageProcessor": {**_STEPS, **_HALF, "resample": 3, "size": {"shortest_edge": 384},
                               "crop_pct": 224 / 256},
    "Siglip2ImageProcessor": {**_STEPS, **_HALF, "resample": 2, "patch_size": 16,
                              "max_num_patches": 256},
}
_CLASS_OF_MODEL = {
    "clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor",
    "siglip2": "Siglip2ImageProcessor", "vit": "ViTImageProcessor", "deit": "DeiTImageProcessor",
    "dinov2": "BitImageProcessor", "dinov2_with_registers": "BitImageProcessor",
    "dinov3_vit": "DINOv3ViTImageProcessor", "convnext": "ConvNextImageProcessor",
}
_STRETCHED = 384  # ConvNeXt's processor: from so many pixels a side the whole picture, below it the middle
# What transformers' configs assume for max_position_embeddings, which published ones leave out.
_TEXT_LENGTHS = {"clip": 77, "siglip": 64, "siglip2": 64}
_KNOWN_STEPS = ("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb")


def read_image(folder, patch=None) -> tuple[Node, ...]:
  """Nodes from {"image": encoded bytes} to the model's `image` (NaFlex: also mask and grid).

  Args:
    folder: a folder as transformers writes it.
    patch: the model's patch size, int or (height, width), if images that are no multiple of it are
      to be cut to whole patches, as a convolution with that stride does.

  Returns: () if the folder has no image processor.

  Raises:
    ValueError: a setting that mmjax cannot follow; names the file and the key.
  """
  folder = pathlib.Path(folder)
  file, given = _image_config(folder)
  if file is None:
    return ()
  kind = _image_class(folder, file, given)
  config = {**DEFAULTS[kind], **{key: v for key, v in given.items() if v is not None}}
  for key, value in given.items():
    if key.startswith("do_") and value and key not in _KNOWN_STEPS:
      raise _cannot(file, key, value, f"known steps are {', '.join(_KNOWN_STEPS)}")
  nodes = [{"name": "Decode", **({"alpha": "white"} if config.get("do_convert_rgb") else {})}]
  statistics = _statistics(config, file)
  if len(statistics["mean"]) == 1:
    nodes[0]["channels"] = 1
  if kind == "Siglip2ImageProcessor":
    return (*nodes, {**_patchify(config, file), **statistics})
  floats = kind == "DINOv3ViTImageProcessor" and config["do_resize"] and config["do_rescale"]
  if floats:  # this one rescales before it resizes, so nothing is rounded to whole levels
    nodes.append({"name": "ToFloat"})
  size = None
  if config["do_resize"]:
    nodes += _convnext_resize(config, file) if kind == "ConvNextImageProcessor" else [_resize(config, file)]
    size = nodes[-1]["size"] if nodes[-1]["name"] != "ResizeShort" else None
  if config.get("do_center_crop"):
    size = _pair(config, "crop_size", file)
    nodes.append({"name": "CentreCrop", "size": size, "pad": True})
  if patch is not None and _partial(size, patch):
    nodes.append({"name": "CropToPatches", "patch": patch})
  return (*nodes, {"name": "Normalise", **statistics})


def read_text(folder, text_config=None) -> tuple[Node, ...]:
  """The node from {"caption": str} to `text` and `text_mask`, with the folder as its tokenizer.

  Ids and mask are those of AutoTokenizer(text, padding="max_length", truncation=True) at the
  length of the node: the model's `max_position_embeddings` or the tokenizer's `model_max_length`,
  whichever is smaller.

  Args:
    text_config: the text model's part of config.json.

  Returns: () if the folder has no tokenizer.

  Raises:
    ValueError: the tokenizer cannot be read, or nothing says how long a text may be.
  """
  folder = pathlib.Path(folder)
  files = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "spiece.model")
  if not any((folder / file).is_file() for file in files):
    return ()
  tokenizer = folder_tokenizers.load(folder)
  positions = (text_config or {}).get("max_position_embeddings")
  lengths = [positions or _TEXT_LENGTHS.get(_model_type(folder)), tokenizer.length]
  length = min((n for n in lengths if n), default=None)
  if length is None:
    raise ValueError(f"{folder}: neither text_config.max_position_embeddings in config.json nor "
                     "model_max_length in tokenizer_config.json says how long a text may be")
  return (_tokenise(folder, tokenizer, length),)


def read_open_clip(folder, patch=None) -> tuple[tuple[Node, ...], tuple[Node, ...]]:
  """(image nodes, text nodes) of an OpenCLIP folder: open_clip_config.json and tokenizer files.

  Text nodes are () if the folder has no tokenizer files: OpenCLIP then takes CLIP's vocabulary,
  which is not in the folder.

  Raises:
    ValueError: a setting that mmjax cannot follow; names the file and the key.
  """
  folder = pathlib.Path(folder)
  file = folder / "open_clip_config.json"
  config = _json(file)
  model = config["model_cfg"]
  given = {k: v for k, v in config.get("preprocess_cfg", {}).items() if v is not None}
  image = _open_clip_image(model["vision_cfg"], given, file, patch)
  text_config = model.get("text_cfg", {})
  if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
    return image, ()
  settings = text_config.get("tokenizer_kwargs") or {}
  length, name = text_config.get("context_length", 77), text_config.get("hf_tokenizer_name")
  if not name:  # OpenCLIP's own tokenizer: CLIP's vocabulary, filled up with 0
    tokenizer = folder_tokenizers.Fast(folder, "CLIPTokenizer")
    clean = settings.get("clean", "lower")
    return image, ({**_tokenise(folder, tokenizer, length), **_clean(clean, file), "pad": 0},)
  tokenizer = tokenizers.load(str(folder))
  node = _tokenise(folder, tokenizer, length)
  clean = settings.get("clean", "whitespace")
  # OpenCLIP hands the text model ids without a mask.
  return image, ({**node, **_clean(clean, file), "reads_padding": True},)


def _image_config(folder):
  """(file, its image processor's part), or (None, {})."""
  for name, part in (("processor_config.json", "image_processor"),
                     ("preprocessor_config.json", None)):
    file = folder / name
    content = _json(file) if file.is_file() else {}
    content = content.get(part) if part else content
    if content:
      return file, content
  return None, {}


def _image_class(folder, file, given):
  name = given.get("image_processor_type") or given.get("feature_extractor_type")
  if not name:
    model = (_model_type(folder) or "").removesuffix("_vision_model")
    if model not in _CLASS_OF_MODEL:
      raise ValueError(f"{file} has no image_processor_type, and config.json names no model whose "
                       "image processor is known")
    return _CLASS_OF_MODEL[model]
  kind = name.replace("FeatureExtractor", "ImageProcessor")
  kind = kind.removesuffix("Fast").removesuffix("Pil")
  if kind not in DEFAULTS:
    raise _cannot(file, "image_processor_type", name, f"known are {', '.join(DEFAULTS)}")
  return kind


def _model_type(folder):
  file = folder / "config.json"
  return _json(file).get("model_type") if file.is_file() else None


def _resize(config, file):
  size = config["size"]
  if isinstance(size, int) and not config.get("default_to_square", True):
    size = {"shortest_edge": size}
  filters = {"filter": _filter(config, file)}
  if isinstance(size, dict) and set(size) == {"shortest_edge"}:
    return {"name": "ResizeShort", "size": size["shortest_edge"], **filters}
  return {"name": "Resize", "size": _pair(config, "size", file), **filters}


def _convnext_resize(config, file):
  """The nodes for pictures of `size` a side, which below 384 are cut out of larger ones."""
  size = config["size"]
  side = size if isinstance(size, int) else size.get("shortest_edge")
  if not isinstance(side, int):
    raise _cannot(file, "size", size, "expected a number or shortest_edge")
  filters = {"filter": _filter(config, file)}
  if side >= _STRETCHED:
    return [{"name": "Resize", "size": (side, side), **filters}]
  return [{"name": "ResizeShort", "size": int(side / config["crop_pct"]), **filters},
          {"name": "CentreCrop", "size": (side, side), "pad": True}]


def _filter(config, file):
  number = config["resample"]
  if not isinstance(number, int) or not 0 <= number < len(FILTERS):
    raise _cannot(file, "resample", number, f"expected 0 to {len(FILTERS) - 1}")
  return f"{resampling.PILLOW}{FILTERS[number]}"  # pixels as they are published


def _pair(config, key, file):
  """(height, width) of a size given as a number, a pair, or a dict."""
  size = config.get(key)
  if isinstance(size, int):
    return (size, size)
  if isinstance(size, dict) and set(size) == {"height", "width"}:
    return (size["height"], size["width"])
  if isinstance(size, (list, tuple)) and len(size) == 2:
    return tuple(size)
  raise _cannot(file, key, size, "expected a number, or height and width"
                + (", or shortest_edge alone" if key == "size" else ""))


def _partial(size, patch):
  sides = (patch, patch) if isinstance(patch, int) else patch
  return size is None or any(side % p for side, p in zip(size, sides))


def _statistics(config, file):
  """`mean` and `std` for pixels in [0, 1] that give (x * rescale_factor - mean) / std of x in
  0..255."""
  factor = config["rescale_factor"] if config["do_rescale"] else 1
  unit = 1 if abs(255 * factor - 1) < 1e-9 else 255 * factor  # of x * factor, in pixels in [0, 1]
  values = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
  if config["do_normalize"]:
    values = {key: config[key] for key in values}
  statistics = []
  for key, value in values.items():
    value = [value] * 3 if isinstance(value, (int, float)) else value
    if len(value) not in (1, 3):
      raise _cannot(file, key, value, "expected one number for each of three channels, or one for grey images")
    statistics.append(tuple(v / unit for v in value))
  if len(statistics[0]) != len(statistics[1]):
    raise _cannot(file, "image_std", config["image_std"], "expected as many numbers as image_mean has")
  return {"mean": statistics[0], "std": statistics[1]}


def _patchify(config, file):
  return {"name": "Patchify", "patch": config["patch_size"],
          "max_patches": config["max_num_patches"], "filter": _filter(config, file),
          **({} if config["do_resize"] else {"resize": False})}


def _tokenise(folder, tokenizer, length):
  node = {"name": "Tokenise", "tokenizer": str(folder), "length": length,
          "bos": tokenizer.begins, "eos": tokenizer.ends}
  changes = {"side": (tokenizer.side, "right"), "reads_padding": (tokenizer.reads_padding, False),
             "keep_empty": (not tokenizer.begins and not tokenizer.ends, False)}
  return {**node, **{key: value for key, (value, default) in changes.items() if value != default}}


def _open_clip_image(vision, given, file, patch):
  size = given.get("size", vision.get("image_size", 224))
  size = (size, size) if isinstance(size, int) else tuple(size)
  mode = given.get("resize_mode", "shortest")
  if given.get("mode", "RGB") != "RGB":
    raise _cannot(file, "preprocess_cfg.mode", given["mode"], "expected RGB")
  # "random" is a matter of training.
  names = {"bicubic": "bicubic", "bilinear": "bilinear", "random": "bicubic"}
  interpolation = given.get("interpolation", "bicubic")
  if interpolation not in names:
    raise _cannot(file, "preprocess_cfg.interpolation", interpolation,
                  f"expected one of {', '.join(names)}")
  filters = {"filter": f"{resampling.PILLOW}{names[interpolation]}"}
  if mode == "squash":
    nodes = [{"name": "Resize", "size": size, **filters}]
  elif mode == "shortest" and size[0] == size[1]:
    nodes = [{"name": "ResizeShort", "size": size[0], **filters},
             {"name": "CentreCrop", "size": size, "odd": "round"}]
  elif mode == "longest":
    nodes = [{"name": "Letterbox", "size": size, **filters, "fill": given.get("fill_color", 0)}]
  else:
    raise _cannot(file, "preprocess_cfg.resize_mode", mode,
                  "expected shortest (of a square), squash or longest")
  if patch is not None and _partial(size, patch):
    nodes.append({"name": "CropToPatches", "patch": patch})
  statistics = {"mean": tuple(given.get("mean", _CLIP["image_mean"])),
                "std": tuple(given.get("std", _CLIP["image_std"]))}
  return ({"name": "Decode"}, *nodes, {"name": "Normalise", **statistics})


def _clean(clean, file):
  names = {"whitespace": "whitespace", "lower": "lower", "canonicalize": "canonical"}
  if clean not in names:
    raise _cannot(file, "text_cfg.tokenizer_kwargs.clean", clean,
                  f"expected one of {', '.join(names)}")
  return {"clean": names[clean]}


def _cannot(file, key, value, expected):
  return ValueError(f"{file}: {key} = {value!r} cannot be followed; {expected}")


def _json(file):
  try:
    return json.loads(file.read_text(encoding="utf-8"))
  except ValueError as error:
    raise ValueError(f"{file} is not JSON: {error}") from error
