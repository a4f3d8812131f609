"""A folder of transformers read by mmjax: the same pixels and ids from the same bytes and string.

The reference is transformers' own AutoImageProcessor (Pillow) and AutoTokenizer on the same folder.
Ids, masks and grids are equal. Pixels differ by the rounding of float32 in the order of the
normalisation, a few units in the last place of values up to 2.7, hence 1e-6.
"""

import json

import numpy as np
import pytest

from mmjax.checkpoint.interop import processing
from mmjax.data.processor import Processor
from tests.conftest import needs
from tests.interop import folders

transformers = needs("transformers")


def reference_pixels(folder, data):
  from PIL import Image
  import io
  processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
  return processor(Image.open(io.BytesIO(data)), return_tensors="np")


def assert_same_pixels(folder, data):
  ours = Processor(processing.read_image(folder))(images=[data])["image"]
  theirs = reference_pixels(folder, data)["pixel_values"].transpose(0, 2, 3, 1)
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def assert_same_text(folder, texts=folders.TEXTS, length=None):
  node, = processing.read_text(folder, {"max_position_embeddings": length or 16})
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  theirs = tokenizer(texts, padding="max_length", truncation=True, max_length=node["length"],
                     return_tensors="np")
  ours = Processor((), [node])(texts=texts)
  np.testing.assert_array_equal(ours["text"], theirs["input_ids"])
  given = theirs.get("attention_mask", np.ones_like(theirs["input_ids"]))
  np.testing.assert_array_equal(ours["text_mask"], given.astype(bool))


IMAGE_PROCESSORS = {
    "clip": ("CLIPImageProcessor", dict(size={"shortest_edge": 32}, crop_size=32)),
    "clip-crop-of-more": ("CLIPImageProcessor", dict(
        size={"shortest_edge": 30}, crop_size={"height": 41, "width": 24})),
    "clip-squash": ("CLIPImageProcessor", dict(size={"height": 20, "width": 28},
                                               do_center_crop=False, resample=1)),
    "siglip": ("SiglipImageProcessor", dict(size={"height": 32, "width": 32})),
    "vit": ("ViTImageProcessor", dict(size=32, resample=0)),
    "vit-unscaled": ("ViTImageProcessor", dict(size=32, do_rescale=False, resample=4,
                                               image_mean=[120.0, 110.0, 100.0],
                                               image_std=[60.0, 61.0, 62.0])),
    "vit-other-scale": ("ViTImageProcessor", dict(size=32, rescale_factor=1 / 127.5, resample=5,
                                                  image_mean=[1.0] * 3, image_std=[1.0] * 3)),
    "vit-not-normalised": ("ViTImageProcessor", dict(size=32, do_normalize=False)),
    "dinov2": ("BitImageProcessor", dict(
        size={"shortest_edge": 36}, crop_size=32, image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225])),
    "convnext": ("ConvNextImageProcessor", dict(size={"shortest_edge": 33}, crop_pct=0.7)),
    "convnext, cropped again": ("ConvNextImageProcessor", dict(size=33, do_center_crop=True, crop_size=20)),
    "convnext of large pictures": ("ConvNextImageProcessor", dict(size=384, resample=2)),
}


@pytest.mark.parametrize("name", IMAGE_PROCESSORS)
def test_pixels_equal_transformers(name, tmp_path):
  kind, settings = IMAGE_PROCESSORS[name]
  getattr(transformers, kind)(**settings).save_pretrained(tmp_path)
  for size in ((50, 30), (31, 97), (33, 65), (32, 32), (5, 40)):
    assert_same_pixels(tmp_path, folders.encode(folders.picture(*size)))


