"""Whether the parameters of a checkpoint have the shapes that its config gives them."""

from collections.abc import Mapping

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mmjax.checkpoint import paths
from mmjax.checkpoint.interop import forms
from mmjax.checkpoint.interop.pretrained import Node

TOWERS = {"model": "", "image": "image/", "text": "text/"}  # key of the objective: its parameters' prefix


def check(objective: Node, params: Mapping[str, np.ndarray], where: str) -> None:
  """Compares the towers' parameters with those that the models would begin with.

  Args:
    where: the checkpoint, for the error.

  Raises:
    ValueError: with a +/- table of what differs.
  """
  have, want = {}, {}
  for key, prefix in TOWERS.items():
    if isinstance(objective.get(key), dict):
      want |= {prefix + name: list(x.shape) for name, x in _initial(objective[key], params, prefix).items()}
  for name in [name for name in want if name in params]:
    have[name] = list(params[name].shape)
  wrong = [name for name in have if have[name] != want[name]]
  if wrong:
    table = paths.difference({name: ["float32", have[name]] for name in wrong},
                             {name: ["float32", want[name]] for name in wrong})
    raise ValueError(f"{where}: tensors have other shapes than its config describes (-: in the file, +: by the "
                     "config; under mmjax's names)\n" + "\n".join(table))


def _initial(node, params, prefix):
  """{parameter: shape and dtype} of one tower; nothing is computed."""
  module = forms.FIELDS[node["name"]](**{key: value for key, value in node.items() if key != "name"})
  if node["name"] == "text":
    given = jnp.zeros((1, 1), jnp.int32)
  else:
    (height, width), (rows, columns) = forms.square(module.patch), node.get("grid") or (1, 1)
    channels = params[f"{prefix}patch_embed/kernel"].shape[2]
    given = jax.ShapeDtypeStruct((1, rows * height, columns * width, channels), jnp.float32)
  return paths.flatten(nn.meta.unbox(jax.eval_shape(module.init, jax.random.key(0), given)["params"]))
