"""Transforms give what Pillow, JAX's own resize or a closed form gives; bad input is named."""

import io

import jax
import numpy as np
from PIL import Image
import pytest

from mmjax.data import colour_transforms
from mmjax.data import image_transforms
from mmjax.data import resampling
from mmjax.data import transforms as T


def rng(seed=0):
  return np.random.default_rng(seed)


def photo(height=48, width=64):
  """A smooth picture with some noise, uint8 [H, W, 3]."""
  y, x = np.mgrid[0:1:height * 1j, 0:1:width * 1j]
  smooth = np.stack([x, y, (x + y) / 2], axis=-1) * 180
  return (30 + smooth + rng().uniform(0, 40, smooth.shape)).astype(np.uint8)


def encode(image, form="PNG", **options):
  file = io.BytesIO()
  Image.fromarray(image).save(file, form, **options)
  return file.getvalue()


def run(transform, seed=0, **record):
  return transform(record, rng(seed))


# Decode


def test_png_decodes_exactly():
  np.testing.assert_array_equal(run(T.Decode(), image=encode(photo()))["image"], photo())


@pytest.mark.parametrize("options", [
    {"quality": 90}, {"quality": 20, "subsampling": 0}, {"quality": 75, "progressive": True}])
def test_jpeg_decodes_as_pillow_does(options):
  # Both wrap libjpeg-turbo; equal pixels are what exchanged checkpoints rest on.
  data = encode(photo(), "JPEG", **options)
  np.testing.assert_array_equal(run(T.Decode(), image=data)["image"],
                                np.asarray(Image.open(io.BytesIO(data))))


def test_transparency_is_dropped_or_put_on_white():
  rgba = np.concatenate([photo(), np.full((*photo().shape[:2], 1), 0, np.uint8)], axis=-1)
  data = encode(rgba)
  np.testing.assert_array_equal(run(T.Decode(), image=data)["image"], photo())
  assert np.all(run(T.Decode(alpha="white"), image=data)["image"] == 255)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1"])
def test_every_png_mode_becomes_rgb(mode):
  file = io.BytesIO()
  Image.fromarray(photo()).convert(mode).save(file, "PNG")
  expected = np.asarray(Image.open(file).convert("RGB"))
  np.testing.assert_array_equal(run(T.Decode(), image=file.getvalue())["image"], expected)
  grey = run(T.Decode(channels=1), image=file.getvalue())["image"]
  assert grey.shape == (48, 64, 1) and grey.dtype == np.uint8


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_grey_and_cmyk_jpegs_become_rgb(mode):
  file = io.BytesIO()
  Image.fromarray(photo()).convert(mode).save(file, "JPEG", quality=95)
  expected = np.asarray(Image.open(file).convert("RGB")).astype(int)
  np.testing.assert_allclose(run(T.Decode(), image=file.getvalue())["image"], expected, atol=2)


def test_exif_orientation_is_applied():
  exif = Image.Exif()
  exif[0x0112] = 6  # turn by 90 degrees clockwise to show
  data = encode(photo(), "JPEG", exif=exif, quality=95)
  decoded = run(T.Decode(), image=data)["image"]
  assert decoded.shape == (64, 48, 3)
  plain = run(T.Decode(), image=encode(photo(), "JPEG", quality=95))["image"]
  np.testing.assert_allclose(decoded, np.rot90(plain, -1).astype(int), atol=2)


def test_16_bit_png_scales_to_8_bits_or_stays():
  depth = (np.arange(64, dtype=np.uint16) * 1040).reshape(8, 8)
  data = encode(depth)
  np.testing.assert_array_equal(
      run(T.Decode(channels=1, dtype="uint16"), image=data)["image"], depth[..., None])
  eight = run(T.Decode(), image=data)["image"]
  np.testing.assert_array_equal(eight, np.repeat(np.rint(depth / 257)[..., None], 3, -1))


