"""Generation as an evaluator: its figures by hand, and in a real session up to the report."""

import types

import numpy as np
import pytest

from mmjax import train
from mmjax.config import ConfigError
from mmjax.evals import generate
from mmjax.evals.generate import Generate
from mmjax.report import html
from mmjax.training.assemble import assemble
from mmjax.training.evaluate import Session
from tests.evals.fake import FakeSession

COUNT, SIDE, LENGTH = 20, 16, 5
VIT = {"name": "vit", "patch": 4, "width": 16, "depth": 1, "heads": 2, "pool": "mean",
       "position": "sincos", "scan": False}
GRID = {"name": "modality", "kind": "tokens", "grid": [4, 4]}
FOURM = {
    "name": "fourm", "encoder": VIT, "input_tokens": 8, "target_tokens": 8, "decoder_depth": 1,
    "modalities": {
        "image": {"name": "modality", "kind": "patches", "source": "image", "target_alpha": 0},
        "depth": {**GRID, "vocab": 8, "target": {"name": "depth_bins", "bins": 8}},
        "colours": {**GRID, "vocab": 27, "target": {
            "name": "tokens", "tokenizer": {"name": "palette", "patch": 4, "levels": 3}}},
        "text": {"name": "modality", "kind": "sequence", "source": "text", "vocab": 259,
                 "length": LENGTH}}}
MAGE = {
    "name": "mage", "mask": {"name": "variable"}, "decoding_steps": 2,
    "encoder": {**VIT, "patch": 1, "class_token": True,
                "tokenizer": {"name": "palette", "patch": 4, "levels": 3}},
    "decoder": {"name": "masked_decoder", "depth": 1, "width": 16, "heads": 2}}
CHAIN = [{"name": "Stage", "modality": "depth", "steps": 2, "guidance": 2.0},
         {"name": "Stage", "modality": "colours", "steps": 2}, {"name": "Stage", "modality": "text"}]


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def records(tmp_path_factory):
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp("data") / "records.npz"
  patches = lambda *channels: rng.uniform(0, 1, (COUNT, 4, 4, *channels)).astype(np.float32).repeat(
      4, axis=1).repeat(4, axis=2)
  np.savez(path, image=2 * patches(3) - 1, depth=1 + 19 * patches(1),
           text=rng.integers(70, 90, (COUNT, LENGTH)).astype(np.int32),
           text_mask=np.arange(LENGTH) < rng.integers(2, LENGTH + 1, (COUNT, 1)))
  return str(path)


def run_of(objective, records, **evals):
  stream = {"source": {"name": "arrays", "path": records}, "shuffle": False}
  return assemble({"seed": 1, "batch_size": 8, "total_steps": 8, "objective": objective,
                   "data": stream, "eval_data": stream, "evals": evals})


@pytest.fixture(scope="module")
def states(records):
  """Of 4M and of MAGE, untrained."""
  return [run_of(objective, records).create_state() for objective in (FOURM, MAGE)]


def evaluated(run, state, folder):
  """The figures, and what was kept: {file: {name: array}}."""
  session = Session(run, str(folder / "evals"))
  session.check(state)
  figures = train.evaluate(run, state, session)
  return figures, {path.stem: dict(np.load(path)) for path in (folder / "evals" / "0").iterdir()}


def test_figures_are_shares_of_the_true_ids():
  true = np.array([[1, 2, -1], [1, 0, 4], [3, 0, 4], [1, 2, 4]])
  made = np.array([[1, 0, 9], [1, 0, 4], [0, 0, -1], [0, 2, 4]])
  assert generate.accuracy(made, true) == 7 / 11
  np.testing.assert_array_equal(generate.majority(true), [1, 0, 4])  # the smallest of equals
  assert generate.majority(np.array([[-1]])) == [-1]


class Fake(FakeSession):
  """Makes what its records hold as `made`."""

  def generate(self, batch, condition, stages):
    true = {"ids": batch["ids"], "mask": batch["mask"]}
    return {"made": {"a": {"ids": batch["made"], "mask": np.ones_like(batch["mask"])}},
            "true": {"a": true}}


def test_invalid_and_further_records_do_not_count():
  ids = np.array([[0, 1], [5, 5], [2, 3], [2, 1], [0, 0]])
  made = np.array([[0, 9], [9, 9], [2, 9], [2, 9], [9, 9]])
  mask = np.array([[1, 0], [1, 1], [1, 1], [1, 1], [1, 1]]) > 0
  records = {"ids": ids, "made": made, "mask": mask,
             "valid": np.array([True, False, True, True, True]), "image": np.zeros((5, 2, 2, 3))}
  stage = types.SimpleNamespace(modality="a")
  got = Generate(stages=(stage,), condition=(), batch_size=2, max_records=3).run(Fake(records))
  assert got == {"records": 3, "a/accuracy": 3 / 5, "a/accuracy/majority": 3 / 5}


