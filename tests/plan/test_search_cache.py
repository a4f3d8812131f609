"""When two plans are the same, and what befalls their file."""

import pathlib

import pytest

from mmjax.plan import cache

CONFIG = {"batch_size": 8, "objective": {"name": "contrastive"}}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_PLAN_CACHE", str(tmp_path / "plans"))


def test_what_was_put_is_got():
  assert cache.get("a") is None
  cache.put("a", {"peak_gib": 1.5, "fits": True})
  assert cache.get("a") == {"peak_gib": 1.5, "fits": True} and cache.get("b") is None


def test_key_follows_config_topology_and_slices():
  keys = {cache.key(CONFIG, "v5e:2x2"), cache.key({**CONFIG, "batch_size": 16}, "v5e:2x2"),
          cache.key(CONFIG, "v5e:2x4"), cache.key(CONFIG, "v5e:2x2", slices=2)}
  assert len(keys) == 4
  assert cache.key(dict(reversed(CONFIG.items())), "v5e:2x2") in keys


@pytest.mark.parametrize("flag", ["XLA_FLAGS", "LIBTPU_INIT_ARGS"])
def test_key_follows_the_compilers_flags(flag, monkeypatch):
  before = cache.key(CONFIG, "v5e:2x2")
  monkeypatch.setenv(flag, "--xla_something=1")
  assert cache.key(CONFIG, "v5e:2x2") != before


def test_key_follows_the_versions(monkeypatch):
  before = cache.key(CONFIG, "v5e:2x2")
  monkeypatch.setattr(cache, "versions", lambda: {"jax": "0"})
  assert cache.key(CONFIG, "v5e:2x2") != before


def test_key_follows_the_users_own_module(tmp_path, monkeypatch):
  module = tmp_path / "my_objective.py"
  module.write_text("build = dict\n")
  monkeypatch.syspath_prepend(tmp_path)
  config = {"objective": {"name": "my_objective.build"}, "parts": [{"name": "nobody.knows"}]}
  before = cache.key(config, "v5e:2x2")
  module.write_text("build = list\n")
  assert cache.key(config, "v5e:2x2") != before


def test_key_follows_the_source(tmp_path, monkeypatch):
  package = tmp_path / "mmjax"
  (package / "plan").mkdir(parents=True)
  (package / "plan" / "cache.py").write_text("x = 1\n")
  monkeypatch.setattr(cache, "__file__", str(package / "plan" / "cache.py"))
  before = cache.source_digest({})
  (package / "new.py").write_text("y = 2\n")
  assert cache.source_digest({}) != before


def test_directory_is_the_users_cache(monkeypatch):
  monkeypatch.delenv("MMJAX_PLAN_CACHE")
  monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
  assert cache.directory() == pathlib.Path("/somewhere/mmjax/plan")
  monkeypatch.delenv("XDG_CACHE_HOME")
  assert cache.directory() == pathlib.Path.home() / ".cache/mmjax/plan"


def test_where_nothing_can_be_written_a_warning_is_all(tmp_path, monkeypatch, caplog):
  (tmp_path / "file").write_text("")
  monkeypatch.setenv("MMJAX_PLAN_CACHE", str(tmp_path / "file" / "plans"))
  cache.put("a", {})
  assert "is not kept" in caplog.text
