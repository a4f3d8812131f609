"""What cannot be read is a bad record that is counted and told; what is rare is read rightly."""

import io
import time

import numpy as np
from PIL import Image, ImageOps
import pytest

from mmjax.data import resampling, stream, tokenizers
from mmjax.data import transforms as T
from tests.data import damage

READ = (T.Decode(), T.RandomResizedCrop(8), T.Normalise("half"), T.Keep(("image",)))


class Files:
  """Files as records, a good one first."""

  digest, name = "0", "files"

  def __init__(self, files):
    self.files = files

  def __len__(self):
    return len(self.files)

  def __getitem__(self, i):
    return {"image": self.files[i]}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow's, about damaged TIFF tags
def test_three_hundred_damaged_files_are_bad_records_or_pictures_never_a_crash_or_a_hang():
  made = list(damage.files(300))
  assert len(made) == 300 and made == list(damage.files(300))
  good = damage.unusual()["grey.jpg"]
  records = stream.Stream(Files([good, *(data for _, data in made)]), READ, shuffle=False)
  began, bad = time.process_time(), {}
  for row, (name, _) in enumerate(made, 1):
    record = records.record(row)
    assert record["image"].shape == (8, 8, 3) and np.isfinite(record["image"]).all(), name
    if not record["valid"]:
      assert not record["image"].any() and f"files record {row}, transform 0 (Decode): " in str(record["error"])
      bad[name] = str(record["error"])
  assert time.process_time() - began < 120  # no hang: seconds of work
  must = [name for name, _ in made if name[3:].startswith(("_empty", "_noise", "_page", "_bomb"))]
  assert len(must) > 100 and set(must) <= set(bad)
  assert len(bad) < 300  # flipped bytes of a .bmp are other pixels
  assert records.record(0)["valid"]


@pytest.mark.parametrize("data, why", [(b"", "the picture's file is empty"),
                                       (b"<html>no</html>", "no picture that is known: 15 bytes that begin with b'<html>no")])
def test_file_that_is_no_picture_is_told_by_what_is_in_it(data, why):
  with pytest.raises(ValueError, match=why):
    T.Decode()({"image": data}, None)


@pytest.mark.parametrize("name", sorted(damage.unusual()))
def test_rare_forms_are_read_as_pillow_shows_them(name):
  data = damage.unusual()[name]
  image = T.Decode()({"image": data}, None)["image"]
  assert image.shape == (12, 16, 3) and image.dtype == np.uint8
  opened = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
  if opened.mode.startswith("I"):
    want = np.repeat(np.rint(np.asarray(opened) / 257)[..., None], 3, axis=-1)
  else:
    want = np.asarray(opened.convert("RGBA" if opened.mode == "P" else "RGB").convert("RGB"))
  np.testing.assert_array_equal(image, want)


@pytest.mark.parametrize("data", (damage.png_of(10_000, 10_000), damage.png_of(60_000, 60_000)))
def test_picture_beyond_the_limit_is_refused_before_memory_is_taken(data):
  with pytest.raises(ValueError, match=r"100 million pixels|3600000000 pixels.*max_pixels"):
    T.Decode()({"image": data}, None)


def test_limit_on_pixels_holds_for_jpegs_too_and_can_be_set():
  file = io.BytesIO()
  Image.new("RGB", (300, 200)).save(file, "JPEG")
  assert T.Decode(max_pixels=60_000)({"image": file.getvalue()}, None)["image"].shape == (200, 300, 3)
  with pytest.raises(ValueError, match="0.06 million pixels, more than max_pixels = 59,999"):
    T.Decode(max_pixels=59_999)({"image": file.getvalue()}, None)
  with pytest.raises(ValueError, match="Decode.max_pixels = 0: expected a count"):
    T.Decode(max_pixels=0)


