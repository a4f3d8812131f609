"""The benchmark that makes docs/recipes.md: its rows, its page, what its runs are."""

import pathlib

import pytest

from benchmarks import recipes
from benchmarks.recipes import RECIPES, Result
from mmjax import config as config_lib


def fake(probe, loss=0.5):
  return Result(probe, probe / 2, {"prediction": (loss, 1.0)})


def test_every_masked_and_self_distilled_recipe_has_a_row():
  shipped = {name for name in config_lib.shipped() if name.startswith(("masked/", "selfdistill/"))}
  assert {recipe.config for recipe in RECIPES} == shipped
  for recipe in RECIPES:
    config = recipes.smoke(recipe, 0)
    assert next(iter(recipe.probes)) == recipe.label and len(recipe.probes) == 2, recipe.name
    for label, evaluator in recipe.probes.items():
      probe = config["evals"][evaluator]
      assert (probe["name"], probe["label"]) == ("linear_probe", label), recipe.name
    assert recipe.labelled == ("encoder" in config["objective"]), recipe.name


def test_gain_is_the_least_over_seeds_and_must_reach_the_margin():
  recipe = RECIPES[0]
  results = {"recipe": [fake(0.5, 0.4), fake(0.3, 0.6)], "untrained": [fake(0.2), fake(0.27)],
             "labels": [fake(0.8), fake(0.6)]}
  row = recipes.row(recipe, results)
  assert row[2:] == ("1,000", "2", "0.500 of 1.000", "shape", "0.400", "0.235", "0.700", "+0.030", "**no**",
                     "colour 0.200 / 0.118")
  results["recipe"][1] = fake(0.33)
  assert recipes.row(recipe, results)[-3:-1] == ("+0.060", "yes")
  results["recipe"][0] = fake(0.5, 0.97)  # one seed's loss is near its trivial value
  assert recipes.row(recipe, results)[-3:-1] == ("+0.060", "**no**")
  results["recipe"] = [Result(0.5, 0.1, {"a": (0.5, 1.0), "b": (1.98, 2.0)}), fake(0.33)]  # or one of its terms
  results["recipe"][1] = Result(0.5, 0.1, {"a": (0.1, 1.0), "b": (0.98, 2.0)})
  row = recipes.row(recipe, results)
  assert row[4] == "1.480 of 2.000 (b)" and row[-2] == "**no**"
  results["recipe"] = [Result(0.5, 0.1)] * 2  # of two views
  assert recipes.row(recipe, results)[4] == "–" and recipes.row(recipe, results)[-2] == "yes"


def test_page_shows_what_is_finished_and_names_the_rest():
  done, rest = RECIPES[0], RECIPES[1:]
  results = {recipe.name: {} for recipe in RECIPES}
  results[done.name] = {kind: [fake(0.4)] for kind in done.kinds()}
  text = recipes.page(results)
  assert f"`{done.config}`" in text and f"`{rest[0].config}`" not in text
  assert f"Not run yet: {', '.join(one.name for one in rest)}." in text


@pytest.mark.parametrize("name, classes", [("mae", 6), ("mae_st", 6)])
def test_comparisons_share_encoder_and_budget(name, classes):
  recipe = next(one for one in RECIPES if one.name == name)
  before = recipes.untrained(recipe, 3)
  assert before["total_steps"] == 1 and before["optim"]["lr"] == 0 and before["seed"] == 3
  assert list(before["evals"]) == list(recipe.probes.values())
  ours, labelled = recipes.smoke(recipe, 3), recipes.labels(recipe, 3)
  model = labelled["objective"]["model"]
  assert {**ours["objective"]["encoder"], "classes": classes} == model
  spent = ours["total_steps"] * recipes.flops(ours)
  assert labelled["total_steps"] * recipes.flops(labelled) == pytest.approx(spent, rel=0.05)


@pytest.mark.parametrize("argv, line", [
    (["--workdir=x", "--only=maee"], "--only: no recipe 'maee'"), ([], "--workdir: is missing")])
def test_bad_arguments_are_one_line(argv, line, capsys):
  with pytest.raises(SystemExit):
    recipes.main(argv)
  assert line in capsys.readouterr().err


def test_an_unfinished_run_is_no_result(tmp_path: pathlib.Path):
  assert recipes.result(RECIPES[0], tmp_path / "none") is None


def test_what_runs_came_to_is_kept_as_long_as_the_recipe_is_the_same(tmp_path):
  recipe = RECIPES[0]
  ends = {f"{kind}-{seed}": {"probe": 0.4 + seed / 10, "other": 0.2, "losses": {"prediction": [0.5, 1.0]}}
          for seed in range(2) for kind in recipe.kinds(seed)}
  kept = {recipe.name: {"config": recipes.config_digest(recipe), **ends}}
  assert recipes.to_keep(tmp_path, kept) == kept
  found = recipes.found(tmp_path, 3, kept)[recipe.name]
  assert [end.probe for end in found["recipe"]] == [0.4, 0.5] and len(found["labels"]) == 1
  assert recipes.to_keep(tmp_path, {recipe.name: {**kept[recipe.name], "config": "other"}}) == {}
  assert recipes.config_digest(recipe) != recipes.config_digest(RECIPES[1])
