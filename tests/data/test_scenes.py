"""The distribution, the pictures and the files of the built-in dataset `scenes`."""

import dataclasses
import io
import json
import math
import os
import pathlib
import pickle
import subprocess
import sys
import threading

import numpy as np
import PIL.Image
import pytest
import tensorflow_datasets as tfds

from mmjax.data.scenes import attributes, builder, records, render, sample, shapes
from mmjax.data.scenes.layout import Config
from mmjax.data.sources import scenes

COUNT = 40
EVERYTHING = scenes.STORED_KEYS + scenes.LABELS


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  path = tmp_path_factory.mktemp("data")
  builder.prepare(Config(size=32, count=COUNT), path, processes=2)
  return path


def source(data_dir, **kwargs):
  return scenes.build(size=32, count=COUNT, data_dir=str(data_dir), **kwargs)


def pixels(data):
  return np.asarray(PIL.Image.open(io.BytesIO(data)))


def pairs(split, count):
  return [[(t.colour, t.shape) for t in sample.sample(0, split, i).things] for i in range(count)]


def one(shape, yaw=0.3, **room):
  """A scene of one matte object in the middle of the picture."""
  scene = next(s for s in (sample.sample(0, "train", i) for i in range(99)) if len(s.things) == 1)
  height = sample.CENTRE[shape]
  thing = dataclasses.replace(
    scene.things[0], shape=attributes.SHAPES.index(shape), material=0, colour=0, radius=1.0,
    position=(0.0, 0.0, height), yaw=yaw)
  camera = dataclasses.replace(scene.camera, target=(0.0, 0.0, height), distance=7.0, pitch=0.5)
  changes = {"wall_distance": 9.0, **room}
  return sample.Scene((thing,), camera, dataclasses.replace(scene.room, **changes))


# The distribution

def test_held_out_pairs_occur_only_in_the_compositional_split():
  held_out = set(attributes.HELD_OUT_LABELS)
  for split in ("train", "validation", "test"):
    assert not held_out & set(sum(pairs(split, 1500), []))
  for i, found in enumerate(pairs("compositional", 300)):
    index = sample.sample(0, "compositional", i).held_out
    assert found[index] in held_out
    assert all(pair not in held_out for k, pair in enumerate(found) if k != index)


def test_every_colour_and_every_shape_and_every_other_pair_occurs_in_train():
  assert set(sum(pairs("train", 1500), [])) == set(attributes.SEEN_LABELS)
  assert {c for c, _ in attributes.SEEN_LABELS} == set(range(8))
  assert {s for _, s in attributes.SEEN_LABELS} == set(range(6))


def test_objects_stand_apart_and_in_the_picture():
  for i in range(300):
    scene = sample.sample(0, "train", i)
    for k, a in enumerate(scene.things):
      x, y, _ = scene.camera.project(a.position)
      assert max(abs(x), abs(y)) < 1
      for b in scene.things[:k]:
        reach = sum(sample.REACH[attributes.SHAPES[t.shape]] * t.radius for t in (a, b))
        assert math.dist(a.position[:2], b.position[:2]) > reach


def test_records_depend_on_seed_split_and_index_alone():
  again = records.record(0, "train", 5, 32)
  assert records.record(0, "train", 5, 32) == again
  for other in ((1, "train", 5), (0, "test", 5), (0, "train", 6)):
    assert records.record(*other, 32)["image"] != again["image"]


# The pictures

@pytest.mark.parametrize("shape", attributes.SHAPES)
def test_rays_hit_the_surface_and_normals_point_out_of_it(shape):
  """Against the defining equation of each shape, for rays from all sides."""
  rng = np.random.default_rng(0)
  height, bound = shapes.BOUNDS[shape]
  origin = rng.normal(size=(3, 4000))
  origin[2] = abs(origin[2])  # never from below the floor, where no shape has a base
  origin = 4 * origin / np.linalg.norm(origin, axis=0) + np.array([[0], [0], [height]])
  aim = rng.uniform(-1, 1, (3, 4000)) * bound + np.array([[0], [0], [height]]) - origin
  direction = (aim / np.linalg.norm(aim, axis=0)).astype(np.float32)
  origin = origin.astype(np.float32)
  t = shapes.intersect(shape, origin, direction)
  hit = np.isfinite(t)
  assert 400 < hit.sum() < 4000
  points = origin[:, hit] + t[hit] * direction[:, hit]
  normals = shapes.normal(shape, points)
  # 0.006: sphere tracing of the torus stops at 0.004; float32 is good to 1e-5 here.
  assert np.abs(signed_distance(shape, points)).max() < 0.006
  assert np.allclose(np.linalg.norm(normals, axis=0), 1, atol=1e-3)
  assert (signed_distance(shape, points + 0.02 * normals) > 0).mean() > 0.999
  assert ((normals * direction[:, hit]).sum(axis=0) < 0.02).mean() > 0.995


