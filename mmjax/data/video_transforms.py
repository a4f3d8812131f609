"""Transforms of videos. Those of images act on all frames alike with `key="video"`: Decode, Resize,
ResizeShort, CentreCrop, RandomResizedCrop, Flip, Letterbox, ColourJitter, Grey, Solarise, ToFloat,
Normalise."""

import dataclasses

from mmjax.data import records


@dataclasses.dataclass(frozen=True)
class SampleFrames:
  """`frames` of a video's frames, `stride` apart, from a random start. Before Decode, so that no
  frame is decoded for nothing.

  Attributes:
    choose: "random" start, or the "centre" of the video.
  """

  frames: int
  stride: int = 1
  choose: str = "random"
  key: str = "video"

  def __post_init__(self):
    records.require(self, "frames", self.frames >= 1, "expected 1 or more")
    records.require(self, "stride", self.stride >= 1, "expected 1 or more")
    records.require(self, "choose", self.choose in ("random", "centre"),
                    "expected 'random' or 'centre'")

  def __call__(self, record, rng):
    video = records.get(record, self.key)
    if isinstance(video, (bytes, str)) or not hasattr(video, "__len__"):
      raise TypeError(f"{self.key!r} must be a list of frames, found {records.describe(video)}")
    span = (self.frames - 1) * self.stride + 1
    free = len(video) - span
    if free < 0:
      raise ValueError(f"{self.key!r} has {len(video)} frames; {self.frames} of them {self.stride} "
                       f"apart need {span}")
    start = int(rng.integers(free + 1)) if self.choose == "random" else free // 2
    return {**record, self.key: video[start:start + span:self.stride]}
