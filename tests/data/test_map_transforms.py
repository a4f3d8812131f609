"""Depth, normals and labels: decoded rightly, moved with the image, never blended; and videos."""

import io

import numpy as np
from PIL import Image
import pytest

from mmjax.data import geometry
from mmjax.data import stream
from mmjax.data import transforms as T
from mmjax.data.sources import synthetic
from mmjax.training import streams


def rng(seed=0):
  return np.random.default_rng(seed)


def run(transform, seed=0, **record):
  return transform(record, rng(seed))


def encode(array, form="PNG", mode=None):
  file = io.BytesIO()
  image = Image.fromarray(array)
  (image.convert(mode) if mode else image).save(file, form)
  return file.getvalue()


def plane(height=30, width=40):
  """A record whose arrays say at each pixel where it is."""
  y, x = np.mgrid[0:height, 0:width]
  normals = rng().normal(size=(height, width, 3)).astype(np.float32)
  normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
  return {"image": np.stack([x * 4, y * 6, x * 4], axis=-1).astype(np.uint8),
          "depth": (1 + x * 0.5 + y * 100)[..., None].astype(np.float32), "normals": normals,
          "semantic": (x + 1000 * y).astype(np.int32), "instance": (x // 10).astype(np.int32)}


def places(record):
  """(x, y) of each pixel, as the semantic map and as the depth say."""
  labels, depth = record["semantic"], record["depth"][..., 0] - 1
  return (labels % 1000, labels // 1000), ((depth % 100) * 2, depth // 100)


# Decoding


def test_depth_is_metres_and_zero_stays_unknown():
  stored = np.array([[0, 1000, 2500], [65535, 1, 0]], np.uint16)
  for value in (encode(stored), stored, stored[..., None]):
    depth = run(T.DecodeDepth(), depth=value)["depth"]
    assert depth.dtype == np.float32 and depth.shape == (2, 3, 1)
    np.testing.assert_allclose(depth[..., 0], stored / 1000.0)
  np.testing.assert_allclose(run(T.DecodeDepth(256.0), depth=stored)["depth"][0, 1], 1000 / 256)
  floats = np.array([[np.nan, -1.0, np.inf], [0.0, 2.5, 7.0]])
  np.testing.assert_array_equal(run(T.DecodeDepth(), depth=floats)["depth"][..., 0],
                                np.float32([[0, 0, 0], [0, 2.5, 7]]))


def test_normals_are_unit_and_zero_where_unknown():
  normals = plane()["normals"]
  stored = np.clip((normals + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
  stored[0, 0] = 128
  for value in (encode(stored), stored):
    decoded = run(T.DecodeNormals(), normals=value)["normals"]
    assert decoded.dtype == np.float32 and not decoded[0, 0].any()
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=-1).ravel()[1:], 1, atol=1e-6)
    np.testing.assert_allclose(decoded.reshape(-1, 3)[1:], normals.reshape(-1, 3)[1:], atol=0.01)
  floats = normals * 3
  floats[0, 0] = np.nan
  decoded = run(T.DecodeNormals(), normals=floats)["normals"]
  np.testing.assert_allclose(decoded.reshape(-1, 3)[1:], normals.reshape(-1, 3)[1:], atol=1e-6)
  assert not decoded[0, 0].any()


@pytest.mark.parametrize("labels, mode", [
    (np.arange(12, dtype=np.uint8).reshape(3, 4), None),
    (np.arange(12, dtype=np.uint8).reshape(3, 4), "P"),
    (np.arange(12, dtype=np.uint16).reshape(3, 4) * 3000, None)])
def test_labels_are_the_stored_numbers_also_of_a_palette(labels, mode):
  decoded = run(T.DecodeLabels(), semantic=encode(labels, mode=mode))["semantic"]
  assert decoded.dtype == np.int32
  np.testing.assert_array_equal(decoded, labels)
  decoded = run(T.DecodeLabels(), semantic=labels[..., None])["semantic"]
  np.testing.assert_array_equal(decoded, labels)


def test_the_number_for_unknown_becomes_minus_one():
  labels = np.array([[0, 255], [7, 255]], np.uint8)
  decoded = run(T.DecodeLabels("instance", unknown=255), instance=encode(labels))["instance"]
  np.testing.assert_array_equal(decoded, [[0, -1], [7, -1]])


@pytest.mark.parametrize("transform, value, told", [
    (T.DecodeDepth(), encode(np.zeros((4, 4), np.uint8)), "16-bit grey"),
    (T.DecodeDepth(), np.zeros((4, 4, 3)), r"'depth' must be \[H, W, 1\]"),
    (T.DecodeDepth(), b"", "file is empty"),
    (T.DecodeNormals(), np.zeros((4, 4)), r"'normals' must be \[H, W, 3\]"),
    (T.DecodeLabels(), encode(np.zeros((4, 4, 3), np.uint8)), "found mode RGB"),
    (T.DecodeLabels(), np.zeros((4, 4)), "must hold integers"),
    (T.DecodeLabels(), np.zeros((4, 4, 2), np.uint8), r"'semantic' must be \[H, W, 1\]"),
])
def test_what_is_no_map_is_refused(transform, value, told):
  with pytest.raises((ValueError, TypeError, OSError), match=told):
    run(transform, **{transform.key: value})


@pytest.mark.parametrize("transform", [T.DecodeDepth(), T.DecodeNormals(), T.DecodeLabels()])
def test_a_record_without_the_map_names_what_it_has(transform):
  with pytest.raises(ValueError, match=f"has no {transform.key!r}; it has image"):
    run(transform, image=b"")


# Moving together

GEOMETRIC = [T.Resize((15, 20)), T.Resize((45, 33)), T.ResizeShort(12), T.CentreCrop((11, 20)),
             T.RandomResizedCrop((12, 20)), T.Flip(1.0), T.CropToPatches(7)]


@pytest.mark.parametrize("transform", GEOMETRIC, ids=lambda t: type(t).__name__)
def test_maps_move_as_the_image_does(transform):
  record = plane()
  moved = run(transform, 3, **record)
  (x, y), (depth_x, depth_y) = places(moved)
  np.testing.assert_array_equal(x, depth_x)
  np.testing.assert_array_equal(y, depth_y)
  # Pixels are interpolated where maps are not, at the image's edge by less than two pixels.
  assert np.abs(moved["image"][..., 0] / 4 - x).max() < 2
  assert np.abs(moved["image"][..., 1] / 6 - y).max() < 2
  np.testing.assert_array_equal(moved["instance"], x // 10)
  source = record["normals"][y, x]
  mirrored = isinstance(transform, T.Flip)
  np.testing.assert_array_equal(moved["normals"], source * ([-1, 1, 1] if mirrored else [1, 1, 1]))
  assert {key: moved[key].dtype for key in record} == {key: record[key].dtype for key in record}


@pytest.mark.parametrize("transform", [*GEOMETRIC, T.Letterbox(24)],
                         ids=lambda t: type(t).__name__)
def test_maps_change_nothing_for_the_image(transform):
  record = plane()
  alone = run(transform, 3, image=record["image"])["image"]
  np.testing.assert_array_equal(run(transform, 3, **record)["image"], alone)


def test_no_value_is_invented_between_two_surfaces():
  record = plane()
  record["depth"] = np.where(record["depth"] > 1500, np.float32(9), np.float32(1))
  for transform in GEOMETRIC:
    assert set(np.unique(run(transform, 1, **record)["depth"])) <= {1, 9}


def test_what_is_filled_in_is_unknown():
  record = plane()
  record["semantic"][:] = 3
  for transform in (T.Letterbox(40), T.CentreCrop((50, 40), pad=True)):
    moved = run(transform, **record)
    outside = moved["semantic"] == -1
    assert outside.any() and not outside.all()
    assert not moved["depth"][outside].any() and not moved["normals"][outside].any()
    assert (moved["instance"][outside] == -1).all() and (moved["depth"][~outside] > 0).all()


def test_nearest_takes_the_pixel_that_holds_the_centre():
  array = rng().integers(0, 9, (30, 41)).astype(np.uint8)
  for size in ((7, 11), (64, 50), (30, 41)):
    expected = np.asarray(Image.fromarray(array).resize(size[::-1], Image.Resampling.NEAREST))
    np.testing.assert_array_equal(geometry.nearest(array, size), expected)


def test_a_map_that_was_not_decoded_or_does_not_fit_is_named():
  record = plane()
  with pytest.raises(TypeError, match="'depth' lies on the image .*DecodeDepth.*; found bytes"):
    run(T.Flip(1.0), **{**record, "depth": b"png"})
  with pytest.raises(ValueError, match=r"'normals' is \[3, 4\], but the image .* \[30, 40\]"):
    run(T.Resize(8), **{**record, "normals": np.zeros((3, 4, 3), np.float32)})


def test_a_transform_of_another_key_leaves_the_maps():
  record = {**plane(), "thumbnail": plane()["image"]}
  moved = run(T.Resize(8, key="thumbnail"), **record)
  assert moved["thumbnail"].shape == (8, 8, 3)
  assert all(moved[key] is record[key] for key in plane())


# Videos


def clip(frames=4, height=20, width=24):
  return rng().integers(0, 255, (frames, height, width, 3)).astype(np.uint8)


def test_frames_decode_to_one_array():
  frames = clip()
  files = [encode(frame) for frame in frames]
  packed = np.empty(len(files), object)
  packed[:] = files
  for value in (files, tuple(files), packed, frames, list(frames)):
    np.testing.assert_array_equal(run(T.Decode("video"), video=value)["video"], frames)


@pytest.mark.parametrize("transform", [
    T.Resize(8, key="video"), T.ResizeShort(9, key="video"), T.CentreCrop(9, key="video"),
    T.RandomResizedCrop(8, key="video"), T.Flip(1.0, key="video"), T.Letterbox(16, key="video"),
    T.ToFloat("video"), T.Normalise("half", key="video"), T.Grey(1.0, "video"),
    T.Solarise(1.0, key="video"), T.ColourJitter(0.5, 0.0, 0.5, 0.1, key="video"),
    T.CropToPatches(7, "video"),
], ids=lambda t: type(t).__name__)
def test_every_frame_is_treated_alike(transform):
  frames = clip()
  moved = run(transform, 4, video=frames)["video"]
  for frame, result in zip(frames, moved):
    alone = run(type(transform)(**{**vars(transform), "key": "image"}), 4, image=frame)["image"]
    np.testing.assert_array_equal(result, alone)
  assert len(moved) == len(frames)


@pytest.mark.parametrize("value, told", [
    ([], "0 frames"), ([encode(clip()[0]), encode(clip()[0, :9])], "2 frames .* several sizes"),
    (["frame"], "bytes"), ([encode(clip()[0])[:80]], ".")])
def test_bad_frames_are_refused(value, told):
  with pytest.raises(Exception, match=told):
    run(T.Decode("video"), video=value)


def test_frames_are_sampled_at_a_stride_from_any_start():
  video = [bytes([i]) for i in range(10)]
  seen = {tuple(run(T.SampleFrames(3, 3), seed, video=video)["video"]) for seed in range(60)}
  assert seen == {tuple(video[s:s + 7:3]) for s in range(4)}
  centre = run(T.SampleFrames(3, 3, choose="centre"), video=np.arange(10))["video"]
  np.testing.assert_array_equal(centre, [1, 4, 7])
  with pytest.raises(ValueError, match="has 10 frames; 5 of them 3 apart need 13"):
    run(T.SampleFrames(5, 3), video=video)
  with pytest.raises(TypeError, match="list of frames, found bytes"):
    run(T.SampleFrames(5), video=b"mp4")


def test_synthetic_records_have_every_modality():
  source = synthetic.build(size=24, keys=synthetic.ALL_KEYS, frames=3)
  steps = (T.Decode(), T.Decode("video"), T.DecodeDepth(), T.DecodeNormals(), T.DecodeLabels(),
           T.DecodeLabels("instance"), T.Resize(8),
           T.Keep((*geometry.MAPS, "image", "video", "label")))
  spec = {key: one.shape for key, one in stream.Stream(source, steps).spec.items()}
  assert spec == {
      "depth": (8, 8, 1), "normals": (8, 8, 3), "semantic": (8, 8), "instance": (8, 8),
      "image": (8, 8, 3), "video": (3, 24, 24, 3), "label": ()}
  record = stream.Stream(source, steps).record(0)
  assert (record["depth"] == 2).all() and (record["normals"][..., 2] > 0.99).all()
  with pytest.raises(ValueError, match="no 'dept'; the nearest is 'depth'"):
    synthetic.build(keys=("dept",))


@pytest.mark.parametrize("step, told", [
    ({"name": "DecodeDepth"}, r"data.transforms.1 \(DecodeDepth\): .* no 'depth'; it has image"),
    ({"name": "Keep", "keys": ["semantic"]}, r"data.transforms.1 \(Keep\): .* no 'semantic'"),
])
def test_a_modality_that_records_lack_is_one_line_with_config_key_and_record(step, told):
  node = {"source": {"name": "synthetic", "keys": ["image"]},
          "transforms": [{"name": "Decode"}, step]}
  made, _ = streams.make_stream(node, "data")
  with pytest.raises(stream.DataError, match=r"synthetic record \d+, " + told) as error:
    made.spec
  assert "\n" not in str(error.value)


def test_the_stand_in_for_absent_data_has_the_keys_that_were_asked_for(tmp_path):
  node = {"name": "tfds", "dataset": "rooms", "split": "train", "data_dir": str(tmp_path),
          "keys": ["image", "depth", "semantic", "camera"]}
  source = streams.example_source(node, "data.source")
  assert set(source[0]) == {*synthetic.KEYS, "depth", "semantic"}


@pytest.mark.parametrize("build, told", [
    (lambda: T.DecodeDepth(0), "DecodeDepth.per_metre"),
    (lambda: T.SampleFrames(0), "SampleFrames.frames"),
    (lambda: T.SampleFrames(2, 0), "SampleFrames.stride"),
    (lambda: T.SampleFrames(2, choose="first"), "SampleFrames.choose"),
])
def test_bad_arguments_name_the_transform_and_the_field(build, told):
  with pytest.raises(ValueError, match=told):
    build()
