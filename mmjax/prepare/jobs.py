"""What a job makes of a batch: {column: array [B, ...]} from the model's features."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

JOBS = ("score", "features", "tokens", "labels")
Features = Callable[[Mapping[str, Any], tuple[str, ...]], Mapping[str, Any]]  # of a batch, and names wanted


@dataclasses.dataclass(frozen=True)
class Job:
  """What is asked of a model.

  Attributes:
    name: of `JOBS`. "score": cosine of a record's picture and its first caption. "features": those
      that `features` names. "tokens": the ids that a tokenizer gives the picture. "labels": the class
      that a classifier, or with `classes` a dual encoder, finds likeliest, and its probability.
    features: names, for "features".
    classes: names of classes, for "labels" by prompts.
    template: a prompt with {} where the class goes.
  """

  name: str
  features: tuple[str, ...] = ("image/embed",)
  classes: tuple[str, ...] = ()
  template: str = "a photo of a {}"

  def __post_init__(self):
    if self.name not in JOBS:
      raise ValueError(f"there is no job {self.name!r} (valid: {', '.join(JOBS)})")
    if self.name == "features" and not self.features:
      raise ValueError("features: none is named")
    if self.classes and self.template.count("{}") != 1:
      raise ValueError(f"template: {self.template!r} must have one {{}}, where the class goes")

  @property
  def reads(self) -> tuple[str, ...]:
    """Inputs of the model: images, texts or both."""
    text = self.name == "score" or any(name.startswith("text/") for name in self.features if self.name == "features")
    image = self.name != "features" or any(not name.startswith("text/") for name in self.features)
    return ("image",) * image + ("text",) * text

  @property
  def want(self) -> tuple[str, ...]:
    """Features beside those that a model always gives."""
    return {"features": self.features, "tokens": ("image/ids",)}.get(self.name, ())


def columns(job: Job, features: Features, batch: Mapping[str, Any], prompts: np.ndarray | None = None
            ) -> dict[str, np.ndarray]:
  """The job's columns of a batch.

  Args:
    prompts: unit-norm embeddings of the classes, float32 [C, D], for "labels" by prompts.

  Returns:
    float16 for features, int32 for ids and labels, float32 for scores and probabilities.

  Raises:
    ValueError: the model has no such feature.
  """
  found = features(batch, job.want)

  def get(name):
    if name not in found:
      raise ValueError(f"{job.name}: the model gives no {name!r} (it gives {', '.join(sorted(found))})")
    return np.asarray(found[name])
  if job.name == "score":
    image, text = get("image/embed").astype(np.float32), get("text/embed").astype(np.float32)
    return {"score": np.einsum("bd,bd->b", image, text)}
  if job.name == "labels":
    logits = get("logits") if prompts is None else (
        float(get("logit_scale")) * get("image/embed").astype(np.float32) @ prompts.T)
    logits = logits.astype(np.float32)
    odds = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return {"label": logits.argmax(axis=-1).astype(np.int32), "probability": (odds / odds.sum(axis=-1, keepdims=True)
                                                                              ).max(axis=-1)}
  return {name: _small(get(name)) for name in job.want}


def _small(array):
  return array.astype(np.int32 if array.dtype.kind in "iu" else np.float16)
