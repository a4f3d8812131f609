"""Which records a dataset has and in which files they lie."""

import dataclasses
import re

from mmjax.data.scenes import attributes

SHARD = 1000  # records per file, whatever the number of processes


@dataclasses.dataclass(frozen=True)
class Config:
  """What determines the data. The splits besides train have `count // 10` records each, at least 1.

  Attributes:
    size: pixels a side.
    count: records of train.
    seed: of everything.
    frames: 1 for pictures; the frames of a clip.

  Raises:
    ValueError: `size`, `count` or `frames` is out of range, or `seed` is negative.
  """
  size: int = 64
  count: int = 20000
  seed: int = 0
  frames: int = 1

  def __post_init__(self):
    if not 16 <= self.size <= 1024:
      raise ValueError(f"scenes: size must be 16 to 1024 pixels, got {self.size}")
    if self.count < 1:
      raise ValueError(f"scenes: count must be at least 1, got {self.count}")
    if self.seed < 0:
      raise ValueError(f"scenes: seed must not be negative, got {self.seed}")
    if not 1 <= self.frames <= 256:
      raise ValueError(f"scenes: frames must be 1 (pictures) or 2 to 256, got {self.frames}")

  @property
  def name(self):
    """Name of the dataset's directory."""
    clips = f"-{self.frames}frames" if self.frames > 1 else ""
    return f"{self.size}px-{self.count}-seed{self.seed}{clips}"

  @classmethod
  def parse(cls, name):
    """The `Config` of a name such as "64px-20000-seed0" or "64px-20000-seed0-8frames".

    Raises:
      ValueError: it names none.
    """
    match = re.fullmatch(r"(\d+)px-(\d+)-seed(\d+)(?:-(\d+)frames)?", name)
    if not match:
      raise ValueError(f'scenes: "{name}" names no configuration; one is "64px-20000-seed0"')
    return cls(*map(int, match.groups(default=1)))

  def records(self, split):
    """Number of records of a split."""
    return self.count if split == "train" else max(self.count // 10, 1)

  def shards(self):
    """(split, shard, shards of the split, first record, end) of every file."""
    result = []
    for split in attributes.SPLITS:
      total = self.records(split)
      shards = -(-total // SHARD)
      result += [(split, i, shards, i * SHARD, min((i + 1) * SHARD, total)) for i in range(shards)]
    return result


def shard_name(split, shard, shards):
  """Name of an ArrayRecord file, as tfds names it."""
  return f"scenes-{split}.array_record-{shard:05d}-of-{shards:05d}"