@pytest.mark.parametrize("data", [
    b"", b"not an image", encode(photo())[:200], encode(photo())[:-12][:-40],
    encode(photo(), "JPEG")[:100], encode(photo(), "JPEG")[:-200], photo() / 255, "text", None,
], ids=["empty", "noise", "png-head", "png-cut", "jpeg-head", "jpeg-cut", "floats", "str", "none"])
def test_damaged_or_wrong_data_raises(data):
  with pytest.raises(Exception):
    run(T.Decode(), image=data)


# Resize and crop


@pytest.mark.parametrize("name, method", [("bilinear", "bilinear"), ("bicubic", "cubic"),
                                          ("lanczos", "lanczos3")])
@pytest.mark.parametrize("size", [(12, 20), (100, 90)])
def test_resize_is_antialiased_as_jax_image_resize(name, method, size):
  # Another implementation of the same filters, in float; Pillow keeps 8 bits between its two
  # passes.
  image = photo()
  ours = run(T.Resize(size, name), image=image)["image"]
  reference = jax.image.resize(image.astype(np.float32), (*size, 3), method, antialias=True)
  assert ours.dtype == np.uint8
  np.testing.assert_allclose(ours, np.clip(reference, 0, 255), atol=1.5)


def test_area_resize_is_the_mean_of_blocks():
  image = photo(40, 60)
  blocks = image.reshape(10, 4, 20, 3, 3).mean(axis=(1, 3))
  np.testing.assert_allclose(run(T.Resize((10, 20), "area"), image=image)["image"], blocks, atol=1)


def test_fine_stripes_vanish_to_grey_and_do_not_alias():
  stripes = np.tile(np.array([0, 255], np.uint8)[:, None, None], (32, 64, 3))
  for name in ("bilinear", "bicubic", "lanczos", "area"):
    small = run(T.Resize(16, name), image=stripes)["image"][2:-2]
    assert np.all(np.abs(small.astype(int) - 127) < 6), name


def test_resize_keeps_16_bit_and_float_precision():
  depth = np.rint(np.linspace(0, 60000, 64 * 64)).reshape(64, 64, 1)
  for dtype in (np.uint16, np.float32):
    small = run(T.Resize(16, "area"), image=depth.astype(dtype))["image"]
    assert small.dtype == dtype
    np.testing.assert_allclose(small, depth.reshape(16, 4, 16, 4, 1).mean(axis=(1, 3)), atol=0.51)


def test_nearest_invents_no_labels():
  labels = rng().choice([0, 7, 200], (30, 30, 1)).astype(np.uint8)
  assert set(np.unique(run(T.Resize(11, "nearest"), image=labels)["image"])) <= {0, 7, 200}


@pytest.mark.parametrize("shape, expected", [((48, 64), (24, 32)), ((65, 48), (32, 24))])
def test_resize_short_keeps_the_aspect_ratio(shape, expected):
  assert run(T.ResizeShort(24), image=photo(*shape))["image"].shape[:2] == expected


def test_centre_crop_takes_the_middle_and_refuses_small_images():
  np.testing.assert_array_equal(run(T.CentreCrop((8, 10)), image=photo())["image"],
                                photo()[20:28, 27:37])
  with pytest.raises(ValueError, match="smaller than the crop"):
    run(T.CentreCrop(50), image=photo())


def test_centre_crop_of_an_odd_rest_and_of_a_smaller_image():
  image = photo(11, 13)
  np.testing.assert_array_equal(run(T.CentreCrop(8), image=image)["image"], image[1:9, 2:10])
  np.testing.assert_array_equal(run(T.CentreCrop(8, odd="round"), image=image)["image"],
                                image[2:10, 2:10])
  padded = run(T.CentreCrop((14, 8), pad=True), image=image)["image"]
  np.testing.assert_array_equal(padded[2:13], image[:, 2:10])
  assert padded.shape == (14, 8, 3) and not padded[:2].any() and not padded[13:].any()


