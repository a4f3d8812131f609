"""Native resolution as patches, and whole patches."""

import numpy as np
import pytest

from mmjax.data import patch_transforms
from mmjax.data import transforms as T


def photo(height=48, width=64):
  return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_patches_are_the_images_parts_in_reading_order_and_then_zeros():
  image = photo(32, 48)
  record = T.Patchify(patch=(16, 8), max_patches=15, resize=False)({"image": image}, None)
  assert record["image"].shape == (15, 16, 8, 3) and record["image"].dtype == np.float32
  np.testing.assert_array_equal(record["image_grid"], [2, 6])
  np.testing.assert_array_equal(record["image_mask"], np.arange(15) < 12)
  np.testing.assert_allclose(record["image"][7], image[16:32, 8:16] / 127.5 - 1, atol=1e-6)
  assert not record["image"][12:].any()


@pytest.mark.parametrize("height, width", [(48, 64), (1000, 30), (7, 7), (3, 900)])
def test_the_grid_uses_the_budget(height, width):
  record = T.Patchify(patch=4, max_patches=50)({"image": photo(height, width)}, None)
  rows, columns = record["image_grid"]
  assert rows * columns <= 50 and record["image_mask"].sum() == rows * columns
  # One more row and column would not fit, or a side is a single patch already.
  assert min(rows, columns) == 1 or (rows + 1) * (columns + 1) > 50


def test_the_aspect_ratio_is_kept_to_within_a_patch():
  assert patch_transforms.fit_size(300, 100, (4, 4), 75) == (60, 20)


def test_a_size_that_fits_exactly_is_kept():
  assert patch_transforms.fit_size(64, 64, (16, 16), 16) == (64, 64)


def test_without_resize_an_image_that_does_not_fit_is_refused():
  for image in (photo(33, 48), photo(64, 64)):
    with pytest.raises(ValueError, match="is not at most 6 patches"):
      T.Patchify(patch=16, max_patches=6, resize=False)({"image": image}, None)


def test_crop_to_patches_keeps_the_top_left():
  image = photo(30, 45)
  np.testing.assert_array_equal(T.CropToPatches(14)({"image": image}, None)["image"],
                                image[:28, :42])
  with pytest.raises(ValueError, match="smaller than a patch"):
    T.CropToPatches(31)({"image": image}, None)


@pytest.mark.parametrize("build, message", [
    (lambda: T.Patchify(patch=0), "Patchify.patch"),
    (lambda: T.Patchify(max_patches=0), "Patchify.max_patches"),
    (lambda: T.Patchify(filter="cubic"), "Patchify.filter"),
    (lambda: T.Patchify(std=(0, 1, 1)), "Normalise.std"),
    (lambda: T.CropToPatches((4, 0)), "CropToPatches.patch"),
    (lambda: T.AspectBucket(max_aspect=0.5), "AspectBucket.max_aspect = 0.5: expected 1 or more"),
    (lambda: T.AspectBucket(max_patches=2, max_aspect=1.5), "no grid of at most 2 patches is so square"),
    (lambda: T.AspectBucket(crop="left"), "AspectBucket.crop")])
def test_wrong_settings_are_refused(build, message):
  with pytest.raises(ValueError, match=message):
    build()


def test_buckets_are_full_grids_of_bounded_aspect():
  assert patch_transforms.buckets(64, 2.0) == ((6, 10), (7, 9), (8, 8), (9, 7), (10, 6))
  for most, aspect in ((1, 1.0), (10, 3.0), (256, 2.0), (729, 4.0)):
    grids = patch_transforms.buckets(most, aspect)
    assert all(rows * columns <= most for rows, columns in grids)
    assert all((rows + 1) * columns > most and rows * (columns + 1) > most for rows, columns in grids)
    assert {grid[::-1] for grid in grids} == set(grids)


def test_image_takes_the_bucket_of_its_aspect_and_is_not_distorted():
  bucket = T.AspectBucket(patch=8, max_patches=64)
  assert [bucket.size(*size) for size in ((30, 30), (90, 100), (500, 700), (40, 400), (3, 2))] == [
      (64, 64), (64, 64), (56, 72), (48, 80), (80, 48)]
  # A disc stays one: as wide as high, and in the middle of what is kept.
  rows, columns = np.mgrid[:150, :400]
  disc = (255 * ((rows - 74.5) ** 2 + (columns - 199.5) ** 2 < 50 ** 2)).astype(np.uint8)[..., None]
  image = bucket({"image": disc}, None)["image"]
  assert image.shape == (48, 80, 1)
  high, wide = ((image[..., 0] > 127).sum(axis).max() for axis in (0, 1))
  assert abs(int(high) - int(wide)) <= 1 and abs(high - 100 * 48 / 150) <= 1.5
  np.testing.assert_allclose(image, image[::-1, ::-1], atol=2)


def test_random_bucket_crops_move_and_the_maps_with_them():
  bucket = T.AspectBucket(patch=8, max_patches=64, crop="random")
  columns = (np.arange(400) // 2).astype(np.uint8)[None, :, None] * np.ones((150, 1, 3), np.uint8)
  lefts = set()
  for seed in range(20):
    record = bucket({"image": columns, "semantic": columns[..., 0].astype(np.int32)}, np.random.default_rng(seed))
    assert record["image"].shape == (48, 80, 3) and record["semantic"].shape == (48, 80)
    np.testing.assert_allclose(record["image"][..., 0], record["semantic"], atol=3)
    lefts.add(int(record["image"][0, 0, 0]))
  assert len(lefts) > 10


def of_recipe(variant, tmp_path, monkeypatch):
  """The config of contrastive/siglip_naflex on a user's pictures, and its first records."""
  from mmjax import config
  from mmjax.training.streams import make_stream
  from mmjax.training.user_data import resolve
  from tests.data import formats
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))
  given = {"data.train": formats.write_pictures(tmp_path / "data", count=40)}
  node = resolve(config.load(f"contrastive/siglip_naflex:{variant}", given))
  stream, _ = make_stream(node["data"], "data")
  records = [stream.record(row) for row in range(30)]
  assert all(record["valid"] and record["image"].shape == (64, 8, 8, 3) for record in records)
  return node, records


def test_buckets_of_a_recipe_make_batches_of_one_shape(tmp_path, monkeypatch):
  node, records = of_recipe("smoke_buckets", tmp_path, monkeypatch)
  assert all(record["image_mask"].sum() >= 60 for record in records)  # hardly any padding
  assert len({tuple(record["image_grid"].tolist()) for record in records}) > 3


def test_recipe_reads_pictures_of_many_shapes_and_pads_the_rest(tmp_path, monkeypatch):
  node, records = of_recipe("smoke", tmp_path, monkeypatch)
  grids = {tuple(record["image_grid"].tolist()) for record in records}
  assert len(grids) > 3  # parts of many aspect ratios, for which 64 patches have six grids
  for record in records:
    seen = int(np.prod(record["image_grid"]))
    assert record["image_mask"].sum() == seen > 32 and not record["image"][seen:].any()
  from mmjax.training.streams import make_stream
  held_out, _ = make_stream(node["eval_data"], "eval_data")
  assert tuple(held_out.record(0)["image_grid"].tolist()) == (7, 9)  # the picture of 20 x 24 as it is