def test_a_chain_runs_in_a_session_and_its_pictures_reach_the_report(records, states, tmp_path):
  node = {"name": "generate", "stages": CHAIN, "show": 2}
  run = run_of(FOURM, records, whole={**node, "batch_size": COUNT},
               parts={**node, "batch_size": 8})
  figures, kept = evaluated(run, states[0], tmp_path)
  assert figures["whole/records"] == COUNT
  for name in ("depth", "colours", "text"):
    assert 0 <= figures[f"whole/{name}/accuracy"] < 0.5  # of an untrained model
    assert 0 < figures[f"whole/{name}/accuracy/majority"] < 1
    # What is drawn follows from the rows, not from the batches.
    assert figures[f"whole/{name}/accuracy"] == figures[f"parts/{name}/accuracy"]
  kept = kept["whole-generated"]
  assert kept["pictures"].shape == (2, 5, SIDE, SIDE, 3)
  assert list(kept["captions"]) == ["image, given", "depth, made", "depth, true", "colours, made",
                                    "colours, true"]
  with np.load(records) as data:
    ids, mask = data["text"][0], data["text_mask"][0]
    given = np.rint(255 * np.clip(data["image"][0], 0, 1))  # no Normalise: from 0 to 1 already
  np.testing.assert_array_equal(kept["pictures"][0, 0], given)
  assert kept["texts"][0].endswith("text, true: " + " ".join(map(str, ids[mask])))
  made, true = kept["pictures"][:, 1], kept["pictures"][:, 2]
  assert (made != true).any() and len(np.unique(true.reshape(-1, 3), axis=0)) > 2
  page = html.render(str(tmp_path))
  assert "<h2>Generated</h2>" in page and page.count("depth, made</figcaption>") == 4
  assert f"text, true: {' '.join(map(str, ids[mask]))}" in page


def test_generated_pictures_of_mage_have_a_distance_and_reach_the_report(records, states, tmp_path):
  stream = {"source": {"name": "arrays", "path": records}, "shuffle": False}
  node = {"name": "frechet", "reference": stream, "show": 3}
  run = run_of(MAGE, records, own={**node, "pictures": "image"},
               whole={**node, "pictures": "image/generated"},
               parts={**node, "pictures": "image/generated", "batch_size": 8})
  figures, kept = evaluated(run, states[1], tmp_path)
  assert abs(figures["own/distance"]) < 1e-6 < 1e-4 < figures["whole/distance"]
  np.testing.assert_allclose(figures["whole/distance"], figures["parts/distance"], rtol=1e-3)
  assert sorted(kept) == ["parts-generated", "whole-generated"]
  pictures = kept["whole-generated"]["pictures"]
  np.testing.assert_array_equal(pictures, kept["parts-generated"]["pictures"])
  assert pictures.shape == (2, 3, SIDE, SIDE, 3)
  assert set(np.unique(pictures[1])) <= {0, 255} and len(np.unique(pictures[1], axis=0)) == 3
  page = html.render(str(tmp_path))
  assert page.count("image/generated</figcaption>") == 6
  assert page.count("reference</figcaption>") == 6


@pytest.mark.parametrize("changes, message", [
    ({"stages": []}, r"evals.generate: stages: give a list"),
    ({"stages": [{"modality": "depth"}]}, r"evals.generate: stages: give a list"),
    ({"stages": [{**CHAIN[0], "step": 2}]}, r"evals.generate.stages.0.step: unknown key"),
    ({"stages": CHAIN, "max_records": 0}, r"evals.generate: max_records: must be at least 1"),
    ({"stages": CHAIN, "show": -1}, r"evals.generate: show: must be at least 0"),
])
def test_a_wrong_config_is_one_line_with_the_path(records, changes, message):
  with pytest.raises(ConfigError, match=f"^{message}") as error:
    run_of(FOURM, records, generate=changes)
  assert "\n" not in str(error.value)


def without_depth(records, tmp_path):
  with np.load(records) as data:
    np.savez(tmp_path / "less.npz", **{name: x for name, x in data.items() if name != "depth"})
  return {"source": {"name": "arrays", "path": str(tmp_path / "less.npz")}, "shuffle": False}


def test_what_the_model_or_the_records_do_not_have_is_named_before_the_run(
    records, states, tmp_path):
  less = without_depth(records, tmp_path)
  for message, objective, changes in [
      ("stages: .*'image' is there already", FOURM, {"stages": [{**CHAIN[2], "modality": "image"}]}),
      ("stages: .*Did you mean 'depth'", FOURM, {"stages": CHAIN, "condition": ["dept"]}),
      ("data: the records have no 'depth'", FOURM, {"stages": CHAIN, "data": less}),
      ("stages: this objective generates no modality", MAGE, {"stages": CHAIN})]:
    run = run_of(objective, records, generate=changes)
    with pytest.raises(ConfigError, match=f"^evals.generate.{message}") as error:
      Session(run).check(states[objective is MAGE])
    assert "\n" not in str(error.value)