def test_to_float_keeps_a_resize_from_rounding():
  image = photo()
  exact = run(T.Resize(16, "bicubic"), **run(T.ToFloat(), image=image))["image"]
  rounded = run(T.Resize(16, "bicubic"), image=image)["image"]
  assert exact.dtype == np.float32
  np.testing.assert_allclose(np.clip(exact, 0, 1) * 255, rounded, atol=1.5)
  assert np.abs(exact * 255 - np.rint(exact * 255)).max() > 0.3


def test_random_resized_crop_draws_area_uniformly_and_ratio_log_uniformly():
  crop, draw = T.RandomResizedCrop(8, scale=(0.1, 0.5)), rng()
  boxes = np.array([crop.box(1000, 1000, draw) for _ in range(2000)])
  area, ratio = boxes[:, 2] * boxes[:, 3] / 1e6, np.log(boxes[:, 3] / boxes[:, 2])
  assert 0.099 < area.min() and area.max() < 0.501
  assert abs(area.mean() - 0.3) < 0.01           # standard error 0.4 / sqrt(12 * 2000) = 0.0026
  assert np.abs(ratio).max() < np.log(4 / 3) + 0.01 and abs(ratio.mean()) < 0.015
  assert np.all(boxes[:, :2] >= 0) and np.all(boxes[:, :2] + boxes[:, 2:] <= 1000)


def test_random_resized_crop_falls_back_to_the_centre_of_a_long_image():
  top, left, height, width = T.RandomResizedCrop(8, scale=(0.9, 1.0)).box(10, 1000, rng())
  assert (top, height) == (0, 10) and width == 13 and abs(left + width / 2 - 500) <= 1


def test_random_resized_crop_is_the_resized_box():
  crop = T.RandomResizedCrop(16, filter="pillow_bicubic")
  top, left, height, width = crop.box(48, 64, rng(3))
  expected = Image.fromarray(photo()[top:top + height, left:left + width])
  expected = expected.resize((16, 16), Image.Resampling.BICUBIC)
  np.testing.assert_array_equal(run(crop, seed=3, image=photo())["image"], np.asarray(expected))


def test_flip_happens_with_its_probability():
  image = photo()
  flips = [np.array_equal(run(T.Flip(0.3), s, image=image)["image"], image[:, ::-1])
           for s in range(500)]
  assert abs(np.mean(flips) - 0.3) < 0.08        # four standard errors
  np.testing.assert_array_equal(run(T.Flip(0), image=image)["image"], image)
  np.testing.assert_array_equal(run(T.Flip(1), image=image)["image"], image[:, ::-1])


@pytest.mark.parametrize("shape, rows, columns", [
    ((20, 40), slice(8, 24), slice(0, 32)), ((40, 20), slice(0, 32), slice(8, 24))])
def test_letterbox_keeps_the_aspect_ratio_and_masks_the_rest(shape, rows, columns):
  record = run(T.Letterbox(32, fill=9, mask="real"), image=photo(*shape))
  mask = np.zeros((32, 32), bool)
  mask[rows, columns] = True
  np.testing.assert_array_equal(record["real"], mask)
  assert np.all(record["image"][~mask] == 9)
  expected = resampling.resize(photo(*shape), record["image"][rows, columns].shape[:2],
                                     "bilinear")
  np.testing.assert_array_equal(record["image"][rows, columns], expected)


def test_normalise_is_x_minus_mean_over_std():
  image = photo()
  half = run(T.Normalise("half"), image=image)["image"]
  assert half.dtype == np.float32
  np.testing.assert_allclose(half, image / 127.5 - 1, atol=1e-6)
  mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
  expected = (image / 255 - mean) / std
  for transform in (T.Normalise("imagenet"), T.Normalise(mean=mean, std=std)):
    np.testing.assert_allclose(run(transform, image=image)["image"], expected, atol=1e-6)


