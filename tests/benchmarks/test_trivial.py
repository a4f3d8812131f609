"""The loss of the best constant: no other constant is better, and it is found for real runs."""

import numpy as np
import pytest

from benchmarks import recipes, trivial
from mmjax.losses import prediction

LOSSES = {"l1": prediction.l1, "l2": prediction.l2, "cosine": prediction.cosine,
          "smooth_l1": prediction.smooth_l1}


@pytest.mark.parametrize("loss", ["l1", "l2", "cosine"])
def test_no_constant_near_by_is_better(loss):
  rng = np.random.default_rng(0)
  targets = rng.normal(size=(40, 5, 3)).astype(np.float32) + np.float32([2, -1, 0.5])
  best = trivial.constant_cost(loss, targets)
  unit = targets / np.linalg.norm(targets, axis=-1, keepdims=True)
  found = {"l1": np.median(targets, (0, 1)), "l2": targets.mean((0, 1)), "cosine": unit.mean((0, 1))}[loss]
  cost = lambda constant: float(LOSSES[loss](np.broadcast_to(constant, targets.shape), targets).mean())
  assert best == pytest.approx(cost(found), rel=1e-5)
  for _ in range(50):
    assert cost(found + 0.3 * rng.normal(size=3).astype(np.float32)) >= best - 1e-6


def test_of_ids_it_is_their_entropy():
  ids = np.array([[0, 0, 1, 2], [0, 0, 1, 2]])
  assert trivial.constant_cost("cross_entropy", ids) == pytest.approx(
      0.5 * np.log(2) + 2 * 0.25 * np.log(4))


@pytest.mark.parametrize("name, ranges", [
    # Normalised patches have variance 1, of which the best constant explains a little; ids have at most ln K.
    ("mae", {"prediction": (0.5, 1.0)}), ("ijepa", {}),
    ("mage", {"cross_entropy": (2.0, 5.37)}),
    pytest.param("multimae", {"image": (0.1, 2.0), "depth": (0.3, 1.0), "semantic": (0.3, 2.07)},
                 marks=pytest.mark.slow),
    pytest.param("fourm", {"depth": (1.0, 4.15), "image_tokens": (1.0, 4.15), "semantic": (0.3, 2.07),
                           "text": (1.0, 4.0)}, marks=pytest.mark.slow),
    pytest.param("vq", {"l1": (0.05, 1.0)}, marks=pytest.mark.slow)])
def test_they_are_found_for_a_recipe(name, ranges):
  recipe = next(one for one in recipes.RECIPES if one.name == name)
  config = recipes.smoke(recipe, 0)
  for stream in config["data"], config.get("eval_data", {}):
    if stream:
      stream["source"]["count"] = 100
  found = trivial.best_constants(config)
  assert found.keys() == ranges.keys()
  for term, (low, high) in ranges.items():
    assert low < found[term] < high, (term, found)
