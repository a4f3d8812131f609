"""`mmjax data build`: what is kept, and that a build that was killed comes to the same end."""

import datetime
import decimal
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import parquet
import pytest

from mmjax.data import hashes, part, spec
from mmjax.data.build import command, form
from mmjax.data.build.settings import Settings
from tests.conftest import needs
from tests.data import damage, formats


def built(records, tmp_path, **settings):
  """(records of the result, manifest)."""
  out = tmp_path / "out"
  manifest = command.build(formats.Records(records), str(out), Settings(**settings), processes=0)
  source = spec.open_source(str(out))
  assert source.digest == manifest["digest"]
  return [source[i] for i in range(len(source))], manifest


def smooth(seed, height=40, width=60):
  small = np.random.default_rng(seed).integers(0, 255, (5, 6, 3)).astype(np.uint8)
  return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image, form="JPEG", **settings):
  return damage._saved(image, form, **settings)


def test_all_is_kept_as_it_is_without_steps(tmp_path):
  records = [{"id": f"r{i}", "image": formats.picture(i), "caption": [formats.caption(i)], "label": i,
              "score": 0.5, "tags": ["a", "b"], "none": None, "more": {"x": [1, 2]}} for i in range(7)]
  kept, manifest = built(records, tmp_path, shard_records=3)
  assert [one["image"] for one in kept] == [one["image"] for one in records]
  assert kept[2] == {"id": "r2", "image": formats.picture(2), "caption": [formats.caption(2)], "label": 2,
                     "score": 0.5, "tags": [b"a", b"b"], "more": b'{"x": [1, 2]}'}
  assert manifest["counts"]["kept"] == 7 and [one["records"] for one in manifest["shards"]] == [3, 2, 2]
  assert sorted(os.listdir(tmp_path / "out")) == [
      "broken.jsonl", "build.json", "manifest.json", *(f"train.array_record-0000{i}-of-00003" for i in range(3))]