# Colour


def test_colour_jitter_without_strength_or_chance_changes_nothing():
  for jitter in (T.ColourJitter(), T.ColourJitter(1, 1, 1, 0.5, p=0)):
    np.testing.assert_array_equal(run(jitter, image=photo())["image"], photo())


def test_brightness_scales_and_saturation_keeps_grey():
  image = photo() // 3
  seen = []
  for seed in range(50):
    bright = run(T.ColourJitter(brightness=0.5), seed, image=image)["image"]
    factor = bright.sum() / image.sum()
    np.testing.assert_allclose(bright, image * factor, atol=1.6)  # truncated to integers
    seen.append(factor)
  assert 0.48 < min(seen) < 0.6 and 1.4 < max(seen) < 1.51
  grey = np.repeat(image[..., :1], 3, axis=-1)
  for jitter in (T.ColourJitter(saturation=0.9), T.ColourJitter(hue=0.5)):
    np.testing.assert_allclose(run(jitter, image=grey)["image"].astype(int), grey, atol=1)


def test_half_a_turn_of_hue_makes_red_cyan():
  red = np.full((2, 2, 3), (200, 0, 0), np.uint8)
  turned = np.asarray(colour_transforms._turn_hue(Image.fromarray(red), 0.5))
  np.testing.assert_allclose(turned[0, 0].astype(int), (0, 200, 200), atol=6)  # 8-bit hue


@pytest.mark.parametrize("name", colour_transforms.OPERATIONS)
def test_randaugment_operations_have_their_closed_form(name):
  image, level, fill = photo(40, 50), 0.5, 128
  ours = np.asarray(colour_transforms.operate(Image.fromarray(image), name, level, fill))
  assert ours.shape == image.shape and ours.dtype == np.uint8
  grey = np.asarray(Image.fromarray(image).convert("L")).astype(float)[..., None]
  x = image.astype(float)
  expected = {
      "identity": x,
      "brightness": np.clip(1.45 * x, 0, 255),
      "saturation": np.clip(grey + 1.45 * (x - grey), 0, 255),
      "contrast": np.clip(grey.mean() + 1.45 * (x - grey.mean()), 0, 255),
      "posterise": image & 0b11111100,             # 8 - 4 / 2 = 6 bits
      "solarise": np.where(image < 127.5, x, 255 - x),
  }.get(name)
  if expected is not None:
    np.testing.assert_allclose(ours, expected, atol=1.5)
  elif name == "translate_x":
    shift = 150 / 331 * 50 * level                 # 11.3 pixels: content moves left
    assert np.all(ours[:, -10:] == fill)
    near = (1 - shift % 1) * x[:, 11:-12] + shift % 1 * x[:, 12:-11]
    np.testing.assert_allclose(ours[:, :near.shape[1]], near, atol=2)
  else:
    assert not np.array_equal(ours, image)


def test_randaugment_at_no_magnitude_moves_nothing():
  for name in ("shear_x", "shear_y", "translate_x", "translate_y", "rotate", "brightness"):
    still = colour_transforms.operate(Image.fromarray(photo()), name, 0.0, 128)
    np.testing.assert_array_equal(np.asarray(still), photo())


def test_randaugment_draws_every_operation_and_repeats_with_its_rng():
  augment, image = T.RandAugment(num_ops=1), photo(16, 16)
  results = [run(augment, seed, image=image)["image"].tobytes() for seed in range(60)]
  assert len(set(results)) > 12
  assert results[7] == run(augment, 7, image=image)["image"].tobytes()


# Text and keys


