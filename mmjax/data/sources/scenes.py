"""Records of the built-in dataset `scenes`, which is built on first use.

A record is a dict with the keys that were asked for, of these:

  id              str, e.g. "train-00000007"
  image           JPEG bytes; depth (16-bit, millimetres along the optical axis), normals, semantic
                  and instance are PNG bytes. What they hold: mmjax/data/scenes/records.py
  num_objects     int, 1 to 5
  colour, shape, colour_shape
                  int labels of a scene with a single object, else -1;
                  colour_shape = colour * len(SHAPES) + shape
  held_out        int, the object whose colour-shape pair is held out of train, or -1
  objects/shape, objects/colour, objects/size, objects/material
                  int64 [N] labels of the N objects; instance i + 1 is object i
  objects/box     float32 [N, 4], normalised ymin, xmin, ymax, xmax of the visible part
  objects/position, objects/radius, objects/yaw, objects/visible
                  float32 [N, 3] metres; [N] metres; [N] radians; [N] the part nothing hides
  camera/position, camera/yaw, camera/pitch, camera/focal, light
                  float32 [3] metres; [] radians; [] radians; [] over half the picture; [3] unit
  floor, wall     int labels
  caption         list of str, one of each kind that was asked for
  question, answer, question_type
                  list of str, list of str, int64 [Q] labels

With `frames` of 2 or more, records are clips (mmjax/data/scenes/motion.py). They have no pictures,
boxes, places, captions and questions, but

  video           list of JPEG bytes, one a frame
  moves           int label: an object or the camera moves
  direction       int label: where to, as the camera sees it
  motion          int label: moves * len(DIRECTIONS) + direction
  moving          int, the object that moves, or -1 for the camera

Names of labels, in order: mmjax/data/scenes/attributes.py.
"""

import dataclasses
import difflib
import functools
import hashlib
import itertools
import os
import pathlib

from array_record.python import array_record_data_source
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2

from mmjax.data.scenes import attributes, builder, layout, records

MOST = 5  # objects of a scene
LABELS = ("colour", "shape", "colour_shape")  # of single-object scenes
KEYS = ("id", "image", "caption", "num_objects") + LABELS
CLIP_KEYS = ("id", "video", "num_objects", "moves", "direction", "motion") + LABELS  # by default
STORED_CLIP_KEYS = (
  "id", "video", "num_objects", "held_out", "objects/shape", "objects/colour", "objects/size",
  "objects/material", "floor", "wall", "moves", "direction", "moving")
STORED_KEYS = (
  "id", "image", "depth", "normals", "semantic", "instance", "num_objects", "held_out",
  "objects/shape", "objects/colour", "objects/size", "objects/material", "objects/box",
  "objects/position", "objects/radius", "objects/yaw", "objects/visible", "camera/position",
  "camera/yaw", "camera/pitch", "camera/focal", "light", "floor", "wall", "caption", "question",
  "answer", "question_type",
)
_VECTORS = {"objects/box": 4, "objects/position": 3}   # fields of an object with several numbers
_LISTS = ("caption", "question", "answer")             # lists of texts
_SCALARS = ("num_objects", "held_out", "floor", "wall", "moves", "direction", "moving")


def build(split: str = "train", size: int = 64, count: int = 20000, seed: int = 0,
          data_dir: str | None = None, objects: int | tuple | None = None,
          keys: tuple | None = None, captions: tuple = attributes.COMPLETE_CAPTIONS,
          frames: int = 1):
  """The source of a split; builds the dataset first if it is not there.

  Args:
    split: train, validation, test or compositional. All but train have `count // 10` records.
    size: pixels a side.
    count: records of train.
    seed: of the whole dataset.
    data_dir: where datasets lie; None is $MMJAX_DATA_DIR, else ~/.cache/mmjax.
    objects: only scenes with that many objects, or with (least, most) of them; None is all.
    keys: what a record holds; None is KEYS, or CLIP_KEYS of clips.
    captions: which kinds of captions (attributes.CAPTION_KINDS), in this order. By default those
      that name the colour and the shape of every object.
    frames: 1 for pictures, 2 or more for clips of so many frames: a dataset of its own.

  Raises:
    ValueError: an argument is none of the valid ones (named with the nearest valid one), or the
      dataset on disk is damaged.
  """
  config = layout.Config(size, count, seed, frames)
  keys = _check_all(split, keys, captions, frames)
  least, most = _range(objects)
  data_dir = data_dir or os.environ.get("MMJAX_DATA_DIR") or "~/.cache/mmjax"
  directory = builder.prepare(config, data_dir)
  source = Scenes(directory, split, least, most, keys, tuple(captions))
  if not len(source):
    raise ValueError(f"scenes: no record of {split} has {least} to {most} objects (of 1 to {MOST})")
  return source


def example(split: str = "train", size: int = 64, count: int = 20000, seed: int = 0,
            data_dir: str | None = None, objects: int | tuple | None = None,
            keys: tuple | None = None, captions: tuple = attributes.COMPLETE_CAPTIONS,
            frames: int = 1):
  """A source of the same form, whose one picture is drawn here; no dataset is built or read.

  Args: as of `build`. An epoch has as many records as the whole split.
  """
  config = layout.Config(size, count, seed, frames)
  keys = _check_all(split, keys, captions, frames)
  return Example(config, split, *_range(objects), keys, tuple(captions))


def _range(objects):
  least, most = (objects, objects) if isinstance(objects, int) else objects or (1, MOST)
  if most < 1 or least > MOST or least > most:
    raise ValueError(f"scenes: no record has {least} to {most} objects (of 1 to {MOST})")
  return least, most


