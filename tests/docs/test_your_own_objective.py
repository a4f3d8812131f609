"""The example of docs/your_own_objective.md, taken from the page as a reader would take it."""

import pathlib
import re

import numpy as np
import pytest

from mmjax import cli
from mmjax.report import writers
from tests.training import tiny

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "your_own_objective.md"
STEPS = 3


def files():
  """{name: text} of the code blocks; the first line of each names its file."""
  blocks = re.findall(r"```python\n# (\S+)\n(.*?)```", PAGE.read_text(), re.DOTALL)
  return dict(blocks)


@pytest.fixture
def lab(tmp_path, monkeypatch):
  """A directory with the page's files, where the user stands; pictures from an .npz."""
  for name, text in files().items():
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(text)
  tiny.write_pairs(tmp_path / "pictures.npz")
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))  # which also puts sys.path back
  return tmp_path


def train(lab, workdir, *more):
  """A run of the page's config on arrays: its losses, and the steps of its evaluations."""
  data = "{'source': {'name': 'arrays', 'path': 'pictures.npz'}, 'transforms': [" \
         "{'name': 'Keep', 'keys': ['image']}], 'shuffle': False}"
  status = cli.main([
      "train", "--config=my_lab/denoise_scenes.py", f"--workdir={workdir}", f"--config.data={data}",
      f"--config.eval_data={data}", f"--config.total_steps={STEPS}", "--config.log_every_steps=1",
      "--config.batch_size=16", "--config.objective.encoder.depth=1",
      "--config.optim.schedule={'name': 'constant'}", *more])
  assert status == 0
  lines = writers.read(str(lab / workdir / "metrics.jsonl"))
  return ([line["loss"] for line in lines if "loss" in line],
          [line["step"] for line in lines if "loss/noise_left" in line])


def test_the_example_is_as_short_as_the_page_says():
  assert list(files()) == ["my_lab/denoise.py", "my_lab/denoise_scenes.py", "my_lab/spread.py"]
  assert len(files()["my_lab/denoise.py"].splitlines()) < 60


@pytest.mark.slow
def test_the_example_trains_evaluates_and_its_coupled_term_is_exact_in_micro_batches(lab):
  losses, evaluated = train(lab, "runs/denoise")
  assert len(losses) == STEPS and losses[-1] < losses[0] and evaluated[-1] == STEPS
  spread = "--config.objective.name=my_lab.spread", "--config.evals={}"
  whole, _ = train(lab, "runs/spread", *spread)
  assert whole[0] > losses[0]
  parts, _ = train(lab, "runs/parts", *spread, "--config.micro_batches=2")
  np.testing.assert_allclose(parts, whole, rtol=1e-5)  # float32 sums in another order


def test_an_unknown_key_of_the_users_own_objective_is_named(lab, capsys):
  assert cli.main(["train", "--config=my_lab/denoise_scenes.py", "--workdir=runs/wrong",
                   "--config.objective.nois=1.0", "--config.data={'source': {'name': 'arrays', "
                   "'path': 'pictures.npz'}}", "--config.eval_data=None"]) == 2
  assert "objective.nois: unknown key; did you mean 'noise'?" in capsys.readouterr().err