def test_tokenise_pads_masks_and_keeps_the_end_token_when_it_cuts():
  record = run(T.Tokenise("bytes", 6, bos=True), caption="ab")
  np.testing.assert_array_equal(record["text"], [1, 100, 101, 2, 0, 0])
  np.testing.assert_array_equal(record["text_mask"], [1, 1, 1, 1, 0, 0])
  assert record["text"].dtype == np.int32 and record["text_mask"].dtype == bool
  np.testing.assert_array_equal(run(T.Tokenise("bytes", 3), caption=b"abcdef")["text"],
                                [100, 101, 2])
  np.testing.assert_array_equal(run(T.Tokenise("bytes", 3, eos=False), caption="abcdef")["text"],
                                [100, 101, 102])


def test_an_empty_caption_is_its_end_token_or_an_error():
  np.testing.assert_array_equal(run(T.Tokenise("bytes", 3), caption="")["text_mask"], [1, 0, 0])
  with pytest.raises(ValueError, match="empty"):
    run(T.Tokenise("bytes", 3, eos=False), caption="")


def test_tokenise_pads_on_either_side_with_any_id_and_tells_what_the_model_reads():
  left = run(T.Tokenise("bytes", 4, eos=False, side="left", pad=9), caption="a")
  np.testing.assert_array_equal(left["text"], [9, 9, 9, 100])
  np.testing.assert_array_equal(left["text_mask"], [0, 0, 0, 1])
  assert run(T.Tokenise("bytes", 4, reads_padding=True), caption="a")["text_mask"].all()
  empty = run(T.Tokenise("bytes", 3, eos=False, keep_empty=True), caption="")
  assert not empty["text"].any() and not empty["text_mask"].any()


@pytest.mark.parametrize("clean, expected", [
    ("whitespace", "A & b_c!"), ("lower", "a & b_c!"), ("canonical", "a b c")])
def test_tokenise_cleans_the_text_first(clean, expected):
  ids = run(T.Tokenise("bytes", 12, eos=False, clean=clean), caption=" A  &amp;\n b_c! ")["text"]
  assert bytes(int(i) - 3 for i in ids if i).decode() == expected


def test_tokenise_stacks_several_captions():
  record = run(T.Tokenise("bytes", 4, captions=3), caption=["a", "bc"])
  np.testing.assert_array_equal(record["text"], [[100, 2, 0, 0], [101, 102, 2, 0], [0] * 4])
  np.testing.assert_array_equal(record["text_mask"].sum(-1), [2, 3, 0])
  assert record["text_count"] == 2
  assert run(T.Tokenise("bytes", 4, captions=1), caption=["a", "bc"])["text_count"] == 1


def test_sample_caption_chooses_as_told():
  captions = [b"one", "three", "two"]
  pick = lambda choose, seed=0: run(T.SampleCaption(choose), seed, caption=captions)["caption"]
  assert (pick("first"), pick("longest"), pick(2)) == ("one", "three", "two")
  assert {pick("random", seed) for seed in range(30)} == {"one", "three", "two"}
  for choose in ("random", "first", "longest", 0):
    with pytest.raises(ValueError, match="empty|has 0"):
      run(T.SampleCaption(choose), caption=[])
  with pytest.raises(TypeError, match="expected a text"):
    run(T.SampleCaption("first"), caption=[3])


def test_keep_and_rename():
  assert run(T.Keep(("a",)), a=1, b=2) == {"a": 1}
  with pytest.raises(ValueError, match="no 'c'; it has a, b"):
    run(T.Keep(("c",)), a=1, b=2)
  assert run(T.Rename({"a": "c"}), a=1, b=2) == {"b": 2, "c": 1}
  with pytest.raises(ValueError, match="cannot rename"):
    run(T.Rename({"a": "b"}), a=1, b=2)


