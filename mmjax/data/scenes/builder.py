"""The `scenes` dataset as a `tensorflow_datasets` builder: ArrayRecord files, no TensorFlow.

  import tensorflow_datasets as tfds
  path = mmjax.data.scenes.builder.prepare(Config(size=64, count=20000, seed=0), data_dir)
  tfds.builder_from_directory(path).as_data_source("train")[0]

A dataset is a directory with tfds's metadata, ArrayRecord files (layout.py), and
`index.json` (`Index`): the files' sizes and hashes, and how many objects each record has. It is
written under another name and renamed when complete, so an existing directory is a whole one.
"""

import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import json
import pathlib
import shutil

import numpy as np
import tensorflow_datasets as tfds

from mmjax.data.scenes import attributes
from mmjax.data.scenes.layout import Config, shard_name
from mmjax.data.scenes.workers import write_shards

VERSION = "1.0.0"
INDEX = "index.json"


def features(size, frames=1):
  """The `tfds.features.FeaturesDict` of a record; records.py says what the pictures hold."""
  if frames > 1:
    return clip_features(size, frames)
  f = tfds.features
  label = lambda names: f.ClassLabel(names=names)
  picture = lambda channels, **kwargs: f.Image(shape=(size, size, channels), **kwargs)
  return f.FeaturesDict({
    "id": f.Text(),
    "image": picture(3, encoding_format="jpeg"),
    "depth": picture(1, dtype=np.uint16, encoding_format="png"),
    "normals": picture(3, encoding_format="png"),
    "semantic": picture(1, encoding_format="png"),
    "instance": picture(1, encoding_format="png"),
    "num_objects": f.Scalar(np.int64),
    "held_out": f.Scalar(np.int64),
    "objects": f.Sequence({
      "box": f.BBoxFeature(),
      "shape": label(attributes.SHAPES),
      "colour": label(attributes.COLOURS),
      "size": label(attributes.SIZES),
      "material": label(attributes.MATERIALS),
      "position": f.Tensor(shape=(3,), dtype=np.float32),
      "radius": f.Scalar(np.float32),
      "yaw": f.Scalar(np.float32),
      "visible": f.Scalar(np.float32),
    }),
    "camera": {
      "position": f.Tensor(shape=(3,), dtype=np.float32),
      "yaw": f.Scalar(np.float32),
      "pitch": f.Scalar(np.float32),
      "focal": f.Scalar(np.float32),
    },
    "light": f.Tensor(shape=(3,), dtype=np.float32),
    "floor": label(attributes.FLOORS),
    "wall": label(attributes.WALLS),
    "caption": f.Sequence(f.Text()),
    "question": f.Sequence(f.Text()),
    "answer": f.Sequence(f.Text()),
    "question_type": f.Sequence(label(attributes.QUESTION_TYPES)),
  })


def clip_features(size, frames):
  """The same of a clip."""
  f = tfds.features
  label = lambda names: f.ClassLabel(names=names)
  return f.FeaturesDict({
    "id": f.Text(),
    "video": f.Sequence(f.Image(shape=(size, size, 3), encoding_format="jpeg"), length=frames),
    "num_objects": f.Scalar(np.int64),
    "held_out": f.Scalar(np.int64),
    "objects": f.Sequence({
      "shape": label(attributes.SHAPES),
      "colour": label(attributes.COLOURS),
      "size": label(attributes.SIZES),
      "material": label(attributes.MATERIALS),
    }),
    "floor": label(attributes.FLOORS),
    "wall": label(attributes.WALLS),
    "moves": label(attributes.MOVES),
    "direction": label(attributes.DIRECTIONS),
    "moving": f.Scalar(np.int64),
  })


@dataclasses.dataclass
class ScenesConfig(tfds.core.BuilderConfig):
  """tfds's view of a `Config`; its name says everything, e.g. "64px-20000-seed0"."""
  scenes: Config = Config()