def signed_distance(shape, points):
  """Positive outside; of points near the surface only, not exact beyond edges."""
  x, y, z = points.astype(np.float64)
  radius = np.hypot(x, y)
  box = lambda half, h: np.max([abs(x) - half[0], abs(y) - half[1], abs(z - h) - half[2]], axis=0)
  if shape == "sphere":
    return np.sqrt(radius ** 2 + (z - 1) ** 2) - 1
  if shape == "cube":
    return box((shapes.CUBE,) * 3, shapes.CUBE)
  if shape == "cylinder":
    return np.maximum(radius - shapes.CYLINDER, np.maximum(z - shapes.CYLINDER_HEIGHT, -z))
  if shape == "cone":
    slant = math.hypot(shapes.CONE, shapes.CONE_HEIGHT)
    return (shapes.CONE_HEIGHT * radius + shapes.CONE * (z - shapes.CONE_HEIGHT)) / slant
  if shape == "torus":
    return np.hypot(radius - shapes.TORUS, z - shapes.TUBE) - shapes.TUBE
  long, thin = shapes.ARM, shapes.THICKNESS
  bars = ((long, thin, thin), (thin, long, thin), (thin, thin, long))
  return np.min([box(bar, shapes.ARM) for bar in bars], axis=0)


def test_depth_and_normals_agree_with_the_geometry_of_a_sphere():
  scene = one("sphere")
  picture = render.render(scene, 65)  # odd: one pixel looks along the optical axis
  assert picture.instance[32, 32] == 1
  assert picture.depth[32, 32] == pytest.approx(7.0 - 1.0, abs=1e-3)
  assert picture.normals[32, 32] == pytest.approx([0, 0, 1], abs=1e-2)
  rows, columns = (picture.instance == 1).nonzero()
  right, left = columns.argmax(), columns.argmin()
  assert picture.normals[rows[right], columns[right], 0] > 0.7
  assert picture.normals[rows[left], columns[left], 0] < -0.7
  assert picture.normals[rows[0], columns[0], 1] > 0.7  # the topmost pixel looks up


def test_shadow_falls_on_the_side_away_from_the_light():
  scene = one("sphere", floor=0, ambient=0.3, light_power=0.7)
  (rx, ry, _), _, _ = scene.camera.axes
  for side in (1, -1):
    light = (side * rx * 0.7, side * ry * 0.7, math.sqrt(1 - 0.49))
    room = dataclasses.replace(scene.room, light=light)
    picture = render.render(dataclasses.replace(scene, room=room), 64)
    dark = (picture.semantic == 1) & (picture.rgb.mean(axis=-1) < 0.75 * np.median(
      picture.rgb[picture.semantic == 1].mean(axis=-1)))
    assert dark.sum() > 40
    assert np.sign(31.5 - dark.nonzero()[1].mean()) == side


def test_nearer_object_hides_the_farther_one():
  scene = one("cube")
  front = scene.things[0]
  forward = scene.camera.axes[2]
  behind = dataclasses.replace(front, position=tuple(
    p + 2.0 * f for p, f in zip(front.position, forward[:2] + (0,))))
  picture = render.render(dataclasses.replace(scene, things=(behind, front)), 64)
  assert picture.visible[1] == 1 and 0 < picture.visible[0] < 0.7


