"""`data.train`, `data.eval` and `data.tokenizer`: one's own data in any recipe."""

import json
import logging

import numpy as np
import pytest

from mmjax import cli
from mmjax import config as config_lib
from mmjax import train as train_lib
from mmjax.data.stream import DataError
from mmjax.training import user_data
from mmjax.training.assemble import assemble
from mmjax.training.streams import make_stream
from tests.data import formats

OTHERS = {  # what they read that the shards below do not have
    "finetune/classify": "the data do not say how many classes 'label' has",
    "masked/multimae": "DecodeDepth.*the record has no 'depth'; it has caption, id, image, label",
    "masked/fourm": "DecodeDepth.*the record has no 'depth'; it has caption, id, image, label",
    "masked/mae_st": "Decode.*the record has no 'video'; it has caption, id, image, label"}
RECIPES = [name for name in config_lib.shipped() if name not in OTHERS]


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(name="shards", scope="module")
def _shards(tmp_path_factory):
  return formats.write_tars(tmp_path_factory.mktemp("data") / "shards", count=80)


def resolved(recipe, **data):
  return user_data.resolve(config_lib.load(f"{recipe}:smoke", {f"data.{k}": v for k, v in data.items()}))


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_reads_them_and_nothing_of_the_built_in_data_is_left(recipe, shards, caplog):
  caplog.set_level(logging.INFO)
  config = resolved(recipe, train=shards)
  told = json.dumps(config)
  assert "scenes" not in told.replace('"tokenizer": "scenes"', "")
  assert not set(user_data.BUILT_IN) & set(told.split('"'))
  stream, _ = make_stream(config["data"], "data")
  assert len(stream) == 76 and stream.record(0)["valid"]
  if "eval_data" in config:
    held_out, _ = make_stream(config["eval_data"], "eval_data")
    assert len(held_out) == 4 and held_out.record(0)["valid"]
  assert "5% of the records, at most 5,000, are left out of training" in caplog.text


@pytest.mark.parametrize("recipe", OTHERS)
def test_records_that_lack_what_a_recipe_reads_are_refused_in_one_line(recipe, shards):
  with pytest.raises((config_lib.ConfigError, DataError), match=OTHERS[recipe]) as error:
    assemble(config_lib.load(f"{recipe}:smoke", {"data.train": shards}))
  assert "\n" not in str(error.value)


@pytest.fixture(name="fitting", scope="module")
def _fitting(tmp_path_factory):
  """{recipe: data that it can read, with more in them than it reads}."""
  root, draw = tmp_path_factory.mktemp("fitting"), np.random.default_rng(0)
  numbers = lambda dtype, most, *shape: draw.integers(0, most, (40, *shape)).astype(dtype)
  captions = np.array([formats.caption(i) for i in range(40)])
  np.savez(root / "maps.npz", image=numbers(np.uint8, 256, 24, 20, 3), depth=numbers(np.uint16, 5000, 24, 20),
           semantic=numbers(np.uint8, 5, 24, 20), caption=captions)
  np.savez(root / "clips.npz", video=numbers(np.uint8, 256, 8, 24, 20, 3), caption=captions)
  maps, classes = str(root / "maps.npz"), formats.write_classes(root / "classes", count=60)
  return {"finetune/classify": classes, "masked/multimae": maps, "masked/fourm": maps,
          "masked/mae_st": str(root / "clips.npz")}


@pytest.mark.parametrize("recipe", OTHERS)
def test_recipes_of_maps_clips_and_classes_read_data_that_have_them(recipe, fitting):
  run = assemble(config_lib.load(f"{recipe}:smoke", {"data.train": fitting[recipe]}))
  assert run.stream.record(0)["valid"] and run.eval_stream.record(0)["valid"]
  assert "label" in run.stream.spec if recipe == "finetune/classify" else "label" not in run.stream.spec


@pytest.mark.slow
@pytest.mark.parametrize("recipe", (*OTHERS, "finetune/retrieve"))
def test_they_train_and_evaluate(recipe, fitting, shards, tmp_path):
  settings = {"data.train": fitting.get(recipe, shards), "total_steps": "1", "batch_size": "8"}
  config = config_lib.load(f"{recipe}:smoke", settings)
  for node in config["evals"].values():
    if "batch_size" in node:
      node["batch_size"] = 8
  results = train_lib.train(config, str(tmp_path))
  assert results and all(np.isfinite(list(results.values())))


def test_held_out_data_and_tokenizer_that_are_given(shards, caplog):
  caplog.set_level(logging.INFO)
  config = resolved("contrastive/siglip", train=f"{shards}[:50%]", eval=f"{shards}[50%:]", tokenizer="bytes")
  assert config["data"]["source"] == {"name": "tar", "path": shards, "part": "[:50%]"}
  assert config["eval_data"]["source"]["part"] == "[50%:]"
  assert config["evals"]["retrieval"]["data"]["source"] == config["eval_data"]["source"]
  assert "scenes" not in json.dumps(config) and not set(user_data.KEYS) & set(config["data"])
  assert config["data"]["shuffle"] and "mixture" not in config["data"]
  assert "evals: left out, for they read labels of the built-in data: both, colour, shape" in caplog.text


def test_without_them_a_config_stays_as_it_is():
  config = config_lib.load("contrastive/siglip:smoke")
  assert user_data.resolve(config) is config


def test_evaluation_data_alone_leave_the_training_data(shards):
  config = resolved("masked/mae", eval=shards)
  assert config["data"]["source"]["name"] == "scenes" and config["eval_data"]["source"]["name"] == "tar"


def test_classes_and_their_number_are_those_of_the_folders(tmp_path):
  config = resolved("supervised/vit", train=formats.write_classes(tmp_path))
  assert config["objective"]["label"] == "label" and config["objective"]["model"]["classes"] == "data.classes"
  assert config["evals"]["classification"]["label"] == "label"


@pytest.mark.parametrize("value, why", (
    ("none.tar", "data.train: there is no none.tar"), ("3", "data.train: there is no 3|expected a text"),
    ("tfds:", "data.train: is empty"), ("scenes:trian", "data.source: .*the nearest is 'train'")))
def test_spec_that_leads_nowhere_is_one_line(value, why, tmp_path):
  with pytest.raises(config_lib.ConfigError, match=why):
    train_lib.train(config_lib.load("masked/mae:smoke", {"data.train": value}), str(tmp_path))


def test_records_without_what_a_recipe_reads_say_what_is_missing(tmp_path):
  config = resolved("contrastive/siglip", train=formats.write_classes(tmp_path))
  stream, _ = make_stream(config["data"], "data")
  with pytest.raises(Exception, match="SampleCaption.*the record has no 'caption'; it has image, label"):
    stream.spec


@pytest.mark.slow
def test_the_first_lines_of_the_documentation_on_a_folder_with_broken_files(tmp_path, monkeypatch, capsys):
  """The five commands at the top of docs/data.md, with fewer steps."""
  monkeypatch.chdir(tmp_path)
  good = formats.write_pictures(tmp_path / "pictures", count=60)
  for name, data in (("truncated", formats.picture(0)[:200]), ("empty", b""), ("text", b"not a picture")):
    (tmp_path / "pictures" / f"{name}.jpg").write_bytes(data)
    (tmp_path / "pictures" / f"{name}.txt").write_text("a red cube")
  assert cli.main(["data", "inspect", good]) == 0
  printed = capsys.readouterr().out
  assert "JPEG RGB: 60" in printed and "broken  3 (4.76%)" in printed
  for name in ("truncated", "empty", "text"):
    assert f"{name}.jpg: " in printed
  assert cli.main(["data", "inspect", good, "--config=contrastive/siglip:smoke"]) == 0
  assert "of 32 tokens]" in (tmp_path / "data_inspect" / "inspect.html").read_text(encoding="utf-8")
  assert cli.main(["train", "--config=contrastive/siglip:smoke", f"--config.data.train={good}", "--workdir=runs/mine",
                   "--config.data.max_bad_fraction=0.2", "--config.total_steps=8", "--config.batch_size=16",
                   "--config.evals.loss.batch_size=2"]) == 0
  run = tmp_path / "runs" / "mine"
  lines = (run / "metrics.jsonl").read_text()
  assert "retrieval/i2t/R@1" in lines and (run / "report.html").exists()
  capsys.readouterr()
  assert cli.main(["eval", "--workdir=runs/mine"]) == 0
  assert "step 8" in capsys.readouterr().out
  (run / "report.html").unlink()
  assert cli.main(["report", "--workdir=runs/mine"]) == 0 and (run / "report.html").exists()


@pytest.mark.slow
def test_a_folder_of_pictures_trains_and_evaluates(tmp_path, shards):
  settings = {"data.train": shards, "total_steps": "4", "batch_size": "8", "evals.loss.batch_size": "2"}
  train_lib.train(config_lib.load("contrastive/siglip:smoke", settings), str(tmp_path / "run"))
  lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
  assert any("retrieval/i2t/R@1" in line for line in lines)
  kept = json.loads((tmp_path / "run" / "config.json").read_text())
  assert kept["data"]["source"] == {"name": "tar", "path": shards, "part": "[train]"}
