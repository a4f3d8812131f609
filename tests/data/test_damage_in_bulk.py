"""Damaged files through what reads data in bulk, with processes: rows are kept and counted, and nothing hangs."""

import json

import jax
from jax.sharding import NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from mmjax.data import loader, spec, stream
from mmjax.data import transforms as T
from mmjax.data.build import command
from mmjax.data.build.settings import Settings
from tests.data import damage, formats

GOOD, DAMAGED, B = 300, 300, 24  # more than a block of the build
READ = (T.Decode(), T.RandomResizedCrop(8), T.Normalise("half"), T.Keep(("image",)))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of Pillow's, about TIFF tags


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(name="folder", scope="module")
def _folder(tmp_path_factory):
  """Good pictures and the damaged files, each with a caption beside it."""
  root = tmp_path_factory.mktemp("crawl")
  good = [(f"good{i}", formats.picture(i)) for i in range(GOOD)]
  for name, data in (*good, *damage.files(DAMAGED)):
    (root / f"{name}.jpg").write_bytes(data)
    (root / f"{name}.txt").write_text(f"caption of {name}")
  return str(root)


def readable(source):
  """The ids of the records whose pictures are read in this process."""
  records = stream.Stream(source, READ, shuffle=False)
  return {source[i]["id"] for i in range(len(source)) if records.record(i)["valid"]}


def test_build_with_processes_keeps_what_can_be_read_and_lists_the_rest(folder, tmp_path):
  source = spec.open_source(folder)
  good = readable(source)
  assert GOOD <= len(good) < GOOD + DAMAGED
  counts = command.build(source, str(tmp_path / "out"), Settings(), processes=2)["counts"]
  broken = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
  assert counts["kept"] + len(broken) == GOOD + DAMAGED
  kept = spec.open_source(str(tmp_path / "out"))
  assert {kept[i]["id"] for i in range(len(kept))} == good and len(kept) == counts["kept"]


def test_worker_processes_keep_the_rows_of_damaged_files_and_count_them(folder, caplog):
  source = spec.open_source(folder)
  records = stream.Stream(source, READ, max_bad_fraction=1.0)
  sharding = NamedSharding(jax.make_mesh((8,), ("data",)), P("data"))
  steps, valid, rows = (GOOD + DAMAGED) // B, [], []
  with caplog.at_level("WARNING"), loader.train_batches(records, B, sharding, workers=2) as batches:
    for _ in range(steps):
      _, batch = next(batches)
      valid.append(np.asarray(batch["valid"]))
      rows.append(np.asarray(batch["row"])[:, 1])
      assert not np.asarray(batch["image"])[~valid[-1]].any()
  assert np.array_equal(np.concatenate(rows), np.arange(GOOD + DAMAGED))
  assert np.concatenate(valid).sum() == len(readable(source))
  assert f"{GOOD + DAMAGED - np.concatenate(valid).sum()} of {GOOD + DAMAGED} rows so far" in caplog.text