def test_boxes_and_segmentation_and_visibility_agree():
  for i in range(30):
    fields = records.record(0, "train", i, 64)
    instance, semantic = pixels(fields["instance"]), pixels(fields["semantic"])
    assert min(fields["objects/visible"]) > records.MIN_VISIBLE
    assert instance.max() == fields["num_objects"]
    for k, (box, shape) in enumerate(zip(fields["objects/box"], fields["objects/shape"])):
      rows, columns = (instance == k + 1).nonzero()
      expected = [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1]
      assert np.allclose(np.array(box) * 64, expected)
      assert (semantic[instance == k + 1] == shape + 2).all()
    assert (semantic[instance == 0] < 2).all()


# The files

def test_tfds_reads_what_was_written_without_tensorflow(data_dir):
  path = builder.prepare(Config(size=32, count=COUNT), data_dir)
  reader = tfds.builder_from_directory(str(path))
  for split in attributes.SPLITS:
    theirs = reader.as_data_source(split)
    ours = source(data_dir, split=split, keys=EVERYTHING, captions=attributes.CAPTION_KINDS)
    assert len(theirs) == len(ours) == Config(size=32, count=COUNT).records(split)
    for i in range(len(ours)):
      check_equal(ours[i], theirs[i])
  assert "tensorflow" not in sys.modules


def check_equal(ours, theirs):
  for key in ("image", "normals"):
    assert abs(pixels(ours[key]).astype(int) - theirs[key]).max() <= 2  # JPEG decoders may differ
  for key in ("depth", "semantic", "instance"):
    assert (pixels(ours[key]) == theirs[key][..., 0]).all()
  for key in ("caption", "question", "answer"):
    assert ours[key] == [text.decode() for text in theirs[key]]
  for key, value in theirs["objects"].items():
    assert np.array_equal(ours[f"objects/{key}"], np.array(value))
  for key, value in theirs["camera"].items():
    assert np.array_equal(ours[f"camera/{key}"], value)
  assert ours["id"] == theirs["id"].decode()
  assert [ours[k] for k in ("num_objects", "held_out", "floor", "wall")] == [
    theirs[k] for k in ("num_objects", "held_out", "floor", "wall")]


def test_every_record_is_stored_as_generated(data_dir):
  ours = source(data_dir, keys=("id", "image", "question"))
  for i in range(0, COUNT, 7):
    fields = records.record(0, "train", i, 32)
    assert ours[i] == {key: fields[key] for key in ("id", "image", "question")}


def test_number_of_processes_does_not_change_the_data(data_dir, tmp_path):
  two = builder.Index.load(builder.prepare(Config(size=32, count=COUNT), data_dir))
  alone = builder.Index.load(builder.prepare(Config(size=32, count=COUNT), tmp_path, processes=1))
  assert alone.digest == two.digest


def test_single_object_scenes_can_be_chosen_and_carry_labels(data_dir):
  everything = source(data_dir, keys=EVERYTHING)
  single = source(data_dir, objects=1, keys=EVERYTHING)
  several = source(data_dir, objects=(2, 5), keys=EVERYTHING)
  assert len(single) + len(several) == len(everything)
  for record in (single[i] for i in range(len(single))):
    assert record["num_objects"] == 1
    assert record["colour"] == record["objects/colour"][0]
    assert record["shape"] == record["objects/shape"][0]
    assert record["colour_shape"] == record["colour"] * 6 + record["shape"]
  assert all(several[i]["shape"] == -1 for i in range(len(several)))


def test_captions_come_in_the_kinds_that_were_asked_for(data_dir):
  kinds = attributes.CAPTION_KINDS
  full = source(data_dir, captions=kinds)[3]["caption"]
  some = source(data_dir, captions=("detailed", "short"))[3]["caption"]
  assert some == [full[kinds.index("detailed")], full[kinds.index("short")]]


def test_source_survives_pickling_and_threads(data_dir):
  one_source = source(data_dir)
  expected = [one_source[i] for i in range(COUNT)]
  other = pickle.loads(pickle.dumps(one_source))
  assert other[4] == expected[4] and other.digest == one_source.digest
  found = {}
  threads = [threading.Thread(target=lambda k=k: found.update(
    {i: other[i] for i in range(k, COUNT, 4)})) for k in range(4)]
  [t.start() for t in threads], [t.join() for t in threads]
  assert [found[i] for i in range(COUNT)] == expected


