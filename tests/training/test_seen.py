"""`mmjax data seen` and mixtures in a config: weights, caps, temperature, epochs."""

import pytest

from mmjax import cli
from mmjax import config as config_lib
from mmjax.training import assemble, streams
from tests.data import formats


@pytest.fixture(name="mixture")
def _mixture(tmp_path, monkeypatch):
  """{data.mixture...: text} of two sets of 30 and 10 records."""
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))
  settings = {}
  for name, count in (("large", 30), ("small", 10)):
    formats.write_tars(tmp_path / name, count=count)
    settings[f"data.mixture.{name}.source"] = f"{{'name': 'tar', 'path': '{tmp_path / name}'}}"
    settings[f"data.mixture.{name}.transforms"] = (
        "[{'name': 'Decode'}, {'name': 'Resize', 'size': 64}, {'name': 'Normalise', 'preset': 'half'}, "
        "{'name': 'Keep', 'keys': ['image']}]")
  return {"data": "None", **settings, "total_steps": "10", "batch_size": "8"}


def load(settings):
  return config_lib.load("masked/mae:smoke", settings)


def test_shares_by_temperature_and_cap(mixture):
  rows, shares = assemble.seen(load({**mixture, "data.temperature": "1"}))
  assert rows == 80 and [share.rows for share in shares] == [60, 20]
  _, shares = assemble.seen(load({**mixture, "data.temperature": "1", "data.mixture.large.cap": "10"}))
  assert [share.rows for share in shares] == [40, 40]
  stream, _ = streams.make_stream(load({**mixture, "data.temperature": "1"})["data"], "data")
  assert stream.record(0)["valid"]


def test_epochs_end_a_part(mixture, capsys):
  settings = {**mixture, "data.mixture.large.weight": "1", "data.mixture.small.weight": "1",
              "data.mixture.small.epochs": "2"}
  argv = [f"--config.{path}={text}" for path, text in settings.items()]
  assert cli.main(["data", "seen", "--config=masked/mae:smoke", *argv]) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == "80 rows in the whole run"
  assert "2.00  2 times" in lines[2]
  assert "2.00  2 times; used up at row 40" in lines[3]


def test_a_run_longer_than_its_mixture_is_refused(mixture):
  settings = {**mixture, **{f"data.mixture.{name}.{key}": "1" for name in ("large", "small")
                            for key in ("weight", "epochs")}}
  with pytest.raises(config_lib.ConfigError, match="total_steps: 10 steps read 80 rows, but the mixture has 40"):
    assemble.seen(load(settings))
  with pytest.raises(config_lib.ConfigError, match="total_steps: 10 steps read 80 rows"):
    assemble.assemble(load(settings))


@pytest.mark.parametrize("setting, why", (
    ({}, "data.mixture.large.weight: is missing; without a data.temperature each part needs one"),
    ({"data.mixture.large.weight": "1", "data.mixture.small.weight": "1", "data.mixture.small.cap": "3"},
     "data.mixture: a cap counts with a temperature only"),
    ({"data.temperature": "0.5"}, "data: temperature: must be at least 1, not 0.5"),
    ({"data.temperature": "1", "data.mixture.large.epochs": "'x'"}, "data.mixture.large.epochs: expected float"),
    ({"data.temperature": "1", "data.mixture.large.epoch": "1"}, "data.mixture.large.epoch: unknown key; did you")))
def test_wrong_mixtures_are_one_line(mixture, setting, why):
  with pytest.raises(config_lib.ConfigError, match=why):
    assemble.seen(load({**mixture, **setting}))
