"""What every checkpoint becomes once it is read, whoever wrote it."""

import dataclasses
import functools
import operator
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

Node = dict[str, Any]
# Keys of an objective, in one of which its image encoder stands.
ENCODERS = ("image", "model", "encoder", "tokenizer.encoder")


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
    state: {path: array}, what its encoder has beside parameters, under the objective's own state paths: a
      codebook, a frozen tokenizer of its input.
  """

  objective: Node
  params: dict[str, np.ndarray]
  image: tuple[Node, ...] = ()
  text: tuple[Node, ...] = ()
  labels: tuple[str, ...] = ()
  eos_id: int | None = None
  origin: str = ""
  state: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)

  def key(self, tower: str = "image") -> str:
    """The key of the objective under which one of its networks stands.

    Args:
      tower: that key, with dots where it is inside another ("tokenizer.encoder"); "image" is also the only
        encoder of a classifier ("model"), of a masked or self-distilled objective ("encoder") or of a tokenizer.

    Raises:
      ValueError: there is none.
    """
    keys = ENCODERS if tower == "image" else (tower,)
    found = [key for key in keys if key in self.keys()]
    if not found:
      raise ValueError(f"{self.origin} has no {tower!r}; it has {', '.join(self.keys())}")
    return found[0]

  def keys(self) -> list[str]:
    """Those of all its networks."""
    return list(_networks(self.objective))

  def node(self, key: str) -> Node:
    """The network's config node at such a key."""
    return functools.reduce(operator.getitem, key.split("."), self.objective)

  def encoder(self) -> "Pretrained":
    """The image encoder alone: without classifier, mask token, text tower, decoder, heads or teacher.

    Raises:
      ValueError: there is none.
    """
    key = self.key("image")
    node = {name: value for name, value in self.node(key).items() if name not in ("classes", "mask_token")}
    params = under(self.params, path_of(key))
    params = {name: x for name, x in params.items() if not name.startswith(("classifier/", "mask_token"))}
    state = {f"model/{name}": x for name, x in under(self.state, key.replace(".", "/")).items()}
    return self.replace(objective={"name": "encoder", "model": node}, params=params, state=state, text=(),
                        labels=(), eos_id=None)

  def replace(self, **changes: Any) -> "Pretrained":
    """A copy with other values in some fields."""
    return dataclasses.replace(self, **changes)


def path_of(key: str) -> str:
  """Where the parameters of the network at a key of an objective are; "model" is the whole."""
  return "" if key == "model" else key.replace(".", "/")


def under(tensors: Mapping[str, Any], path: str) -> dict[str, Any]:
  """The tensors below a path, which is cut off their names."""
  prefix = f"{path}/" if path else ""
  return {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}


def _networks(node: Node, path: str = "") -> Iterator[str]:
  """Dotted keys of all that has a name below an objective's node."""
  for key, value in node.items():
    if isinstance(value, dict):
      if "name" in value:
        yield f"{path}{key}"
      yield from _networks(value, f"{path}{key}.")