@pytest.mark.parametrize("name, change, options", [
    ("progressive", lambda image: image, dict(quality=60, progressive=True)),
    ("4:4:4", lambda image: image, dict(quality=95, subsampling=0)),
    ("4:2:2", lambda image: image, dict(quality=30, subsampling=1)),
    ("grey", lambda image: image.convert("L"), {}),
    ("cmyk", lambda image: image.convert("CMYK"), {}),
    ("png", lambda image: image, dict(form="PNG")),
    ("grey png", lambda image: image.convert("L"), dict(form="PNG")),
    ("palette", lambda image: image.quantize(9), dict(form="PNG")),
    ("clear palette", lambda image: image.quantize(9), dict(form="PNG", transparency=3)),
    ("transparent", lambda image: with_alpha(image), dict(form="PNG")),
    ("grey transparent", lambda image: with_alpha(image).convert("LA"), dict(form="PNG")),
])
def test_every_kind_of_file_decodes_as_there(name, change, options, tmp_path):
  transformers.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(
      tmp_path)
  assert_same_pixels(tmp_path, folders.encode(change(folders.picture(40, 55)), **options))


def with_alpha(image):
  from PIL import Image
  alpha = np.linspace(0, 255, image.width * image.height).reshape(image.height, image.width)
  image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
  return image


def test_orientation_is_applied_as_transformers_does_for_a_path(tmp_path):
  from PIL import Image
  transformers.ViTImageProcessor(size=32).save_pretrained(tmp_path)
  exif = Image.Exif()
  exif[0x112] = 6
  path = tmp_path / "turned.jpg"
  path.write_bytes(folders.encode(folders.picture(40, 55), exif=exif))
  theirs = transformers.AutoImageProcessor.from_pretrained(tmp_path, backend="pil")(
      str(path), return_tensors="np")["pixel_values"].transpose(0, 2, 3, 1)
  ours = Processor(processing.read_image(tmp_path))(images=[path])["image"]
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-6)


def test_naflex_patches_mask_and_grid_equal_transformers(tmp_path):
  transformers.Siglip2ImageProcessor(patch_size=4, max_num_patches=30).save_pretrained(tmp_path)
  processor = Processor(processing.read_image(tmp_path))
  for size in ((50, 30), (31, 97), (7, 200), (200, 7), (24, 20), (3, 3), (64, 64)):
    data = folders.encode(folders.picture(*size))
    theirs, ours = reference_pixels(tmp_path, data), processor(images=[data])
    assert ours["image"].shape == (1, 30, 4, 4, 3)
    np.testing.assert_allclose(ours["image"].reshape(1, 30, -1), theirs["pixel_values"], rtol=0,
                               atol=1e-6)
    np.testing.assert_array_equal(ours["image_mask"], theirs["pixel_attention_mask"].astype(bool))
    np.testing.assert_array_equal(ours["image_grid"], theirs["spatial_shapes"])


@pytest.mark.parametrize("resample, mode", [(2, "bilinear"), (3, "bicubic")])
def test_dinov3_resizes_floats_as_torchvision_does(resample, mode, tmp_path):
  # Its processor exists for torchvision alone, whose resize of a float image is this function.
  torch = needs("torch")
  (tmp_path / "preprocessor_config.json").write_text(json.dumps({
      "image_processor_type": "DINOv3ViTImageProcessorFast", "resample": resample,
      "size": {"height": 32, "width": 24}}))
  image = folders.picture(50, 70)
  pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
  resized = torch.nn.functional.interpolate(pixels, (32, 24), mode=mode, antialias=True)
  mean, std = (torch.tensor(v)[:, None, None] for v in ([.485, .456, .406], [.229, .224, .225]))
  expected = ((resized - mean) / std)[0].permute(1, 2, 0).numpy()
  ours = Processor(processing.read_image(tmp_path))(images=[folders.encode(image, "PNG")])
  # Both filter in float32, in another order of summation.
  np.testing.assert_allclose(ours["image"][0], expected, rtol=0, atol=5e-6)


