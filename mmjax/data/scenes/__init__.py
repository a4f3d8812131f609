"""The built-in dataset `scenes`: procedural 3-D scenes of one to five objects, pictures or clips.

  attributes  names of all classes, in label order
  sample      the distribution of scenes; no pixels, no words
  motion      the scenes of a clip, of which each differs a little from the one before
  render      a scene to RGB, depth, normals and segmentation (shapes: the ray intersections)
  captions, questions   a scene to text
  records     one record, encoded and serialised
  builder     the dataset on disk, as a tensorflow_datasets builder (layout: its files;
              workers: the processes that write them)
  vocabulary  trains vocabulary.json, the tokenizer of the dataset's words

Reading goes through mmjax/data/sources/scenes.py.
"""

from mmjax.data.scenes.attributes import (  # noqa: F401
  CAPTION_KINDS, COLOURS, COMPLETE_CAPTIONS, DIRECTIONS, FLOORS, HELD_OUT, MATERIALS, MOVES,
  QUESTION_TYPES, SEMANTIC, SHAPES, SIZES, SPLITS, WALLS,
)