THIN = {"ResizeShort": (T.ResizeShort(224), T.CentreCrop(224)), "AspectBucket": (T.AspectBucket(),),
        "Resize": (T.Resize(224),), "Letterbox": (T.Letterbox(224),), "Patchify": (T.Patchify(),),
        "RandomResizedCrop": (T.RandomResizedCrop(224),)}


@pytest.mark.parametrize("size", ((60_000, 1), (1, 60_000)))
@pytest.mark.parametrize("name", THIN)
def test_thin_picture_takes_no_memory_of_many_such(name, size, monkeypatch):
  made = []
  monkeypatch.setattr(resampling, "FILTERS", {"bilinear": lambda image, new: (
      made.append(new[0] * new[1]), np.zeros((*new, image.shape[2]), np.uint8))[1]})
  data = damage.png_of(*size, rows=size[1])
  records = stream.Stream(Files([data]), (T.Decode(), *THIN[name]), shuffle=False)
  refused = name in ("ResizeShort", "AspectBucket")  # the others ask for a fixed size
  if refused:
    with pytest.raises(stream.DataError, match=rf"\({name}\): .* is too thin: resized to .* million pixels, more than"):
      records.spec
  else:
    assert records.record(0)["valid"]
  assert max(made, default=0) <= 100_000


def test_large_picture_may_be_made_a_little_smaller_and_a_small_one_larger_up_to_the_limit(monkeypatch):
  monkeypatch.setattr(resampling, "MOST_ENLARGED", 60 * 60)
  large, small = np.zeros((80, 80, 3), np.uint8), np.zeros((10, 10, 3), np.uint8)
  assert resampling.resize(large, (79, 79), "bilinear").shape == (79, 79, 3)
  assert resampling.resize(small, (60, 60), "bilinear").shape == (60, 60, 3)
  with pytest.raises(ValueError, match="the picture of 10 x 10 is too thin: resized to 60 x 61"):
    resampling.resize(small, (60, 61), "bilinear")


@pytest.mark.parametrize("tokenizer", ("bytes", "scenes"))
@pytest.mark.parametrize("caption", damage.captions())
def test_rare_captions_are_tokens_like_any_other(tokenizer, caption):
  out = T.Tokenise(tokenizer, 16)({"caption": caption}, None)
  assert out["text"].shape == (16,) and out["text_mask"].any()
  assert out["text"].max() < tokenizers.load(tokenizer).vocab_size


@pytest.mark.parametrize("caption", (b"\xff\xfe", "\ud800", 3.5, None, [], [""]))
def test_captions_that_are_none_are_bad_records(caption):
  steps = (T.SampleCaption(), T.Tokenise("scenes", 8, eos=False))
  records = stream.Stream(Captions(["a red cube", caption]), (*steps, T.Keep(("text",))), shuffle=False)
  record = records.record(1)
  assert not record["valid"] and "captions record 1, transform " in str(record["error"])


class Captions(Files):
  name = "captions"

  def __getitem__(self, i):
    return {"caption": self.files[i]}


def test_orientation_of_a_jpeg_whose_exif_is_damaged_is_the_stored_one():
  data = damage.unusual()["orientation_6.jpg"]
  at = data.index(b"Exif\0\0") + 6
  image = T.Decode()({"image": data[:at] + b"\xff" * 8 + data[at + 8:]}, None)["image"]
  assert image.shape == (16, 12, 3)


@pytest.mark.parametrize("pixels, why", ((np.ones((4, 4), np.float32), "a picture of floats"),
                                         (np.full((4, 4), 70_000, np.int32), "expected 16 bits")))
def test_pictures_of_unknown_range_are_refused(pixels, why):
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, "TIFF")
  with pytest.raises(ValueError, match=why):
    T.Decode()({"image": file.getvalue()}, None)


@pytest.mark.parametrize("value", (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), np.int64), 3, None, "a.jpg"))
def test_pictures_of_another_type_are_bad_records(value):
  with pytest.raises((TypeError, ValueError)):
    T.Decode()({"image": value}, None)
