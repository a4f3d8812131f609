"""The build as a Beam pipeline comes to the same end as that on this machine."""

import json
import os
import subprocess
import sys

import fsspec
import pytest

from mmjax.data import spec
from mmjax.data.build import beam, command
from mmjax.data.build.settings import Settings
from tests.conftest import needs
from tests.data import formats

SETTINGS = Settings(min_words=2, dedup="perceptual", resize=16, shard_records=7)


@pytest.fixture
def shards(tmp_path, monkeypatch):
  """Tar shards with duplicates and broken pictures, in several blocks."""
  needs("apache_beam")
  monkeypatch.setattr(command, "BLOCK", 6)
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))
  folder = tmp_path / "pictures"
  folder.mkdir()
  for i in range(40):
    file = formats.picture(i if i % 9 else 0)
    (folder / f"{i:03}.jpg").write_bytes(file[:60] if i in (3, 20) else file)
    (folder / f"{i:03}.txt").write_text("short" if i == 5 else formats.caption(i))
  return str(folder)


def test_result_is_that_of_a_build_on_this_machine(shards, tmp_path):
  here = command.build(spec.open_source(shards), str(tmp_path / "here"), SETTINGS, processes=0)
  there = beam.build(shards, str(tmp_path / "there"), SETTINGS)
  assert there == here and here["counts"]["broken"] == 2 and here["counts"]["duplicate"] > 0
  assert len(here["shards"]) > 3
  for name in ("broken.jsonl", "manifest.json"):
    one, other = ((tmp_path / place / name).read_text() for place in ("here", "there"))
    assert one.strip() == other.strip()
  one, other = (spec.open_source(str(tmp_path / place)) for place in ("here", "there"))
  assert [one[i] for i in range(len(one))] == [other[i] for i in range(len(other))]


def test_result_may_lie_behind_a_url(shards, tmp_path):
  here = command.build(spec.open_source(shards), str(tmp_path / "here"), SETTINGS, processes=0)
  out = f"memory://built-{os.getpid()}"
  assert beam.build(shards, out, SETTINGS, ["--runner=DirectRunner"])["digest"] == here["digest"]
  files = fsspec.filesystem("memory")
  for line in here["shards"]:
    assert files.cat_file(f"{out}/{line['file']}") == (tmp_path / "here" / line["file"]).read_bytes()


def test_nothing_kept_and_a_result_that_is_there_are_refused(shards, tmp_path):
  with pytest.raises(ValueError, match="none of the 40 records is kept: 0 kept, 2 broken, 38 smaller"):
    beam.build(shards, str(tmp_path / "none"), Settings(min_side=900))
  (tmp_path / "full").mkdir()
  (tmp_path / "full" / "manifest.json").write_text("{}")
  with pytest.raises(ValueError, match="full: holds a manifest.json; give a new folder"):
    beam.build(shards, str(tmp_path / "full"), SETTINGS)


def test_without_the_package_it_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "apache_beam", None)
  with pytest.raises(ValueError, match=r"beam: needs the package apache-beam .pip install 'mmjax\[beam\]'"):
    beam.build(str(tmp_path), str(tmp_path / "out"), Settings())


@pytest.mark.slow
def test_worker_processes_of_the_runner_and_the_command_line(shards, tmp_path):
  here = command.build(spec.open_source(shards), str(tmp_path / "here"), SETTINGS, processes=0)
  flags = "--runner=DirectRunner --direct_num_workers=2 --direct_running_mode=multi_processing"
  done = subprocess.run(
      [sys.executable, "-m", "mmjax", "data", "build", shards, f"--out={tmp_path / 'out'}", "--min_words=2",
       "--dedup=perceptual", "--resize=16", "--shard_records=7", f"--beam={flags}"],
      env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True, timeout=300)
  assert done.returncode == 0, done.stderr
  assert f"digest {here['digest'][:16]}" in done.stdout
  assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == here