def test_steps_leave_out_what_they_say_and_count_it(tmp_path):
  good = encoded(smooth(0))
  records = [
      {"image": good, "caption": ["a red cube"]},
      {"image": good[:100], "caption": ["a red cube"]},
      {"image": encoded(smooth(1, 20, 60)), "caption": ["too small a picture"]},
      {"image": encoded(smooth(2, 40, 200)), "caption": ["too wide a picture"]},
      {"image": encoded(smooth(3)), "caption": ["short"]},
      {"image": encoded(smooth(4)), "caption": []},
      {"image": encoded(smooth(5)), "caption": ["see www.shop.example for more", "a blue cone"]},
      OSError("disc failure"),
      {"image": good, "caption": ["the same file again"]}]
  kept, manifest = built(records, tmp_path, min_side=30, max_aspect=4.0, min_words=2, exclude=(r"www\.",),
                         dedup="exact")
  assert [one["caption"] for one in kept] == [["a red cube"], ["a blue cone"]]
  assert manifest["counts"] == {"kept": 2, "broken": 2, "smaller than min_side": 1, "beyond max_aspect": 1,
                                "no caption that passes": 2, "no caption in the languages": 0, "duplicate": 1}
  broken = [json.loads(line) for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
  assert [one["record"] for one in broken] == [1, 7] and broken[1]["error"] == "OSError: disc failure"


def test_pictures_that_look_alike_are_kept_once(tmp_path):
  records = [{"image": encoded(smooth(0))}, {"image": encoded(smooth(0), quality=40)},
             {"image": encoded(smooth(1))}, {"image": encoded(smooth(0).resize((30, 20)), "PNG")}]
  kept, manifest = built(records, tmp_path, dedup="perceptual")
  assert [one["image"] for one in kept] == [records[0]["image"], records[2]["image"]]
  assert manifest["counts"]["duplicate"] == 2


@pytest.mark.parametrize("dedup", ("exact", "perceptual"))
def test_records_without_a_picture_are_no_duplicates(dedup, tmp_path, monkeypatch):
  monkeypatch.setattr(hashes, dedup, lambda picture: 0)  # as the perceptual hash of one colour is
  black = encoded(Image.new("RGB", (32, 32)), "PNG")
  records = [{"caption": [f"text {i}"]} for i in range(5)] + [{"image": black}, {"image": black}]
  kept, manifest = built(records, tmp_path, dedup=dedup)
  assert len(kept) == 6 and manifest["counts"]["duplicate"] == 1


def test_captions_in_other_languages_are_left_out(tmp_path):
  needs("py3langid")
  texts = ["a small dog runs over the green grass", "un petit chien court dans l'herbe verte",
           "ein kleiner Hund rennt über das grüne Gras"]
  kept, manifest = built([{"caption": [text]} for text in texts], tmp_path, languages=("en", "de"))
  assert [one["caption"] for one in kept] == [[texts[0]], [texts[2]]]
  assert manifest["counts"]["no caption in the languages"] == 1


def write_alt(root, form, count=400):
  """Captions `alt` and, of three in four records, `synthetic`; a source's file."""
  rows = [{"alt": f"alt {i}", **({"synthetic": [f"synthetic {i}"]} if i % 4 else {})} for i in range(count)]
  root.mkdir(exist_ok=True)
  if form == "jsonl":
    (root / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  else:
    with tarfile.open(root / "a.tar", "w") as archive:
      for i, row in enumerate(rows):
        formats.add(archive, f"{i:04}.txt", b"text")
        formats.add(archive, f"{i:04}.json", json.dumps(row).encode())
  return spec.open_source(str(root / f"a.{form}"))


@pytest.mark.parametrize("form", ("jsonl", "tar"))
def test_captions_are_mixed_by_weight_from_those_that_a_record_has(form, tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))
  source = write_alt(tmp_path / "data", form)
  assert source[1]["caption"] == ["text" if form == "tar" else "alt 1"]

  def words(name, one=source, captions=("alt=1", "synthetic=3"), seed=0):
    out = str(tmp_path / name)
    command.build(one, out, Settings(captions=captions, min_words=1, seed=seed), processes=0)
    kept = spec.open_source(out)
    assert not {text.partition("=")[0] for text in captions} & set(kept[1])
    return [kept[i]["caption"][0].split()[0] for i in range(len(kept))]
  found = words("out")
  assert len(found) == 400 and set(found[::4]) == {"alt"}
  share = np.mean([word == "synthetic" for i, word in enumerate(found) if i % 4])
  assert abs(share - 0.75) < 0.08  # 3 standard deviations of 300 draws
  assert words("again") == found and words("other", seed=1) != found
  assert set(words("part", part.cut(source, "[:50%]"))) == {"alt", "synthetic"}
  if form == "tar":  # the caption that the source would take is one to draw, too
    assert set(words("txt", captions=("txt=1", "alt=1"))) == {"text", "alt"}


def test_column_of_captions_that_no_record_has_is_refused(tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))
  with pytest.raises(ValueError, match="captions: no record has a column 'synthtic'; `mmjax data inspect`"):
    command.build(write_alt(tmp_path, "jsonl", 20), str(tmp_path / "out"),
                  Settings(captions=("alt=1", "synthtic=1")), processes=0)


def test_values_that_cannot_be_stored_are_broken_records_and_others_have_a_plain_form(tmp_path):
  day = datetime.datetime(2024, 2, 29, 12, 30)
  plain = {"caption": ["a", None, b"b", 5], "day": day, "price": decimal.Decimal("1.50"), "tags": ["x", None],
           "days": [day.date()], "good": np.bool_(True), "image": np.arange(60, dtype=np.uint8).reshape(4, 5, 3)}
  kept, manifest = built([plain, {"caption": ["\ud800"]}, {"number": 2**63}, {"depth": np.zeros((2, 3))},
                          {"more": {"x": "\udfff"}}], tmp_path)
  image = kept[0].pop("image")
  assert np.array_equal(form._decode({"image": image}, None)["image"], plain["image"])
  assert kept == [{"caption": ["a", "b", "5"], "day": b"2024-02-29T12:30:00", "price": b"1.50", "tags": b"x",
                   "days": b'["2024-02-29"]', "good": 1}]
  assert manifest["counts"]["broken"] == 4
  broken = [json.loads(line)["error"] for line in (tmp_path / "out" / "broken.jsonl").read_text().splitlines()]
  for error, why in zip(broken, ("'caption' cannot be stored: .*surrogates", "'number' cannot be stored",
                                 r"'depth' cannot be stored: an array float64 \[2, 3\]; only pictures",
                                 "'more' cannot be stored: .*surrogates")):
    assert re.search(why, error)
  with pytest.raises(ValueError, match=r"none of the 1 records .* 1 broken; the first .* record 0, .*'depth' cannot"):
    built([{"depth": np.zeros((2, 3))}], tmp_path / "none")