def test_old_names_and_sizes_are_understood(tmp_path):
  file = tmp_path / "preprocessor_config.json"
  file.write_text(json.dumps({"feature_extractor_type": "CLIPFeatureExtractor", "size": 40,
                              "crop_size": 32, "resample": 3, "do_resize": True,
                              "do_center_crop": True, "do_normalize": True}))
  assert_same_pixels(tmp_path, folders.encode(folders.picture(50, 75)))
  (tmp_path / "config.json").write_text('{"model_type": "vit"}')
  file.write_text(json.dumps({"size": 32}))
  assert_same_pixels(tmp_path, folders.encode(folders.picture(50, 75)))


def test_images_are_cut_to_whole_patches_where_the_model_does(tmp_path):
  transformers.SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
  data = folders.encode(folders.picture(40, 40))
  whole = Processor(processing.read_image(tmp_path, patch=16))(images=[data])["image"]
  cut = Processor(processing.read_image(tmp_path, patch=(14, 9)))(images=[data])["image"]
  assert whole.shape == (1, 32, 32, 3)
  np.testing.assert_array_equal(cut, whole[:, :28, :27])


def test_a_folder_that_says_nothing_gives_nothing(tmp_path):
  assert processing.read_image(tmp_path) == () and processing.read_text(tmp_path) == ()