def _check_all(split, keys, captions, frames):
  """The keys, once everything is found to be right."""
  _check("split", split, attributes.SPLITS)
  clips = frames > 1
  known = (STORED_CLIP_KEYS + ("motion",) if clips else STORED_KEYS) + LABELS
  keys = tuple((CLIP_KEYS if clips else KEYS) if keys is None else keys)
  for key in keys:
    if not clips and key in STORED_CLIP_KEYS + ("motion",) and key not in known:
      raise ValueError(f"scenes: a picture has no {key!r}; clips have, see frames")
    _check("key of a clip" if clips else "key", key, known)
  for kind in captions:
    _check("kind of caption", kind, attributes.CAPTION_KINDS)
  return keys


def _check(what, name, valid):
  if name not in valid:
    nearest = difflib.get_close_matches(str(name), valid, n=1, cutoff=0)[0]
    raise ValueError(f"scenes: there is no {what} {name!r}; the nearest is {nearest!r}")


@dataclasses.dataclass(frozen=True)
class Scenes:
  """Record i of the split's scenes that have `least` to `most` objects, in the dataset's order.

  Safe to read from several threads, and to send to other processes: each opens its own files.
  """
  directory: pathlib.Path
  split: str
  least: int
  most: int
  keys: tuple
  captions: tuple

  @property
  def name(self):
    return f"scenes/{self.split}"

  def class_names(self, key):
    """The names of the values of a record's label `key`, or None if it is no label."""
    return _class_names(key)

  @functools.cached_property
  def digest(self):
    """SHA-256 over the content of the whole dataset and over what this source takes of it."""
    taken = (self._index.digest, self.split, self.least, self.most, self.keys, self.captions)
    return hashlib.sha256(repr(taken).encode()).hexdigest()

  @functools.cached_property
  def _index(self):
    return builder.Index.load(self.directory)

  @functools.cached_property
  def _rows(self):
    """Place in the split of every record: int64 [len]."""
    counts = np.array(sum((f["num_objects"] for f in self._index.splits[self.split]), []))
    return ((counts >= self.least) & (counts <= self.most)).nonzero()[0]

  @functools.cached_property
  def _files(self):
    return array_record_data_source.ArrayRecordDataSource([
      f"{self.directory / entry['file']}[0:{len(entry['num_objects'])}]"
      for entry in self._index.splits[self.split]])

  def __len__(self):
    return len(self._rows)

  def __reduce__(self):
    return Scenes, tuple(getattr(self, field.name) for field in dataclasses.fields(self))

  def __getitem__(self, i):
    """The record as a dict; IndexError past the end, ValueError if its bytes are damaged."""
    row = int(self._rows[i])
    try:
      feature = tf_example_pb2.Example.FromString(self._files[row]).features.feature
    except Exception as error:
      raise ValueError(f"scenes: record {row} of {self.split} in {self.directory} is damaged "
                       f"({error}); delete that directory to have it built anew") from error
    return {key: _value(feature, key, self.captions) for key in self.keys}


@dataclasses.dataclass(frozen=True)
class Example:
  """The first scene of a split that has `least` to `most` objects, in the place of every record."""
  config: layout.Config
  split: str
  least: int
  most: int
  keys: tuple
  captions: tuple

  digest = "example"

  @property
  def name(self):
    return f"scenes/{self.split} (an example)"

  def class_names(self, key):
    """As of `Scenes`."""
    return _class_names(key)

  @functools.cached_property
  def _record(self):
    drawn = (records.fields(self.config, self.split, i) for i in itertools.count())
    fields = next(x for x in drawn if self.least <= x["num_objects"] <= self.most)
    feature = tf_example_pb2.Example.FromString(records.serialise(fields)).features.feature
    return {key: _value(feature, key, self.captions) for key in self.keys}

  def __len__(self):
    return self.config.records(self.split)

  def __getitem__(self, i):
    return self._record


def _class_names(key):
  colours, shapes = attributes.COLOURS, attributes.SHAPES
  moves, directions = attributes.MOVES, attributes.DIRECTIONS
  pairs = tuple(f"{colour} {shape}" for colour in colours for shape in shapes)
  motions = tuple(f"{what} {where}" for what in moves for where in directions)
  return {"colour": colours, "shape": shapes, "colour_shape": pairs, "moves": moves,
          "direction": directions, "motion": motions}.get(key)


def _value(feature, key, captions):
  if key in LABELS:
    return _label(feature, key)
  if key == "motion":
    moves, direction = (int(feature[k].int64_list.value[0]) for k in ("moves", "direction"))
    return moves * len(attributes.DIRECTIONS) + direction
  if key == "caption":
    texts = feature[key].bytes_list.value
    kinds = attributes.CAPTION_KINDS
    return [texts[kinds.index(kind)].decode() for kind in captions]
  return _decode(feature[key], key)


def _label(feature, key):
  colours = feature["objects/colour"].int64_list.value
  if len(colours) != 1:
    return -1
  colour, shape = int(colours[0]), int(feature["objects/shape"].int64_list.value[0])
  joint = colour * len(attributes.SHAPES) + shape
  return {"colour": colour, "shape": shape, "colour_shape": joint}[key]


def _decode(feature, key):
  """A `tf.train.Feature` as the module's docstring says."""
  kind = feature.WhichOneof("kind")
  if kind == "bytes_list":
    values = feature.bytes_list.value
    if key in _LISTS:
      return [value.decode() for value in values]
    if key == "video":
      return list(values)
    return values[0].decode() if key == "id" else values[0]
  if kind == "int64_list":
    values = np.array(feature.int64_list.value, np.int64)
    return int(values[0]) if key in _SCALARS else values
  values = np.array(feature.float_list.value, np.float32)
  if key in _VECTORS:
    return values.reshape(-1, _VECTORS[key])
  scalar = key.startswith("camera/") and key != "camera/position"
  return values[0] if scalar else values
