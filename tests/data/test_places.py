"""Data behind URLs: what is asked of the server, and what goes wrong there as one line."""

import functools
import http.server
import os
import sys
import threading
import time

import fsspec
from fsspec.implementations import memory
import pytest

from mmjax import cli
from mmjax.data import places, spec
from tests.conftest import needs
from tests.data import formats


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.mark.parametrize("protocol, module, extra", (("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3"),
                                                     ("https", "aiohttp", "http")))
def test_package_that_a_url_needs_is_named_with_its_extra(protocol, module, extra, monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, module, None)
  # What fsspec has loaded before stays loaded; now it looks anew.
  monkeypatch.setattr(sys.modules["fsspec.registry"], "_registry", {})
  monkeypatch.delitem(sys.modules, "fsspec.implementations.http", raising=False)
  assert cli.main(["data", "inspect", f"{protocol}://bucket/a.tar"]) == 2
  told = capsys.readouterr().err
  assert f"{protocol}://bucket/a.tar: needs a package" in told and f"pip install 'mmjax[{extra}]'" in told
  assert "Traceback" not in told


class Broken(fsspec.AbstractFileSystem):
  """Answers nothing."""

  protocol = "broken"

  def info(self, path, **kwargs):
    raise TimeoutError("no answer")

  ls = info


def test_server_that_does_not_answer_is_one_line():
  fsspec.register_implementation("broken", Broken, clobber=True)
  for call in (places.expand, places.names_in, places.size, places.stamp, places.read, places.is_there):
    with pytest.raises(ValueError, match="broken://a.tar cannot be reached: TimeoutError no answer") as told:
      call("broken://a.tar")
    assert "\n" not in str(told.value)


def test_disk_that_fails_is_one_line(tmp_path, monkeypatch, capsys):
  def refuse(path):
    raise OSError(5, "Input/output error", path)
  formats.write_tars(tmp_path / "data")
  monkeypatch.setattr(places, "names_in", refuse)
  assert cli.main(["data", "inspect", str(tmp_path / "data")]) == 2
  told = capsys.readouterr().err
  assert "Input/output error" in told and "Traceback" not in told


class Slow(memory.MemoryFileSystem):
  """Takes its time, and counts what it is asked."""

  protocol, asked = "slow", []
  store, pseudo_dirs = {}, [""]

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix("slow://"))

  def info(self, path, **kwargs):
    self.asked.append(path)
    time.sleep(0.02)
    return super().info(path, **kwargs)

  def cat_file(self, path, start=None, end=None, **kwargs):
    self.asked.append(path)
    return super().cat_file(path, start, end, **kwargs)


def test_shards_that_are_known_take_few_questions_many_at_a_time(tmp_path):
  fsspec.register_implementation("slow", Slow, clobber=True)
  folder, count = formats.write_tars(tmp_path / "data", count=100, shards=100), 100
  for name in os.listdir(folder):
    fsspec.filesystem("slow").pipe(f"/{name}", open(os.path.join(folder, name), "rb").read())
  text = f"tar:slow://{{{','.join(sorted(os.listdir(folder)))}}}"
  first = spec.open_source(text)
  Slow.asked.clear()
  began = time.monotonic()
  assert spec.open_source(text).digest == first.digest
  assert len(Slow.asked) <= 4 * count and time.monotonic() - began < 0.02 * len(Slow.asked) / 4


class Handler(http.server.SimpleHTTPRequestHandler):
  """Serves byte ranges."""

  def do_GET(self):
    data = open(self.translate_path(self.path), "rb").read()
    asked = self.headers.get("Range")
    first, last = (int(part) for part in asked.removeprefix("bytes=").split("-")) if asked else (0, len(data) - 1)
    part = data[first:last + 1]
    self.send_response(206 if asked else 200)
    self.send_header("Accept-Ranges", "bytes")
    self.send_header("Content-Length", str(len(part)))
    if asked:
      self.send_header("Content-Range", f"bytes {first}-{first + len(part) - 1}/{len(data)}")
    self.end_headers()
    self.wfile.write(part)

  def log_message(self, *args):
    pass


@pytest.fixture
def server(tmp_path):
  """The address of a web server of `tmp_path`."""
  needs("aiohttp")
  serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(tmp_path)))
  threading.Thread(target=serving.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{serving.server_port}"
  serving.shutdown()
  serving.server_close()


def test_shards_of_the_web_with_queries_of_their_own(server, tmp_path):
  formats.write_tars(tmp_path / "data", shards=2)
  here = spec.open_source(str(tmp_path / "data"))
  for text in (f"{server}/data/{{000,001}}.tar", f"{server}/data/{{000,001}}.tar?download=true",
               f"{server}/data/{{000,001}}.tar?caption=txt"):
    source = spec.open_source(text)
    assert len(source) == formats.COUNT and source.name == "000.tar and 1 more"
    assert [source[i]["image"] for i in range(len(source))] == [here[i]["image"] for i in range(len(here))]
    assert source.columns.caption == (("txt",) if text.endswith("=txt") else here.columns.caption)
  with pytest.raises(ValueError, match=f"there is no {server}/data/002.tar"):
    spec.open_source(f"{server}/data/002.tar?download=true")
  with pytest.raises(ValueError, match="127.0.0.1:1/a.tar.* cannot be reached|there is no http://127.0.0.1:1/a.tar"):
    spec.open_source("http://127.0.0.1:1/a.tar")
