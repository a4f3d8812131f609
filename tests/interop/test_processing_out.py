"""mmjax's transforms written for transformers: AutoProcessor gives the same pixels and ids.

The reference is transformers, which opens what mmjax wrote; tolerances as in
test_processing_in.py.
"""

import io
import json

import numpy as np
from PIL import Image
import pytest

from mmjax.checkpoint.interop import processing
from mmjax.checkpoint.interop import processing_write
from mmjax.data.processor import Processor
from tests.conftest import needs
from tests.interop import folders

transformers = needs("transformers")

CONFIGS = {"clip": "CLIPConfig", "siglip": "SiglipConfig", "siglip2": "Siglip2Config",
           "vit": "ViTConfig", "dinov2": "Dinov2Config", "dinov3_vit": "DINOv3ViTConfig",
           "dinov2_with_registers": "Dinov2WithRegistersConfig", "convnext": "ConvNextConfig"}
END = {"name": "Normalise", "preset": "half"}


def written(folder, image=(), text=(), kind="vit"):
  """The folder, with the model's config.json and what `write` adds."""
  folder.mkdir(exist_ok=True)
  getattr(transformers, CONFIGS[kind])().save_pretrained(folder)
  config = json.loads((folder / "config.json").read_text())
  processing_write.write(folder, image, text, kind, config)
  return folder


def pixels(folder, data):
  processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
  images = processor(Image.open(io.BytesIO(data)), return_tensors="np")["pixel_values"]
  return images.transpose(0, 2, 3, 1)


IMAGES = {
    "square": ({"name": "Resize", "size": 32, "filter": "pillow_bilinear"},),
    "pair": ({"name": "Resize", "size": (24, 40), "filter": "pillow_lanczos"},),
    "short and crop": ({"name": "ResizeShort", "size": 34, "filter": "pillow_bicubic"},
                       {"name": "CentreCrop", "size": (32, 31)}),
    "square and crop": ({"name": "Resize", "size": 36, "filter": "pillow_area"},
                        {"name": "CentreCrop", "size": 32, "odd": "round"}),
}


@pytest.mark.parametrize("kind", sorted(set(CONFIGS) - {"siglip2"}))
@pytest.mark.parametrize("name", IMAGES)
def test_pixels_equal_transformers(kind, name, tmp_path):
  nodes = [{"name": "Decode"}, *IMAGES[name], END]
  written(tmp_path, nodes, kind=kind)
  for size in ((50, 30), (31, 97), (33, 65)):
    data = folders.encode(folders.picture(*size), quality=80)
    ours = Processor(nodes)(images=[data])["image"]
    np.testing.assert_allclose(ours, pixels(tmp_path, data), rtol=0, atol=1e-6)
    again = Processor(processing.read_image(tmp_path))(images=[data])["image"]
    np.testing.assert_allclose(ours, again, rtol=0, atol=1e-6)


def test_fast_filter_is_written_as_pillows_within_a_level(tmp_path):
  nodes = [{"name": "Decode"}, {"name": "Resize", "size": 32}, END]
  written(tmp_path, nodes, kind="vit")
  data = folders.encode(folders.picture(50, 30), quality=80)
  level = 2 / 255  # of pixels in [-1, 1]
  np.testing.assert_allclose(Processor(nodes)(images=[data])["image"], pixels(tmp_path, data), rtol=0,
                             atol=1.001 * level)


def test_naflex_equals_transformers(tmp_path):
  nodes = [{"name": "Decode"}, {"name": "Patchify", "patch": 8, "max_patches": 20,
                                "filter": "pillow_bicubic", "mean": (0.4, 0.5, 0.6)}]
  written(tmp_path, nodes, kind="siglip2")
  data = folders.encode(folders.picture(50, 77))
  theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(
      Image.open(io.BytesIO(data)), return_tensors="np")
  ours = Processor(nodes)(images=[data])
  np.testing.assert_allclose(ours["image"].reshape(1, 20, -1), theirs["pixel_values"], rtol=0,
                             atol=1e-6)
  np.testing.assert_array_equal(ours["image_mask"], theirs["pixel_attention_mask"].astype(bool))
  np.testing.assert_array_equal(ours["image_grid"], theirs["spatial_shapes"])


def test_images_that_nothing_resizes_are_resized_to_the_models_size(tmp_path):
  nodes = [{"name": "Decode"}, END]
  written(tmp_path, nodes, kind="vit")
  right, other = (folders.encode(folders.picture(n, n)) for n in (224, 100))
  np.testing.assert_allclose(Processor(nodes)(images=[right])["image"], pixels(tmp_path, right),
                             rtol=0, atol=1e-6)
  assert pixels(tmp_path, other).shape == (1, 224, 224, 3)


