"""Which records a dataset has and in which files they lie."""

import dataclasses
import re

from mmjax.data.scenes import attributes

SHARD = 1000  # records per file, whatever the number of processes


@dataclasses.dataclass(frozen=True)
class Config:
  """What determines the data. The splits besides train have `count // 10` records each, at least 1.

  Raises:
    ValueError: `size` (pixels a side) or `count` (records of train) is out of range, or
      `seed` is negative.
  """
  size: int = 64
  count: int = 20000
  seed: int = 0

  def __post_init__(self):
    if not 16 <= self.size <= 1024:
      raise ValueError(f"scenes: size must be 16 to 1024 pixels, got {self.size}")
    if self.count < 1:
      raise ValueError(f"scenes: count must be at least 1, got {self.count}")
    if self.seed < 0:
      raise ValueError(f"scenes: seed must not be negative, got {self.seed}")

  @property
  def name(self):
    """Name of the dataset's directory."""
    return f"{self.size}px-{self.count}-seed{self.seed}"

  @classmethod
  def parse(cls, name):
    """The `Config` of a name such as "64px-20000-seed0"; ValueError if it is none."""
    match = re.fullmatch(r"(\d+)px-(\d+)-seed(\d+)", name)
    if not match:
      raise ValueError(f'scenes: "{name}" names no configuration; one is "64px-20000-seed0"')
    return cls(*map(int, match.groups()))

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
