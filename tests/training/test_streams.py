"""A run without its data: the shapes are those of the real records, and nothing is read or built."""

import pytest

from mmjax import config as config_lib
from mmjax.config import ConfigError
from mmjax.data.sources import scenes
from mmjax.training import streams
from mmjax.training.assemble import assemble
from tests.training import tiny

FOLDER = {"source": {"name": "folder", "path": "nowhere"},
          "transforms": [{"name": "Decode"}, {"name": "Resize", "size": 32}, {"name": "ToFloat"},
                         {"name": "Keep", "keys": ["image", "label"]}]}


@pytest.fixture(autouse=True)
def nothing_may_be_built(monkeypatch):
  def refuse(*args, **kwargs):
    raise AssertionError("the dataset was built")
  monkeypatch.setattr(scenes.builder, "prepare", refuse)


@pytest.mark.parametrize("name", ["contrastive/siglip:smoke", "supervised/vit:smoke", "finetune/classify:smoke"])
def test_a_shipped_config_is_assembled_without_data(name):
  run = assemble(config_lib.load(name), example_data=True)
  assert run.abstract_batch["image"].shape[1:] == (64, 64, 3)
  assert streams.count_records(run.stream) > 0


def test_an_example_has_the_form_and_the_names_of_real_records(monkeypatch, tmp_path):
  monkeypatch.undo()
  given = dict(split="test", size=32, count=40, objects=(2, 4), keys=scenes.KEYS + ("depth", "question"))
  real = scenes.build(data_dir=str(tmp_path), **given)
  example = scenes.example(data_dir="never read", **given)
  ours, theirs = example[0], real[0]
  assert ours.keys() == theirs.keys()
  assert {key: type(value) for key, value in ours.items()} == {
      key: type(value) for key, value in theirs.items()}
  assert 2 <= ours["num_objects"] <= 4
  assert len(example) == 4  # those of the split, of any number of objects
  for key in scenes.LABELS + ("caption",):
    assert example.class_names(key) == real.class_names(key)


@pytest.mark.parametrize("objects", [0, 6, (4, 2)])
def test_objects_that_no_scene_has_are_an_error(objects):
  with pytest.raises(ValueError, match="no record has .* objects"):
    scenes.example(objects=objects)


def test_data_out_of_reach_are_stood_in_for_with_a_warning(caplog):
  stream, _ = streams.make_stream(FOLDER, "data", example_data=True)
  assert stream.spec["image"].shape == (32, 32, 3) and stream.spec["label"].shape == ()
  assert "data.source: out of reach here" in caplog.text and "nowhere" in caplog.text
  assert streams.is_stand_in(stream, FOLDER)


def test_an_epoch_of_data_out_of_reach_cannot_be_counted():
  config = {**tiny.config("nowhere.npz", total_steps=None), "data": FOLDER, "total_epochs": 3}
  with pytest.raises(ConfigError, match="total_epochs: cannot be counted here; give total_steps"):
    assemble(config, example_data=True)


def test_a_wrong_argument_is_an_error_without_the_data_too():
  node = {**FOLDER, "source": {"name": "folder", "paht": "nowhere"}}
  with pytest.raises(ConfigError, match="data.source.paht"):
    streams.make_stream(node, "data", example_data=True)


def test_synthetic_data_train_like_any_other():
  source = {"name": "synthetic", "size": 48, "classes": 3, "count": 10}
  stream, _ = streams.make_stream({**FOLDER, "source": source}, "data")
  records = [stream.record(row) for row in range(20)]
  assert {int(record["label"]) for record in records} == {0, 1, 2}
  assert all(record["valid"] for record in records)
  assert stream.source.class_names("label") == ("0", "1", "2")
  assert not streams.is_stand_in(stream, {**FOLDER, "source": source})
  with pytest.raises(ConfigError, match="data.source: size: must be at least 1"):
    streams.make_stream({**FOLDER, "source": {**source, "size": 0}}, "data")