def test_columns_of_a_parquet_file_are_stored_and_a_broken_record_is_told_with_its_file(tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))
  rows = [{"text": "a", "at": datetime.datetime(2024, 1, 1), "day": datetime.date(2024, 1, 2), "id": i,
           "price": decimal.Decimal("1.50")} for i in (1, 2**63)]
  types = [("text", pa.string()), ("at", pa.timestamp("us")), ("day", pa.date32()), ("id", pa.uint64()),
           ("price", pa.decimal128(9, 2))]
  parquet.write_table(pa.Table.from_pylist(rows, pa.schema(types)), tmp_path / "a.parquet")
  command.build(spec.open_source(str(tmp_path / "a.parquet")), str(tmp_path / "out"), Settings(), processes=0)
  assert spec.open_source(str(tmp_path / "out"))[0] == {
      "caption": ["a"], "at": b"2024-01-01T00:00:00", "day": b"2024-01-02", "id": 1, "price": b"1.50"}
  told = json.loads((tmp_path / "out" / "broken.jsonl").read_text())
  assert told["record"] == 1 and told["error"].startswith("a.parquet, row 1: ValueError: 'id' cannot be stored")


def test_picture_too_long_for_a_jpeg_is_a_broken_record(tmp_path):
  records = [{"image": encoded(Image.new("L", (70_000, 50)), "PNG")}, {"image": encoded(smooth(0))}]
  kept, manifest = built(records, tmp_path, resize=49)
  assert len(kept) == 1 and manifest["counts"]["broken"] == 1


def test_large_pictures_are_made_smaller_and_others_left(tmp_path):
  records = [{"image": encoded(smooth(0, 100, 150))}, {"image": encoded(smooth(1, 40, 40), "PNG")}]
  kept, _ = built(records, tmp_path, resize=50)
  assert form._decode(dict(kept[0]), None)["image"].shape == (50, 75, 3)
  assert kept[1]["image"] == records[1]["image"]


class Interrupted(Exception):
  pass


@pytest.mark.parametrize("where", ("_scan_block", "_write_shard"))
def test_an_interrupted_build_goes_on_where_it_was_to_the_same_digest(where, tmp_path, monkeypatch):
  monkeypatch.setattr(command, "BLOCK", 5)
  records = formats.Records([{"image": formats.picture(i % 20)} for i in range(24)])
  settings = Settings(dedup="exact", shard_records=4)
  whole = command.build(records, str(tmp_path / "whole"), settings, processes=0)
  real, calls = getattr(command, where), []

  def failing(*args):
    calls.append(args[-1])
    if len(calls) == 3:
      raise Interrupted
    return real(*args)
  monkeypatch.setattr(command, where, failing)
  with pytest.raises(Interrupted):
    command.build(records, str(tmp_path / "out"), settings, processes=0)
  assert not (tmp_path / "out" / "manifest.json").exists()
  assert command.build(records, str(tmp_path / "out"), settings, processes=0) == whole
  assert len(calls) == 6  # five blocks or shards, of which one was begun twice


