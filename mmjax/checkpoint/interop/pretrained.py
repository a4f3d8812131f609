"""What every checkpoint becomes once it is read, whoever wrote it."""

import dataclasses
from typing import Any

import numpy as np

Node = dict[str, Any]
ENCODERS = ("image", "model", "encoder")  # keys of an objective, in one of which its image encoder stands


@dataclasses.dataclass(frozen=True)
class Pretrained:
  """A model, its weights, and what its inputs go through.

  Attributes:
    objective: config node of the objective, such as {"name": "contrastive", "image": {"name": "vit", ...},
      "text": {...}, ...} or {"name": "encoder", "model": {...}}.
    params: {path: float32 array} under the objective's own parameter paths
      ("image/trunk/layers/mlp/up/kernel").
    image: config nodes of the transforms from {"image": encoded bytes} to the model's `image`; empty if the
      checkpoint does not say.
    text: config nodes of the transforms from {"caption": str} to `text` and `text_mask`; empty if the
      checkpoint has no text or does not say.
    eos_id: the id of the token that the text transforms put at the end of a text; None if they put none.
    labels: names of the classes in the order of "logits"; empty if unknown.
    origin: the path that it was read from, for messages.
  """

  objective: Node
  params: dict[str, np.ndarray]
  image: tuple[Node, ...] = ()
  text: tuple[Node, ...] = ()
  labels: tuple[str, ...] = ()
  eos_id: int | None = None
  origin: str = ""

  def key(self, tower: str = "image") -> str:
    """The key of the objective under which one of its networks stands.

    Args:
      tower: that key; "image" is also the only encoder of a classifier ("model") or of a masked or
        self-distilled objective ("encoder").

    Raises:
      ValueError: there is none.
    """
    keys = ENCODERS if tower == "image" else (tower,)
    towers = [key for key, value in self.objective.items() if isinstance(value, dict) and "name" in value]
    found = [key for key in keys if key in towers]
    if not found:
      raise ValueError(f"{self.origin} has no {tower!r}; it has {', '.join(towers)}")
    return found[0]

  def encoder(self) -> "Pretrained":
    """The image encoder alone: without classifier, mask token, text tower, decoder, heads or teacher.

    Raises:
      ValueError: there is none.
    """
    key = self.key("image")
    prefix = "" if key == "model" else f"{key}/"
    node = {name: value for name, value in self.objective[key].items() if name not in ("classes", "mask_token")}
    params = {name.removeprefix(prefix): x for name, x in self.params.items() if name.startswith(prefix)}
    params = {name: x for name, x in params.items() if not name.startswith(("classifier/", "mask_token"))}
    return self.replace(objective={"name": "encoder", "model": node}, params=params, text=(), labels=(), eos_id=None)

  def replace(self, **changes: Any) -> "Pretrained":
    """A copy with other values in some fields."""
    return dataclasses.replace(self, **changes)
