"""One record of the dataset: a scene drawn, described and serialised as a `tf.train.Example`.

A record is a flat dict; a name with a slash is a field of every object. Pictures are encoded:

  image     JPEG, quality 95 without chroma subsampling: a third of a PNG's decoding time and half
            its size, with errors (about 1 of 255) below what resizing and jitter add
  depth     16-bit PNG, z along the optical axis in units of `1 / DEPTH_SCALE` metres
  normals   8-bit RGB PNG: (n + 1) * 127.5 of a unit normal, x right, y up, z to the camera
  semantic  8-bit PNG, labels of attributes.SEMANTIC
  instance  8-bit PNG, 0 for the room and 1 + i for object i

`image` needs `size` pixels a side and so do all maps.

A record of a clip has `video`, its frames as such JPEGs, in place of the pictures, and neither
captions nor questions: where things stand is what changes.
"""

import itertools

import cv2
import numpy as np
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

from mmjax.data.scenes import attributes, captions, chance, motion, questions, render, sample

DEPTH_SCALE = 1000.0   # depth map values per metre: millimetres
JPEG_QUALITY = 95
MIN_VISIBLE = 0.3      # a layout that hides more of an object than the rest is drawn again

_JPEG = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY,
         cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
_PNG = [cv2.IMWRITE_PNG_COMPRESSION, 1]  # fastest; higher levels gain little on 64 pixels


def fields(config, split, index):
  """Record `index` of a split of the dataset that `config` (layout.Config) describes."""
  if config.frames == 1:
    return record(config.seed, split, index, config.size)
  return clip(config.seed, split, index, config.size, config.frames)


def record(seed, split, index, size):
  """Record `index` of a split, a function of its arguments only.

  Returns:
    dict of the fields of builder.py's features: encoded pictures as bytes, text as str or lists
    of str, numbers as int, float or nested lists.
  """
  for attempt in itertools.count():
    scene = sample.sample(seed, split, index, attempt)
    picture = render.render(scene, size)
    if picture.visible.min() > MIN_VISIBLE:
      break
  words = chance.stream(seed, split, index, "words")
  asked, answers, types = questions.questions(scene, words)
  camera = scene.camera
  return {
    "id": f"{split}-{index:08d}",
    **encode(picture),
    "num_objects": len(scene.things),
    "held_out": scene.held_out,
    **objects(scene, picture),
    "camera/position": list(camera.position),
    "camera/yaw": camera.yaw,
    "camera/pitch": camera.pitch,
    "camera/focal": camera.focal,
    "light": list(scene.room.light),
    "floor": scene.room.floor,
    "wall": scene.room.wall,
    "caption": captions.captions(scene, words),
    "question": asked,
    "answer": answers,
    "question_type": [attributes.QUESTION_TYPES.index(name) for name in types],
  }


def clip(seed, split, index, size, frames):
  """Clip `index` of a split, a function of its arguments only; a dict as of `record`."""
  for attempt in itertools.count():
    sampled = motion.sample_clip(seed, split, index, frames, attempt)
    pictures = sampled and _all_visible(sampled[0], size)
    if pictures:
      break
  scenes, move = sampled
  scene = scenes[0]
  return {
    "id": f"{split}-{index:08d}",
    "video": [_jpeg(picture.rgb) for picture in pictures],
    "num_objects": len(scene.things),
    "held_out": scene.held_out,
    **labels(scene),
    "floor": scene.room.floor,
    "wall": scene.room.wall,
    "moves": move.moves,
    "direction": move.direction,
    "moving": move.thing,
  }


def _all_visible(scenes, size):
  """The pictures of a clip, or None if one of them hides an object."""
  pictures = []
  for scene in scenes:
    pictures.append(render.render(scene, size))
    if pictures[-1].visible.min() <= MIN_VISIBLE:
      return None
  return pictures


def _jpeg(rgb):
  return cv2.imencode(".jpg", rgb[..., ::-1], _JPEG)[1].tobytes()


def encode(picture):
  """The five pictures as encoded bytes."""
  depth = np.clip(picture.depth * DEPTH_SCALE + 0.5, 0, 65535).astype(np.uint16)
  normals = np.clip((picture.normals + 1) * 127.5 + 0.5, 0, 255).astype(np.uint8)
  return {
    "image": _jpeg(picture.rgb),
    "depth": cv2.imencode(".png", depth, _PNG)[1].tobytes(),
    "normals": cv2.imencode(".png", normals[..., ::-1], _PNG)[1].tobytes(),
    "semantic": cv2.imencode(".png", picture.semantic, _PNG)[1].tobytes(),
    "instance": cv2.imencode(".png", picture.instance, _PNG)[1].tobytes(),
  }


def objects(scene, picture):
  """Labels and measures of every object, as lists in the scene's order."""
  things = scene.things
  return {
    "objects/box": [_box(picture.instance == i + 1) for i in range(len(things))],
    **labels(scene),
    "objects/position": [list(thing.position) for thing in things],
    "objects/radius": [thing.radius for thing in things],
    "objects/yaw": [thing.yaw for thing in things],
    "objects/visible": picture.visible.tolist(),
  }


def labels(scene):
  """Labels of every object, as lists in the scene's order."""
  return {f"objects/{name}": [getattr(thing, name) for thing in scene.things]
          for name in ("shape", "colour", "size", "material")}


def _box(mask):
  """Normalised [ymin, xmin, ymax, xmax] around the true pixels of a mask [S, S]."""
  rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
  size = len(mask)
  return [float(v) / size for v in (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)]


def serialise(fields):
  """A record as `tf.train.Example` bytes, laid out as tfds lays out the builder's features."""
  features = {name: _feature(value) for name, value in fields.items()}
  example = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=features))
  return example.SerializeToString(deterministic=True)


def _feature(value):
  values = value if isinstance(value, list) else [value]
  if values and isinstance(values[0], list):
    values = list(itertools.chain.from_iterable(values))
  kind = type(values[0]) if values else bytes  # only the lists of questions can be empty
  if kind is int:
    return tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=values))
  if kind is float:
    return tf_feature_pb2.Feature(float_list=tf_feature_pb2.FloatList(value=values))
  values = [v.encode() if isinstance(v, str) else v for v in values]
  return tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=values))