def test_a_build_that_was_killed_as_it_began_goes_on(tmp_path, monkeypatch):
  records, real = formats.Records([{"image": formats.picture(0)}]), os.replace

  def killed(*names):
    monkeypatch.setattr(os, "replace", real)
    raise Interrupted
  monkeypatch.setattr(os, "replace", killed)
  with pytest.raises(Interrupted):
    command.build(records, str(tmp_path / "out"), Settings(), processes=0)
  assert [name.rpartition(".")[0] for name in os.listdir(tmp_path / "out")] == [".build.json"]
  assert command.build(records, str(tmp_path / "out"), Settings(), processes=0)["counts"]["kept"] == 1


def test_another_job_in_the_same_folder_is_refused(tmp_path):
  records = formats.Records([{"image": formats.picture(0)}])
  command.build(records, str(tmp_path / "out"), Settings(), processes=0)
  with pytest.raises(ValueError, match=r"was begun as another build \(min_side = 0, now 8\); give a new folder"):
    command.build(records, str(tmp_path / "out"), Settings(min_side=8), processes=0)
  (tmp_path / "other").mkdir()
  (tmp_path / "other" / "thesis.tex").write_text("")
  with pytest.raises(ValueError, match="is not empty, and holds no build"):
    command.build(records, str(tmp_path / "other"), Settings(), processes=0)
  with pytest.raises(ValueError, match="none of the 1 records is kept: 0 kept, 1 smaller than min_side"):
    command.build(records, str(tmp_path / "none"), Settings(min_side=800), processes=0)


@pytest.mark.parametrize("settings, why", (
    (dict(min_side=-1), "min_side = -1: expected 0 or more"), (dict(max_aspect=0.5), "max_aspect = 0.5: expected 1"),
    (dict(min_words=5, max_words=3), "max_words = 3: is below min_words = 5"),
    (dict(dedup="fuzzy"), "dedup = 'fuzzy': expected one of none, exact, perceptual"),
    (dict(exclude=("(",)), r"exclude: '\(' is no regular expression"),
    (dict(captions=("alt=x",)), "captions: the weight of 'alt' is no number: 'x'"),
    (dict(captions=tuple(map(str, range(17)))), "captions = .*: expected 16 columns at most"),
    (dict(captions=("alt=0",)), "captions: expected COLUMN=WEIGHT"), (dict(quality=0), "quality = 0: expected 1 to 100")))
def test_settings_that_make_no_sense_are_refused(settings, why):
  with pytest.raises(ValueError, match=why):
    Settings(**settings)


def test_languages_without_the_extra_are_refused_before_anything_is_written(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "py3langid", None)
  with pytest.raises(ValueError, match=r"languages: needs the package py3langid .pip install 'mmjax\[build\]'"):
    command.build(formats.Records([{"caption": ["a"]}]), str(tmp_path / "out"), Settings(languages=("en",)))
  assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_build_killed_five_times_has_the_digest_of_an_unbroken_one(tmp_path):
  folder = formats.write_tars(tmp_path / "shards", count=4000, shards=3)
  environment = {**os.environ, "MMJAX_DATA_DIR": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}

  def start(out, processes):
    return subprocess.Popen(
        [sys.executable, "-m", "mmjax", "data", "build", folder, f"--out={out}", "--dedup=perceptual",
         "--shard_records=200", f"--processes={processes}"], env=environment, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
  whole = start(tmp_path / "whole", 1)
  assert whole.communicate(timeout=300)[1] is not None and whole.returncode == 0
  kills, draws = 0, random.Random(0)
  while kills < 5:
    job = start(tmp_path / "out", 2)
    began = time.monotonic()
    progress = lambda: len(list((tmp_path / "out").glob("*/*")))
    before = progress()
    while progress() == before and job.poll() is None and time.monotonic() - began < 120:
      time.sleep(0.01)
    time.sleep(draws.uniform(0, 0.05))
    if job.poll() is not None:
      break
    os.kill(job.pid, signal.SIGKILL)  # its workers are to notice by themselves
    job.communicate()
    kills += 1
    assert not (tmp_path / "out" / "manifest.json").exists()
  assert kills == 5
  job = start(tmp_path / "out", 2)
  job.communicate(timeout=300)
  one, other = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in ("whole", "out"))
  assert job.returncode == 0 and one == other and one["counts"]["broken"] == 0