class Scenes(tfds.core.dataset_builder.FileReaderBuilder):
  """Procedural small 3-D scenes with captions, questions, depth, normals and segmentation."""

  VERSION = tfds.core.Version(VERSION)
  BUILDER_CONFIGS = [ScenesConfig(name=Config().name, scenes=Config())]
  code_path = None  # tfds would look for checksums of downloads beside the code; there are none

  def __init__(self, *, processes=None, file_format=None, **kwargs):
    """A builder; `config` is the name of any `Config`, `processes` is as in `prepare`."""
    super().__init__(file_format=file_format or "array_record", **kwargs)
    self.processes = processes

  @classmethod
  @functools.lru_cache(maxsize=None)  # tfds asks that one name is one object
  def get_builder_config(cls, name, version=None):
    """The configuration of that name: any size, count and seed, not a list of a few."""
    return ScenesConfig(name=name, scenes=Config.parse(name))

  def _log_download_bytes(self):
    """Nothing is downloaded; workers.py reports progress."""

  def _log_download_done(self):
    """As above."""

  def _info(self):
    return tfds.core.DatasetInfo(
      builder=self,
      description=self.__doc__,
      features=features(self.builder_config.scenes.size, self.builder_config.scenes.frames),
      disable_shuffling=True,  # the records' order is part of the dataset
    )

  def _download_and_prepare(self, dl_manager, download_config=None):
    config = self.builder_config.scenes
    entries = write_shards(config, self.data_dir, self.processes)
    index = Index.of(config, entries)
    self.info.set_splits(tfds.core.splits.SplitDict([
      tfds.core.splits.SplitInfo(
        name=split,
        shard_lengths=[len(entry["num_objects"]) for entry in index.splits[split]],
        num_bytes=sum(entry["bytes"] for entry in index.splits[split]),
        filename_template=self._get_filename_template(split_name=split))
      for split in attributes.SPLITS]))
    index.save(self.data_dir)


@dataclasses.dataclass(frozen=True)
class Index:
  """The list of a dataset's files.

  Attributes:
    config: dict of the `Config`.
    digest: SHA-256 over the content of all records of all splits.
    splits: {split: [{file, bytes, sha256, num_objects: [objects of each record]}]}.
  """
  config: dict
  digest: str
  splits: dict

  @classmethod
  def of(cls, config, entries):
    """From the entries that `workers.py` reports, one a shard."""
    entries = {entry["file"]: entry for entry in entries}
    splits = {split: [] for split in attributes.SPLITS}
    for split, shard, shards, _, _ in config.shards():
      splits[split].append(entries[shard_name(split, shard, shards)])
    hashes = "".join(entry["sha256"] for split in splits.values() for entry in split)
    digest = hashlib.sha256(hashes.encode()).hexdigest()
    return cls(dataclasses.asdict(config), digest, splits)

  def save(self, directory):
    """Write it into a dataset's directory."""
    (pathlib.Path(directory) / INDEX).write_text(json.dumps(dataclasses.asdict(self)))

  @classmethod
  def load(cls, directory):
    """Read it, and check that every file is there at its full length.

    Raises:
      ValueError: a file is missing, cut or grown; names it and says how to build again.
    """
    directory = pathlib.Path(directory)
    remedy = f"delete {directory} and run again: the dataset is built anew"
    try:
      index = cls(**json.loads((directory / INDEX).read_text()))
    except (OSError, ValueError, TypeError) as error:
      raise ValueError(f"scenes: no usable {INDEX} in {directory} ({error}); {remedy}") from None
    for entry in sum(index.splits.values(), []):
      path = directory / entry["file"]
      size = path.stat().st_size if path.exists() else None
      if size != entry["bytes"]:
        found = "is missing" if size is None else f"has {size} bytes"
        raise ValueError(f"scenes: {path} {found}, expected {entry['bytes']} bytes; {remedy}")
    return index


def prepare(config, data_dir, processes=None):
  """Build the dataset unless it is there. Safe when several processes ask at once.

  Args:
    config: `Config`.
    data_dir: local directory; the dataset goes to `data_dir/scenes/NAME/VERSION`.
    processes: worker processes; None for one a core. They do not change the data.

  Returns:
    pathlib.Path of the dataset's directory.

  Raises:
    ValueError: a dataset is there, but damaged.
    RuntimeError: a worker failed; nothing is left behind.
  """
  data_dir = pathlib.Path(data_dir).expanduser()
  home = data_dir / "scenes" / config.name
  path = home / VERSION
  if not path.exists():
    home.mkdir(parents=True, exist_ok=True)
    with _lock(home.with_suffix(".lock")):
      if not path.exists():  # another process may have built it while this one waited
        for leftover in home.glob(f"{VERSION}.incomplete*"):
          shutil.rmtree(leftover)  # of a build that was killed; the lock says nobody writes it
        builder = Scenes(data_dir=str(data_dir), config=config.name, processes=processes)
        builder.download_and_prepare()
  Index.load(path)
  return path


@contextlib.contextmanager
def _lock(path):
  """One process at a time; the operating system releases the lock of a killed one."""
  with open(path, "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield
