"""Clips of `scenes`: what moves and what stays, labels that say so, and the files."""

import collections
import io
import math

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from mmjax.data import inspect
from mmjax.data import stream
from mmjax.data import transforms as T
from mmjax.data.scenes import attributes, builder, motion, records, render, sample
from mmjax.data.scenes.layout import Config
from mmjax.data.sources import scenes

COUNT, FRAMES = 24, 4
EVERYTHING = scenes.STORED_CLIP_KEYS + ("motion",) + scenes.LABELS


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("clips")
  builder.prepare(Config(size=32, count=COUNT, frames=FRAMES), path, processes=1)
  return path


def source(data_dir, **kwargs):
  return scenes.build(size=32, count=COUNT, frames=FRAMES, data_dir=str(data_dir), **kwargs)


def clip(index, frames=5, split="train"):
  """The scenes and the motion of the first path that fits."""
  attempts = (motion.sample_clip(0, split, index, frames, a) for a in range(1000))
  return next(found for found in attempts if found)


# What moves


def test_only_the_object_or_the_camera_that_is_named_moves():
  for i in range(40):
    found, move = clip(i)
    thing = move.thing
    assert attributes.MOVES[move.moves] == ("camera" if thing < 0 else "object")
    for before, after in zip(found, found[1:]):
      assert before.room == after.room
      assert (before.camera != after.camera) == (thing < 0)
      changed = [k for k, (a, b) in enumerate(zip(before.things, after.things)) if a != b]
      assert changed == ([thing] if thing >= 0 else [])


def test_direction_is_what_the_picture_shows():
  seen = set()
  for i in range(60):
    found, move = clip(i)
    name = attributes.DIRECTIONS[move.direction]
    first, last = found[0], found[-1]
    thing = max(move.thing, 0)
    (x0, _, z0), (x1, _, z1) = (s.camera.project(s.things[thing].position) for s in (first, last))
    sign = 1 if move.thing >= 0 else -1  # the camera to the left: everything to the right
    if name in ("left", "right"):
      assert sign * (x1 - x0) * (1 if name == "right" else -1) > 0.15
    else:
      assert (z1 < 0.95 * z0) if name == "nearer" else (z1 > 1.05 * z0)
    seen.add((move.moves, name))
  assert len(seen) == 8


def test_motion_is_even_and_its_middle_is_the_scene():
  for i in range(10):
    found, move = clip(i, frames=5)
    assert found[2] in [sample.sample(0, "train", i, attempt) for attempt in range(20)]
    places = np.array([(s.things[move.thing].position if move.thing >= 0 else s.camera.position)
                       for s in found])
    np.testing.assert_allclose(np.diff(places, axis=0), np.array([move.path] * 4) / 4, atol=1e-9)


def test_a_clip_one_way_is_its_twin_backwards():
  # So the labels of a pair of directions cannot be told from single pictures.
  for i in range(6):
    _, move = clip(i)
    opposite = {0: 1, 1: 0, 2: 3, 3: 2}[move.direction]
    scene = sample.sample(0, "train", i)
    ways = [motion._path(scene, move.thing, d, 0.4) for d in (move.direction, opposite)]
    np.testing.assert_allclose(ways[0], -np.array(ways[1]), atol=1e-12)


def test_labels_are_drawn_evenly_and_whatever_the_attempt():
  drawn = collections.Counter()
  for i in range(400):
    tries = [motion.sample_clip(0, "train", i, 2, attempt) for attempt in range(3)]
    labels = {(move.moves, move.direction, move.thing) for _, move in filter(None, tries)}
    assert len(labels) <= 1
    drawn.update((m, d) for m, d, _ in labels)
  total = sum(drawn.values())
  # Each of 8 has a share of 1/8: four standard deviations of 400 draws are 0.066. Clips of which
  # no path of three fits, a few per cent, are drawn again in the dataset and left out here.
  assert total > 360 and all(abs(n / total - 1 / 8) < 0.07 for n in drawn.values())


def test_objects_stay_apart_seen_and_before_the_wall():
  for i in range(30):
    found, move = clip(i)
    for scene in found:
      for k, thing in enumerate(scene.things):
        x, y, _ = scene.camera.project(thing.position)
        assert max(abs(x), abs(y)) <= motion.CENTRE_EDGE
        along = (math.cos(scene.camera.yaw), math.sin(scene.camera.yaw))
        assert np.dot(along, thing.position[:2]) + thing.radius < scene.room.wall_distance
        for other in scene.things[:k]:
          reach = sum(sample.REACH[attributes.SHAPES[t.shape]] * t.radius for t in (thing, other))
          assert math.dist(thing.position[:2], other.position[:2]) > reach


def test_frames_are_the_pictures_of_the_first_path_that_hides_nothing():
  for i in range(6):
    tries = (motion.sample_clip(0, "train", i, 3, attempt) for attempt in range(100))
    drawn = ([render.render(scene, 32) for scene in found[0]] for found in tries if found)
    shown = next(p for p in drawn if min(x.visible.min() for x in p) > records.MIN_VISIBLE)
    stored = records.clip(0, "train", i, 32, 3)["video"]
    assert len(stored) == len(set(stored)) == 3
    for data, picture in zip(stored, shown):
      pixels = np.asarray(PIL.Image.open(io.BytesIO(data))).astype(int)
      assert np.abs(pixels - picture.rgb).mean() < 3  # JPEG


def test_clips_depend_on_seed_split_and_index_alone():
  again = records.clip(0, "train", 5, 32, 3)
  assert records.clip(0, "train", 5, 32, 3) == again
  for other in ((1, "train", 5), (0, "test", 5), (0, "train", 6)):
    assert records.clip(*other, 32, 3)["video"] != again["video"]


# The files


def test_tfds_reads_the_clips_that_were_written(data_dir):
  path = builder.prepare(Config(size=32, count=COUNT, frames=FRAMES), data_dir)
  theirs = tfds.builder_from_directory(str(path)).as_data_source("train")
  ours = source(data_dir, keys=EVERYTHING)
  assert len(theirs) == len(ours) == COUNT
  for i in range(0, COUNT, 5):
    video = T.Decode("video")(ours[i], None)["video"]
    assert video.shape == (FRAMES, 32, 32, 3)
    # JPEG decoders may differ.
    assert np.abs(video.astype(int) - np.array(theirs[i]["video"]).astype(int)).max() <= 2
    for key in ("moves", "direction", "moving", "num_objects", "held_out", "floor", "wall"):
      assert ours[i][key] == theirs[i][key]
    for key, value in theirs[i]["objects"].items():
      assert np.array_equal(ours[i][f"objects/{key}"], np.array(value))


def test_labels_of_the_motion_have_their_names(data_dir):
  clips = source(data_dir)
  names = clips.class_names("motion")
  assert len(names) == 8 and names[5] == "camera right"
  for i in range(COUNT):
    record = clips[i]
    assert set(record) == set(scenes.CLIP_KEYS)
    what, where = names[record["motion"]].split()
    assert clips.class_names("moves")[record["moves"]] == what
    assert clips.class_names("direction")[record["direction"]] == where


def test_clips_of_single_objects_can_be_chosen(data_dir):
  single = source(data_dir, objects=1)
  assert 0 < len(single) < COUNT
  assert all(single[i]["num_objects"] == 1 and single[i]["shape"] >= 0 for i in range(len(single)))
  assert single.digest != source(data_dir).digest


def test_a_stream_of_clips_has_the_spec_of_a_video(data_dir):
  steps = (T.Decode("video"), T.RandomResizedCrop(16, scale=(0.5, 1.0), key="video"),
           T.Normalise("half", key="video"), T.Keep(("video", "motion")))
  for made in (source(data_dir), scenes.example(size=32, frames=FRAMES)):
    spec = stream.Stream(made, steps).spec
    assert spec["video"] == ((FRAMES, 16, 16, 3), np.float32)
    assert spec["motion"] == ((), np.int32)


def test_the_example_of_pictures_has_depth_normals_and_labels():
  keys = ("image", "depth", "normals", "semantic", "instance")
  steps = (T.Decode(), T.DecodeDepth(), T.DecodeNormals(), T.DecodeLabels(),
           T.DecodeLabels("instance"), T.Flip(1.0), T.Resize(16), T.Normalise("half"))
  source = scenes.example(size=32, keys=keys)
  spec = stream.Stream(source, steps).spec
  assert {key: one.shape for key, one in spec.items()} == {
      "image": (16, 16, 3), "depth": (16, 16, 1), "normals": (16, 16, 3), "semantic": (16, 16),
      "instance": (16, 16)}
  record = stream.Stream(source, steps).record(0)
  assert record["semantic"].max() < len(attributes.SEMANTIC) and record["depth"].min() > 0


def test_builder_takes_the_name_of_clips():
  config = Config(32, 7, 5, frames=8)
  assert config.name == "32px-7-seed5-8frames" and Config.parse(config.name) == config
  assert Config(32, 7, 5).name == "32px-7-seed5"


@pytest.mark.parametrize("wrong, message", [
  ({"frames": 0}, "frames must be 1"), ({"frames": 1000}, "frames must be 1"),
  ({"keys": ("video",)}, "a picture has no 'video'; clips have, see frames"),
  ({"keys": ("depth",), "frames": 4}, "no key of a clip 'depth'"),
  ({"keys": ("vidoe",), "frames": 4}, "no key of a clip 'vidoe'; the nearest is 'video'"),
])
def test_wrong_argument_is_named(wrong, message):
  for make in (scenes.build, scenes.example):
    with pytest.raises(ValueError, match=message):
      make(count=3, **wrong)


def test_frames_of_clips_are_saved_side_by_side(tmp_path, capsys):
  steps = (T.Decode("video"), T.Normalise("half", key="video"), T.Keep(("video",)))
  clips = stream.Stream(scenes.example(size=32, frames=FRAMES), steps)
  inspect.show(clips, rows=3, save=str(tmp_path / "clips.png"))
  assert PIL.Image.open(tmp_path / "clips.png").size == (8 * 34, 2 * 34)  # 12 frames, 8 a line, a margin around each
  assert "video        float32 [4, 32, 32, 3]" in capsys.readouterr().out
