"""What does not fit in a masked or self-distilled recipe is one line before the first step, with the key's whole path."""

import pytest

from mmjax import config as config_lib
from mmjax.training.assemble import assemble


def keeps(*keys):
  """Takes the other modalities out of the training data."""
  return lambda config: config["data"]["transforms"].append({"name": "Keep", "keys": list(keys)})


def sets(path, value):
  def change(config):
    *above, last = path.split(".")
    for key in above:
      config = config[key]
    config[last] = value
  return change


@pytest.mark.parametrize("recipe, change, message", [
    ("masked/mae", sets("objective.mask.ratio", 1.0), r"objective\.mask\.ratio=1\.0: masks \d+ of"),
    ("masked/simmim", sets("objective.mask.ratio", 0.0), r"objective\.mask\.ratio=0\.0: masks 0 of"),
    ("selfdistill/ijepa", sets("objective.mask.context", 0.001), r"objective\.mask\.context=0\.001: leaves none"),
    ("masked/mae", sets("objective.encoder.patch", 5), r"objective\.encoder\.patch: an image of .* patches of 5x5"),
    ("selfdistill/ijepa", sets("objective.encoder.patch", 5), r"objective\.encoder\.patch: an image"),
    ("selfdistill/dinov2", sets("objective.encoder.patch", 5), r"objective\.encoder\.patch: an image"),
    ("masked/multimae", sets("objective.encoder.patch", 5), r"objective\.encoder\.patch: an image"),
    ("masked/mae", sets("objective.input", "video"), r"objective: the batch has no 'video'; .* see data\.transforms"),
    ("masked/multimae", keeps("image", "semantic"), r"objective: the batch has no 'depth', .* see data\.transforms"),
    ("masked/fourm", keeps("image", "semantic", "text", "text_mask"), r"objective\.modalities\.depth\.target: it reads 'depth', .* see data\.transforms"),
    ("masked/fourm", sets("objective.modalities.depth.vocab", 7), r"objective\.modalities\.depth\.vocab: 7, but its"),
    ("masked/mae", sets("objective.mask.name", "attentive"), r"objective\.target: pixels have no attention"),
])
def test_what_does_not_fit_is_one_line_with_the_path_of_the_key(recipe, change, message):
  config = config_lib.load(f"{recipe}:smoke")
  change(config)
  with pytest.raises(config_lib.ConfigError, match=f"^{message}") as error:
    assemble(config, example_data=True)
  assert "\n" not in str(error.value)
