"""The table of masks in configs/README.md: it has them all, and its flags do what it says."""

import dataclasses
import importlib
import pathlib
import re
import shlex

import jax
import jax.numpy as jnp
import pytest

from mmjax import cli
from mmjax import config as config_lib
from mmjax.objectives.contract import Context
from mmjax.training.assemble import assemble

ROOT = pathlib.Path(__file__).parents[2]
SECTION = (ROOT / "configs" / "README.md").read_text().split("\n## Masks\n")[1].split("\n## ")[0]
# (name, keys, link to the paper, flags) of each line
ROWS = [(re.findall(r"`(\w+)`", name)[0], re.findall(r"`(\w+)`", keys), paper, flags.strip(" `"))
        for _, name, _, keys, paper, flags, _ in
        (line.split("|") for line in SECTION.splitlines() if line.startswith("| `"))]


def mask(name):
  return importlib.import_module(f"mmjax.masking.{name}")


def loaded(flags):
  """The config that a line's flags make."""
  args, overrides = cli.parse(["train", "--workdir=runs/x", *shlex.split(flags)])
  return config_lib.load(args.config, overrides)


def test_every_mask_is_in_the_table():
  files = (ROOT / "mmjax" / "masking").glob("[a-z]*.py")
  assert {name for name, *_ in ROWS} == {file.stem for file in files if hasattr(mask(file.stem), "build")}


@pytest.mark.parametrize("name, keys, paper, flags", ROWS)
def test_a_line_names_keys_and_paper_of_its_mask_and_flags_that_choose_it(name, keys, paper, flags):
  assert set(keys) <= {field.name for field in dataclasses.fields(mask(name).build)}
  number, = re.findall(r"arxiv\.org/abs/(\d{4}\.\d{5})", paper)
  assert number in mask(name).__doc__
  assert loaded(flags)["objective"]["mask"]["name"] == name


# The others are recipes as they come, which test_configs.py assembles.
@pytest.mark.parametrize("name, flags", [
    (name, flags) for name, _, _, flags in ROWS if "--config." in flags])
def test_flags_that_give_a_recipe_another_mask_make_a_run_that_trains_by_it(name, flags):
  run = assemble(loaded(flags), jax.devices()[:1], example_data=True)
  assert type(run.objective.mask) is mask(name).build

  def forward(params, state, teachers, batch):
    ctx = Context(step=jnp.int32(0), state=state, teachers=teachers)
    features, _ = run.objective.forward(ctx, params, batch)
    return run.objective.terms(ctx, params, features, batch)[0], features["places"]

  with run.use():
    terms, places = jax.eval_shape(forward, run.abstract.params, run.abstract.state,
                                   run.abstract.teachers, run.abstract_batch)
  assert set(terms) == {"prediction", *(["ranking"] if name == "hard_patch" else [])}
  assert places.shape[0] == run.settings.batch_size and places.shape[1] > 0