def test_floats_resized_need_the_processor_that_resizes_floats(tmp_path):
  nodes = [{"name": "Decode"}, {"name": "ToFloat"}, IMAGES["square"][0], END]
  written(tmp_path, nodes, kind="dinov3_vit")
  config = json.loads((tmp_path / "preprocessor_config.json").read_text())
  assert config["image_processor_type"] == "DINOv3ViTImageProcessor"
  data = folders.encode(folders.picture(50, 30))
  again = Processor(processing.read_image(tmp_path))(images=[data])["image"]
  np.testing.assert_allclose(Processor(nodes)(images=[data])["image"], again, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind, nodes, message", [
    ("vit", [{"name": "Decode"}, {"name": "Flip"}, END], "Flip.* has no equivalent"),
    ("vit", [{"name": "Decode"}, {"name": "Letterbox", "size": 8}, END], "Letterbox.* has no"),
    ("vit", [{"name": "Decode"}, {"name": "Resize", "size": 8, "filter": "linear"}, END],
     "its filters are nearest, lanczos"),
    ("vit", [{"name": "Decode", "channels": 1, "dtype": "uint16"}, END], "Decode.* has no equivalent"),
    ("vit", [{"name": "Decode"}, {"name": "CentreCrop", "size": 8, "odd": "round"}, END],
     "odd='floor'"),
    ("vit", [{"name": "Decode"}, {"name": "CentreCrop", "size": 8}, IMAGES["square"][0], END],
     "Resize.* comes too late"),
    ("vit", [{"name": "Decode"}], "do not end with Normalise"),
    ("vit", [{"name": "Decode"}, {"name": "Patchify"}], "takes images"),
    ("siglip2", [{"name": "Decode"}, END], "takes patches"),
    ("vit", [{"name": "my_lab.Blur"}, END], "transform 'my_lab.Blur' has no equivalent"),
    ("bert", [], "no processor is known for model_type 'bert'"),
])
def test_what_cannot_be_written_is_an_error_that_names_it(kind, nodes, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    processing_write.write(tmp_path, nodes, (), kind)
  assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
  """{name: what Tokenise.tokenizer takes}."""
  root = tmp_path_factory.mktemp("tokenizers")
  model = folders.sentencepiece_model(root / "small.model")
  vocabulary, merges = folders.gemma_vocabulary()
  saved = {"clip": folders.clip_tokenizer(), "siglip": transformers.SiglipTokenizer(model),
           "gemma": transformers.Siglip2Tokenizer(vocab=vocabulary, merges=merges)}
  for name, tokenizer in saved.items():
    tokenizer.save_pretrained(root / name)
  return {"scenes": "scenes", "bytes": "bytes", "sentencepiece": model,
          **{name: str(root / name) for name in saved}}


@pytest.mark.parametrize("kind", ["clip", "siglip", "siglip2"])
@pytest.mark.parametrize("name, settings", [
    ("scenes", {}), ("scenes", {"bos": True, "side": "left"}), ("bytes", {}),
    ("bytes", {"eos": False, "reads_padding": True, "keep_empty": True}), ("sentencepiece", {}),
    ("sentencepiece", {"eos": False, "keep_empty": True, "pad": 2}),
    ("clip", {"bos": True}), ("clip", {"bos": True, "pad": 5}), ("siglip", {}),
    ("siglip", {"reads_padding": True}), ("gemma", {"side": "left"}),
    ("gemma", {"bos": True, "eos": False})])
def test_ids_and_mask_equal_transformers(kind, name, settings, sources, tmp_path):
  node = {"name": "Tokenise", "tokenizer": sources[name], "length": 12, **settings}
  nodes = [{"name": "SampleCaption"}, node, {"name": "Keep", "keys": ("text", "text_mask")}]
  image = [{"name": "Decode"}, {"name": "Patchify"} if kind == "siglip2" else END]
  written(tmp_path, image, nodes, kind)
  processor = transformers.AutoProcessor.from_pretrained(tmp_path)
  texts = folders.TEXTS
  if name == "bytes" or name == "sentencepiece":  # a special token's name is none to these
    texts = [text for text in texts if "<" not in text and "</s>" not in text]
  theirs = processor(text=texts, padding="max_length", truncation=True, max_length=12,
                     return_tensors="np")
  ours = Processor((), [node])(texts=texts)
  np.testing.assert_array_equal(ours["text"], theirs["input_ids"])
  given = theirs.get("attention_mask", np.ones_like(theirs["input_ids"]))
  np.testing.assert_array_equal(ours["text_mask"], given.astype(bool))
  assert ("attention_mask" in theirs) != settings.get("reads_padding", False)
  again, = processing.read_text(tmp_path, {})
  assert again["length"] == 12 and again["tokenizer"] == str(tmp_path)
  for key in ("text", "text_mask"):
    np.testing.assert_array_equal(Processor((), [again])(texts=texts)[key], ours[key])


def test_a_tokenizer_that_transformers_cannot_follow_is_an_error(sources, tmp_path):
  def attempt(name, **settings):
    node = {"name": "Tokenise", "tokenizer": sources[name], "length": 12, **settings}
    processing_write.write(tmp_path, (), [node], "clip")
  with pytest.raises(ValueError, match="CLIPTokenizer has True and True"):
    attempt("clip", bos=False)
  with pytest.raises(ValueError, match="Tokenise.clean = 'canonical'"):
    attempt("scenes", clean="canonical")
  assert not list(tmp_path.iterdir())