@pytest.mark.parametrize("build, told", [
    (lambda: T.Resize(0), r"Resize.size = 0"),
    (lambda: T.Resize((1, 2, 3)), r"Resize.size"),
    (lambda: T.Resize(8, "cubic"), r"Resize.filter = 'cubic': expected one of nearest"),
    (lambda: T.ResizeShort((8, 8)), r"ResizeShort.size"),
    (lambda: T.CentreCrop(-1), r"CentreCrop.size"),
    (lambda: T.CentreCrop(8, odd="up"), r"CentreCrop.odd"),
    (lambda: T.Decode(alpha="black"), r"Decode.alpha"),
    (lambda: T.Tokenise("bytes", 8, side="both"), r"Tokenise.side"),
    (lambda: T.Tokenise("bytes", 8, clean="all"), r"Tokenise.clean = 'all'"),
    (lambda: T.RandomResizedCrop(8, scale=(0.5, 0.1)), r"RandomResizedCrop.scale"),
    (lambda: T.RandomResizedCrop(8, scale=(0.5, 2)), r"RandomResizedCrop.scale"),
    (lambda: T.RandomResizedCrop(8, ratio=(0, 1)), r"RandomResizedCrop.ratio"),
    (lambda: T.Flip(1.5), r"Flip.p = 1.5"),
    (lambda: T.ColourJitter(hue=0.6), r"ColourJitter.hue"),
    (lambda: T.ColourJitter(brightness=-1), r"ColourJitter.brightness"),
    (lambda: T.RandAugment(magnitude=31), r"RandAugment.magnitude"),
    (lambda: T.Letterbox(8, fill=256), r"Letterbox.fill"),
    (lambda: T.Normalise("imagnet"), r"Normalise.preset"),
    (lambda: T.Normalise(), r"Normalise.mean"),
    (lambda: T.Normalise(mean=(0.5,), std=(0.0,)), r"Normalise.std"),
    (lambda: T.Decode(channels=4), r"Decode.channels"),
    (lambda: T.Decode(dtype="uint16"), r"Decode.dtype"),
    (lambda: T.Tokenise("bytes", 1), r"Tokenise.length"),
    (lambda: T.Tokenise("byte", 8), r"no tokenizer 'byte'"),
    (lambda: T.SampleCaption("shortest"), r"SampleCaption.choose"),
    (lambda: T.Keep(()), r"Keep.keys"),
    (lambda: T.Rename({"a": "c", "b": "c"}), r"Rename.names"),
])
def test_bad_arguments_name_the_transform_and_the_field(build, told):
  with pytest.raises(ValueError, match=told):
    build()


@pytest.mark.parametrize("transform", [
    T.Resize(4), T.ResizeShort(4), T.CentreCrop(4), T.RandomResizedCrop(4), T.Flip(),
    T.ColourJitter(), T.RandAugment(), T.Letterbox(4), T.Normalise("half")])
@pytest.mark.parametrize("image", [b"bytes", np.zeros((4, 4)), np.zeros((0, 4, 3), np.uint8)])
def test_what_is_no_decoded_image_is_refused(transform, image):
  with pytest.raises(TypeError, match="decoded image"):
    run(transform, image=image)


@pytest.mark.parametrize("preset", ("clip", "imagenet", "half"))
def test_normalise_of_bytes_by_a_table_is_the_formula_to_the_bit(preset):
  image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, -1)
  mean, std = (np.array(values) for values in image_transforms.PRESETS[preset])
  want = image.astype(np.float32) * (1 / (255 * std)).astype(np.float32) + (-mean / std).astype(np.float32)
  for pixels, expected in ((image, want), (image[None, :, ::-1], want[None, :, ::-1])):
    found = T.Normalise(preset)({"image": pixels}, None)["image"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


def test_linear_filter_is_opencvs_of_four_neighbours():
  rng = np.random.default_rng(0)
  for dtype in (np.uint8, np.float32, np.int32):
    image = rng.integers(0, 200, (9, 12, 3)).astype(dtype)
    found = T.Resize((18, 24), "linear")({"image": image}, None)["image"]
    want = T.Resize((18, 24), "bilinear")({"image": image}, None)["image"]  # the same when made larger
    assert found.dtype == dtype and np.abs(found.astype(float) - want).max() <= 1
