"""mmjax's transforms as the files from which transformers' AutoProcessor gives the same input.

Pixels agree except for transparency, which becomes white there whatever Decode.alpha says. Where
Decode.channels is 1, transformers takes pictures that are grey in the file, and no others.
"""

import json
import pathlib

from mmjax.checkpoint.interop import tokenizer_files
from mmjax.checkpoint.interop.pretrained import Node
from mmjax.checkpoint.interop.processing import FILTERS
from mmjax.data import image_transforms as image
from mmjax.data import patch_transforms as patches
from mmjax.data import resampling
from mmjax.data import text_transforms as text
from mmjax.data import transforms

PROCESSORS = {"clip": "CLIPProcessor", "siglip": "SiglipProcessor", "siglip2": "Siglip2Processor"}
_IMAGE_PROCESSORS = {
    "clip": "CLIPImageProcessor", "siglip": "SiglipImageProcessor", "vit": "ViTImageProcessor",
    "siglip2": "Siglip2ImageProcessor", "dinov2": "BitImageProcessor",
    "dinov2_with_registers": "BitImageProcessor", "dinov3_vit": "ViTImageProcessor",
    "convnext": "ViTImageProcessor",
}
# Transforms that leave both the pixels and the tokens as they are.
_NO_MATTER = (text.SampleCaption, text.Keep)


def write(folder, image_nodes, text_nodes, kind: str, model_config=None) -> None:
  """Writes preprocessor_config.json and the tokenizer files. Nothing is written if it raises.

  Both lists may be the same one, of all transforms of an evaluation. Images that no transform
  resizes are resized to the model's `image_size`, where ours would refuse other sizes.

  Args:
    folder: exists.
    image_nodes, text_nodes: config nodes; an empty list writes no file of its kind.
    kind: the `model_type` in config.json.
    model_config: the content of config.json.

  Raises:
    ValueError: a transform that transformers cannot express; names it.
  """
  folder = pathlib.Path(folder)
  if kind not in _IMAGE_PROCESSORS:
    raise ValueError(f"no processor is known for model_type {kind!r}; expected one of "
                     f"{', '.join(_IMAGE_PROCESSORS)}")
  files = {}
  steps = [step for step in map(_build, image_nodes)
           if not isinstance(step, (*_NO_MATTER, text.Tokenise))]
  tokenise = [step for step in map(_build, text_nodes) if isinstance(step, text.Tokenise)]
  if len(tokenise) > 1:
    raise ValueError("several Tokenise transforms; a processor has one tokenizer")
  processor = {"processor_class": PROCESSORS[kind]} if tokenise and kind in PROCESSORS else {}
  if steps:
    config = {**_image_config(steps, kind, _image_size(model_config)), **processor}
    files["preprocessor_config.json"] = json.dumps(config, indent=2, sort_keys=True).encode()
  if tokenise:
    files |= tokenizer_files.files(tokenise[0], kind, processor)
  for name, content in files.items():
    (folder / name).write_bytes(content)


def _build(node: Node):
  kind = getattr(transforms, node["name"], None)
  if kind is None:  # the user's own
    raise ValueError(f"transform {node['name']!r} has no equivalent in transformers")
  return kind(**{key: value for key, value in node.items() if key != "name"})


def _image_size(config):
  config = (config or {}).get("vision_config", config or {})
  size = config.get("image_size")
  return (size, size) if isinstance(size, int) else size and tuple(size)


def _image_config(steps, kind, image_size):
  """preprocessor_config.json of transforms in the order decode, resize, crop, normalise."""
  config = {"do_resize": False, "do_center_crop": False, "do_rescale": True,
            "rescale_factor": 1 / 255, "do_normalize": True, "do_convert_rgb": True,
            "image_processor_type": _IMAGE_PROCESSORS[kind]}
  rank = -1
  for step in steps:
    order = next((i for i, kinds in enumerate(_ORDER) if isinstance(step, kinds)), None)
    if order is None or step.key != "image":
      raise ValueError(f"{step} has no equivalent among transformers' image processors")
    if order <= rank:
      raise ValueError(f"{step} comes too late: transformers decodes, resizes, crops and "
                       "normalises, each once and in this order")
    rank = order
    config |= _entry(step, config)
  if rank != len(_ORDER) - 1:
    raise ValueError("the image transforms do not end with Normalise or Patchify")
  patches_wanted = kind == "siglip2"
  if ("max_num_patches" in config) != patches_wanted:
    raise ValueError(f"a model of type {kind!r} takes {'patches' if patches_wanted else 'images'}: "
                     f"its last transform must be {'Patchify' if patches_wanted else 'Normalise'}")
  if not patches_wanted and not config["do_resize"] and image_size:
    config |= {"do_resize": True, "resample": FILTERS.index("bilinear"), "size": _size(image_size)}
  cropped = config["do_center_crop"] or "shortest_edge" in config.get("size", {})
  if cropped and config["image_processor_type"] in ("ViTImageProcessor", "SiglipImageProcessor"):
    config["image_processor_type"] = "CLIPImageProcessor"  # the two do not crop before 5.0
  return config


_ORDER = ((image.Decode,), (image.ToFloat,), (image.Resize, image.ResizeShort),
          (image.CentreCrop,), (patches.CropToPatches,), (image.Normalise, patches.Patchify))


def _entry(step, config):
  """What one transform adds to preprocessor_config.json."""
  match step:
    case image.Decode():
      if step.dtype != "uint8":
        raise ValueError(f"{step} has no equivalent among transformers' image processors: pixels "
                         "have 8 bits there")
      return {} if step.channels == 3 else {"do_convert_rgb": False}
    case image.ToFloat():  # the only one that resizes without rounding to whole levels
      return {"image_processor_type": "DINOv3ViTImageProcessor"}
    case image.Resize() | image.ResizeShort():
      short = isinstance(step, image.ResizeShort)
      return {"do_resize": True, "resample": _resample(step),
              "size": {"shortest_edge": step.size} if short else _size(step.size)}
    case image.CentreCrop():
      _check_crop(step, config.get("size", {}))
      return {"do_center_crop": True, "crop_size": _size(step.size)}
    case image.Normalise():
      mean, std = image.PRESETS[step.preset] if step.preset else (step.mean, step.std)
      return {"image_mean": list(mean), "image_std": list(std)}
    case patches.Patchify():
      if config["do_resize"] or not isinstance(step.patch, int):
        raise ValueError(f"{step} has no equivalent in transformers: its patches are square and "
                         "nothing is resized before")
      return {"patch_size": step.patch, "max_num_patches": step.max_patches,
              "do_resize": step.resize, "resample": _resample(step),
              "image_mean": list(step.mean), "image_std": list(step.std)}
  return {}  # CropToPatches: the model's convolution leaves out the same pixels


def _resample(step):
  name = step.filter.removeprefix(resampling.PILLOW)
  if name not in FILTERS:
    raise ValueError(f"{step} has no equivalent in transformers: its filters are {', '.join(FILTERS)}")
  return FILTERS.index(name)


def _size(size):
  height, width = image.height_width(size)
  return {"height": height, "width": width}


def _check_crop(step, resized):
  """transformers rounds down where half of an odd number is cut off."""
  sizes = _size(step.size)
  even = set(resized) == set(sizes) and all((resized[k] - sizes[k]) % 2 == 0 for k in sizes)
  if step.odd != "floor" and not even:
    raise ValueError(f"{step}: transformers crops with odd='floor'")