@pytest.mark.parametrize("content, message", [
    ({"image_processor_type": "DPTImageProcessor"}, "image_processor_type = 'DPTImage"),
    ({"image_processor_type": "ViTImageProcessor", "do_pad": True}, "do_pad = True"),
    ({"image_processor_type": "ViTImageProcessor", "size": {"longest_edge": 3}}, "size = {'longe"),
    ({"image_processor_type": "ViTImageProcessor", "resample": 7}, "resample = 7"),
    ({"image_processor_type": "ViTImageProcessor", "image_mean": [0, 0]}, r"image_mean = \[0, 0"),
    ({"image_processor_type": "ConvNextImageProcessor", "size": {"height": 3, "width": 3}}, "size = {'height"),
    ({"size": 3}, "no image_processor_type"),
])
def test_what_cannot_be_followed_is_an_error_that_names_file_and_key(content, message, tmp_path):
  (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
  with pytest.raises(ValueError, match=f"preprocessor_config.json.*{message}"):
    processing.read_image(tmp_path)


def test_clip_ids_equal_transformers(tmp_path):
  folders.clip_tokenizer().save_pretrained(tmp_path)
  assert_same_text(tmp_path)


def test_clip_ids_equal_transformers_from_vocabulary_and_merges(tmp_path):
  folders.clip_tokenizer().save_pretrained(tmp_path)
  model = json.loads((tmp_path / "tokenizer.json").read_text())["model"]
  (tmp_path / "tokenizer.json").unlink()
  (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
  (tmp_path / "merges.txt").write_text(
      "\n".join(["#version: 0.2", *map(" ".join, model["merges"]), ""]), encoding="utf-8")
  (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": 9}')
  (tmp_path / "config.json").write_text('{"model_type": "clip"}')
  (tmp_path / "special_tokens_map.json").write_text(json.dumps(
      {"bos_token": {"content": "<|startoftext|>", "lstrip": False, "rstrip": False,
                     "single_word": False, "normalized": True}, "eos_token": "<|endoftext|>",
       "unk_token": "<|endoftext|>", "pad_token": "!"}))
  assert_same_text(tmp_path)
  assert processing.read_text(tmp_path, {})[0]["length"] == 9


@pytest.mark.parametrize("settings", [{}, {"do_lower_case": False}, {"padding_side": "left"},
                                      {"model_input_names": ["input_ids"]}])
def test_siglip_ids_equal_transformers(settings, tmp_path):
  model = folders.sentencepiece_model(tmp_path / "model")
  transformers.SiglipTokenizer(model).save_pretrained(tmp_path)
  folders.rewrite(tmp_path / "tokenizer_config.json", **settings)
  assert_same_text(tmp_path)


def test_siglip_without_a_mask_reads_its_padding(tmp_path):
  model = folders.sentencepiece_model(tmp_path / "model")
  transformers.SiglipTokenizer(model).save_pretrained(tmp_path)
  folders.rewrite(tmp_path / "tokenizer_config.json", model_input_names=["input_ids"])
  node, = processing.read_text(tmp_path, {"max_position_embeddings": 64})
  assert Processor((), [node])(texts=["a cat"])["text_mask"].all() and node["length"] == 64


@pytest.mark.parametrize("kind", ["Siglip2Tokenizer", "GemmaTokenizer"])
@pytest.mark.parametrize("settings", [
    {}, {"padding_side": "right", "add_eos_token": True, "model_max_length": 9}])
def test_gemma_ids_equal_transformers(kind, settings, tmp_path):
  vocabulary, merges = folders.gemma_vocabulary()
  getattr(transformers, kind)(vocab=vocabulary, merges=merges).save_pretrained(tmp_path)
  folders.rewrite(tmp_path / "tokenizer_config.json", **settings)
  assert_same_text(tmp_path)


def test_siglip_2_makes_letters_small_though_its_published_files_do_not_say_so(tmp_path):
  vocabulary, merges = folders.gemma_vocabulary()
  transformers.GemmaTokenizer(vocab=vocabulary, merges=merges).save_pretrained(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "siglip2"}')
  folders.rewrite(tmp_path / "tokenizer_config.json", padding_side="right")
  folders.rewrite(tmp_path / "tokenizer.json", post_processor={
      "type": "TemplateProcessing", "pair": [],
      "single": [{"Sequence": {"id": "A", "type_id": 0}},
                 {"SpecialToken": {"id": "<eos>", "type_id": 0}}],
      "special_tokens": {"<eos>": {"id": "<eos>", "ids": [1], "tokens": ["<eos>"]}}})
  assert_same_text(tmp_path)
  node, = processing.read_text(tmp_path, {"max_position_embeddings": 16})
  ids = Processor((), [node])(texts=["A CAT", "a cat"])["text"]
  np.testing.assert_array_equal(ids[0], ids[1])


def test_a_plain_tokenizer_file_is_taken_as_it_stands(tmp_path):
  import tokenizers as hf
  words = hf.Tokenizer(hf.models.WordLevel(
      {"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "[UNK]": 3, "a": 4, "cat": 5}, "[UNK]"))
  words.pre_tokenizer = hf.pre_tokenizers.Whitespace()
  words.post_processor = hf.processors.BertProcessing(("[SEP]", 2), ("[CLS]", 1))
  words.enable_padding(direction="left", pad_token="[PAD]")
  fast = transformers.PreTrainedTokenizerFast(
      tokenizer_object=words, unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]")
  fast.save_pretrained(tmp_path)
  assert_same_text(tmp_path)


def test_a_config_that_leaves_out_the_length_of_texts_means_transformers_default(tmp_path):
  folders.clip_tokenizer().save_pretrained(tmp_path)
  (tmp_path / "config.json").write_text('{"model_type": "clip"}')
  assert processing.read_text(tmp_path, {})[0]["length"] == 77


def test_unreadable_tokenizers_are_errors_that_say_where(tmp_path):
  (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
  with pytest.raises(ValueError, match="has no tokenizer.json .* BertTokenizer"):
    processing.read_text(tmp_path)
  folders.clip_tokenizer().save_pretrained(tmp_path)
  with pytest.raises(ValueError, match="says how long a text may be"):
    processing.read_text(tmp_path, {})
  folders.rewrite(tmp_path / "tokenizer_config.json", truncation_side="left")
  with pytest.raises(ValueError, match="tokenizer_config.json: truncation_side"):
    processing.read_text(tmp_path, {"max_position_embeddings": 8})
  (tmp_path / "tokenizer_config.json").write_text("{")
  with pytest.raises(ValueError, match="tokenizer_config.json is not JSON"):
    processing.read_text(tmp_path)