def test_digest_tells_splits_filters_and_seeds_apart(data_dir, tmp_path):
  variants = [source(data_dir), source(data_dir, split="test"), source(data_dir, objects=1),
              scenes.build(size=32, count=2, seed=0, data_dir=str(tmp_path)),
              scenes.build(size=32, count=2, seed=1, data_dir=str(tmp_path))]
  assert len({variant.digest for variant in variants}) == 5


def test_two_processes_that_ask_at_once_build_once(tmp_path):
  code = ("import sys; from mmjax.data.scenes import builder; "
          "path = builder.prepare(builder.Config(32, 10), sys.argv[1], 1); "
          "print(builder.Index.load(path).digest)")
  root = str(pathlib.Path(builder.__file__).parents[3])
  asked = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "PYTHONPATH": root}) for _ in range(2)]
  answers = [process.communicate() for process in asked]
  assert [process.returncode for process in asked] == [0, 0], answers
  assert answers[0][0] == answers[1][0]
  assert sum("building" in error for _, error in answers) == 1


def test_half_built_dataset_is_built_anew(tmp_path):
  config = Config(size=32, count=10)
  leftover = tmp_path / "scenes" / config.name / f"{builder.VERSION}.incompleteABC"
  leftover.mkdir(parents=True)
  (leftover / "part").write_text("of a killed build")
  path = builder.prepare(config, tmp_path, processes=1)
  assert not leftover.exists() and builder.Index.load(path)


@pytest.mark.parametrize("damage", ["cut", "missing", "no index", "broken index"])
def test_damaged_dataset_is_named_with_a_remedy(damage, tmp_path):
  path = builder.prepare(Config(size=32, count=3), tmp_path, processes=1)
  file = path / builder.shard_name("test", 0, 1)
  if damage == "cut":
    file.write_bytes(file.read_bytes()[:-100])
  elif damage == "missing":
    file.unlink()
  elif damage == "no index":
    (path / "index.json").unlink()
  else:
    (path / "index.json").write_text(json.dumps({"config": {}})[:-3])
  with pytest.raises(ValueError, match=f"(?s)scenes.*{path}.*delete.*built anew"):
    scenes.build(size=32, count=3, data_dir=str(tmp_path))


def test_damaged_record_is_named_when_it_is_read(tmp_path):
  path = builder.prepare(Config(size=32, count=3), tmp_path, processes=1)
  file = path / builder.shard_name("train", 0, 1)
  data = bytearray(file.read_bytes())
  data[2000:2060] = bytes(60)  # inside the first of three records of about 5 kB
  file.write_bytes(data)
  broken = scenes.build(size=32, count=3, data_dir=str(tmp_path))
  with pytest.raises(ValueError, match="record 0 of train .* is damaged"):
    broken[0]
  assert broken[2]["id"] == "train-00000002"


@pytest.mark.parametrize("wrong, message", [
  ({"split": "tests"}, "no split 'tests'; the nearest is 'test'"),
  ({"keys": ("imag",)}, "no key 'imag'; the nearest is 'image'"),
  ({"captions": ("long",)}, "no kind of caption 'long'"),
  ({"objects": 6}, "no record has 6 to 6 objects"),
])
def test_wrong_argument_is_named(data_dir, wrong, message):
  with pytest.raises(ValueError, match=message):
    source(data_dir, **wrong)


@pytest.mark.parametrize("wrong", [{"size": 8}, {"count": 0}, {"seed": -1}])
def test_impossible_configuration_is_named(wrong):
  with pytest.raises(ValueError, match=f"scenes: {next(iter(wrong))} must"):
    Config(**wrong)


def test_builder_takes_the_name_of_any_configuration():
  assert Config.parse(Config(32, 7, 5).name) == Config(32, 7, 5)
  with pytest.raises(ValueError, match="names no configuration"):
    Config.parse("64")


def test_failed_worker_is_reported_and_leaves_nothing(tmp_path, monkeypatch):
  monkeypatch.setattr(sys, "executable", "/bin/false")
  with pytest.raises(RuntimeError, match="worker process ended with status 1"):
    builder.prepare(Config(size=32, count=3), tmp_path, processes=1)
  assert not list(tmp_path.glob("scenes/*/1*"))
