"""Views of multi-crop: their shapes, their scales, and which of them is blurred or solarised."""

import io

import numpy as np
from PIL import Image, ImageFilter
import pytest
from scipy import ndimage

from mmjax.data import stream
from mmjax.data import transforms as T

PLAIN = dict(flip=0.0, jitter_p=0.0, grey_p=0.0, blur_p=0.0, solarise_p=0.0, local_blur_p=0.0)


def photo(height=48, width=64):
  return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def run(transform, seed=0, **record):
  return transform(record, np.random.default_rng(seed))


# Single transforms


def test_blur_is_a_gaussian_of_the_drawn_width():
  image = np.zeros((33, 33, 3), np.uint8)
  image[16, 16] = 255
  sigma = 2.0
  ours = run(T.GaussianBlur((sigma, sigma), p=1.0), image=image)["image"].astype(float)
  # Three box blurs are not quite a Gaussian, and 8 bits round a peak of 255 / (2 pi 4) = 10.
  theirs = ndimage.gaussian_filter(image.astype(float), (sigma, sigma, 0))
  np.testing.assert_allclose(ours, theirs, atol=1.3)
  widths = {run(T.GaussianBlur(p=1.0), seed, image=image)["image"].max() for seed in range(8)}
  assert len(widths) > 3


def test_solarise_inverts_the_upper_half():
  image = photo()
  expected = np.where(image < 128, image, 255 - image)
  np.testing.assert_array_equal(run(T.Solarise(p=1.0), image=image)["image"], expected)


def test_grey_has_equal_channels_of_the_luminance():
  image = photo()
  grey = run(T.Grey(p=1.0), image=image)["image"]
  assert (grey == grey[..., :1]).all()
  np.testing.assert_allclose(grey[..., 0], image @ [0.299, 0.587, 0.114], atol=1)


@pytest.mark.parametrize("transform", [T.Grey(0.3), T.GaussianBlur(p=0.3), T.Solarise(0.3)])
def test_each_happens_with_its_probability(transform):
  image = photo(8, 8)
  same = [np.array_equal(run(transform, s, image=image)["image"], image) for s in range(500)]
  assert abs(np.mean(same) - 0.7) < 0.08  # four standard errors


# MultiCrop


def test_views_have_their_counts_and_sizes_and_the_image_stays():
  image = photo()
  crop = T.MultiCrop(global_views=3, global_size=(20, 24), local_views=4, local_size=10,
                     blur_p=0.5, solarise_p=(0.0, 0.0, 1.0))
  record = run(crop, image=image, label=3)
  assert record["global_views"].shape == (3, 20, 24, 3)
  assert record["local_views"].shape == (4, 10, 10, 3)
  assert record["global_views"].dtype == record["local_views"].dtype == np.uint8
  assert record["image"] is image and record["label"] == 3
  alone = run(T.MultiCrop(global_size=8, local_views=0), image=image)
  assert set(alone) == {"image", "global_views"}


def test_a_view_is_the_random_crop_of_its_scale():
  # A plane of x and y: how far its levels reach is how much of the image the view shows.
  y, x = np.mgrid[0:240:2, 0:240:2]
  image = np.stack([x, y, x], axis=-1).astype(np.uint8)
  crop = T.MultiCrop(global_size=16, local_size=8, local_views=4, filter="nearest", **PLAIN)
  area = lambda view: np.prod([np.ptp(view[..., c].astype(float)) / 240 * n / (n - 1)
                               for c, n in ((0, view.shape[1]), (1, view.shape[0]))])
  records = [run(crop, seed, image=image) for seed in range(60)]
  large = [area(view) for record in records for view in record["global_views"]]
  small = [area(view) for record in records for view in record["local_views"]]
  # The nearest of few pixels: areas are right to about a tenth.
  assert 0.35 < min(large) < 0.5 and 0.85 < max(large) < 1.1
  assert 0.03 < min(small) < 0.09 and 0.34 < max(small) < 0.45
  assert abs(np.mean(large) - 0.7) < 0.06 and abs(np.mean(small) - 0.225) < 0.03


def test_views_differ_from_each_other_and_repeat_with_their_rng():
  crop = T.MultiCrop(global_size=16, local_size=8)
  record, again = (run(crop, 5, image=photo()) for _ in range(2))
  other = run(crop, 6, image=photo())
  for key in ("global_views", "local_views"):
    np.testing.assert_array_equal(record[key], again[key])
    views = [view.tobytes() for view in [*record[key], *other[key]]]
    assert len(set(views)) == len(views)


def test_the_large_views_are_blurred_and_solarised_each_with_its_own_probability():
  whole = dict(global_size=48, global_scale=(1.0, 1.0), local_views=0, blur_sigma=(1.0, 1.0))
  image = photo(48, 48)
  one = run(T.MultiCrop(**{**PLAIN, **whole, "blur_p": (1.0, 0.0), "solarise_p": (0.0, 1.0)}),
            image=image)["global_views"]
  # No crop of the whole area but the whole square image fits.
  np.testing.assert_array_equal(
      one[0], np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(1.0))))
  np.testing.assert_array_equal(one[1], np.where(image < 128, image, 255 - image))


def test_jitter_grey_and_local_blur_reach_the_views():
  image = photo()
  base = dict(global_size=16, local_size=8, local_views=2)
  plain = run(T.MultiCrop(**base, **PLAIN), image=image)
  for change in ({"jitter_p": 1.0}, {"grey_p": 1.0}):
    record = run(T.MultiCrop(**base, **{**PLAIN, **change}), image=image)
    assert (record["global_views"] != plain["global_views"]).any()
    assert (record["local_views"] != plain["local_views"]).any()
  record = run(T.MultiCrop(**base, **{**PLAIN, "local_blur_p": 1.0}), image=image)
  np.testing.assert_array_equal(record["global_views"], plain["global_views"])
  assert (record["local_views"] != plain["local_views"]).any()


def test_normalise_acts_on_views_as_on_images():
  record = run(T.MultiCrop(global_size=16, local_size=8), image=photo())
  both = run(T.Normalise("imagenet", key=("global_views", "local_views")), **record)
  for key in ("global_views", "local_views"):
    assert both[key].dtype == np.float32
    for view, raw in zip(both[key], record[key]):
      alone = run(T.Normalise("imagenet"), image=raw)["image"]
      np.testing.assert_array_equal(view, alone)
  assert both["image"].dtype == np.uint8


def test_a_stream_of_views_has_a_spec_without_the_image():
  class One:
    digest = "0"

    def __len__(self):
      return 3

    def __getitem__(self, i):
      file = io.BytesIO()
      Image.fromarray(photo(40 + i, 50)).save(file, "PNG")
      return {"image": file.getvalue()}

  keys = ("global_views", "local_views")
  steps = (T.Decode(), T.MultiCrop(global_size=16, local_size=8), T.Normalise("half", key=keys),
           T.Keep(keys))
  spec = stream.Stream(One(), steps).spec
  assert {key: one.shape for key, one in spec.items()} == {
      "global_views": (2, 16, 16, 3), "local_views": (8, 8, 8, 3)}


@pytest.mark.parametrize("wrong, told", [
    ({"global_views": 0}, "global_views = 0"), ({"local_views": -1}, "local_views = -1"),
    ({"global_size": 0}, "global_size"), ({"local_size": (8, 0)}, "local_size"),
    ({"global_scale": (0.5, 2.0)}, "global_scale .* no larger"),
    ({"local_scale": (0.4, 0.05)}, "local_scale"), ({"jitter": (0.4, 0.4)}, "jitter"),
    ({"blur_p": (1.0, 0.1, 0.1)}, "blur_p .* each of 2 large views"),
    ({"solarise_p": 1.2}, "solarise_p .* probability"), ({"filter": "cubic"}, "filter"),
])
def test_a_bad_argument_of_multi_crop_is_named(wrong, told):
  with pytest.raises(ValueError, match=f"MultiCrop.{told}"):
    T.MultiCrop(**wrong)


@pytest.mark.parametrize("build, told", [
    (lambda: T.GaussianBlur((2.0, 1.0)), "GaussianBlur.sigma"),
    (lambda: T.GaussianBlur(p=2), "GaussianBlur.p"), (lambda: T.Grey(-1), "Grey.p"),
    (lambda: T.Solarise(threshold=300), "Solarise.threshold"),
    (lambda: T.MultiCrop(blur_sigma=(0, 1)), "GaussianBlur.sigma"),
])
def test_bad_arguments_name_the_transform_and_the_field(build, told):
  with pytest.raises(ValueError, match=told):
    build()


def test_views_of_what_is_no_image_are_refused():
  with pytest.raises(TypeError, match="decoded image"):
    run(T.MultiCrop(), image=b"jpeg")
