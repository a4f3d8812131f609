"""`mmjax data inspect`: what is counted, and what the page shows."""

import json
import os

import numpy as np
from PIL import Image
import pytest

from mmjax import cli, config
from mmjax.data import contact_sheet, survey
from mmjax.training import user_data
from mmjax.training.streams import make_stream
from tests.data import damage, formats


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))
  monkeypatch.chdir(tmp_path)


def test_what_is_counted():
  unusual = damage.unusual()
  found = survey.survey(formats.Records([
      {"id": "a", "image": formats.picture(0), "caption": ["a red cube", "it"], "label": 1},
      {"id": "b", "image": unusual["animated.gif"], "caption": ["a\x00b"], "label": 1},
      {"id": "a", "image": unusual["cmyk.jpg"], "caption": [" "], "score": 0.5},
      {"id": "c", "image": formats.picture(0), "caption": ["a red cube"], "label": 2},
      {"id": "d", "image": b"no picture", "caption": ["x"]},
      OSError("disc failure")]))
  assert (found.total, found.looked_at) == (6, 6)
  assert found.forms == {"JPEG RGB": 2, "GIF P animated": 1, "JPEG CMYK": 1}
  assert found.numbers["width"] == [24, 16, 16, 24] and found.numbers["captions"] == [2, 1, 1, 1]
  assert found.numbers["words"] == [3, 1, 1, 0, 3]
  assert found.texts["a red cube"] == 2 and found.empty == 1 and found.control == 1
  assert found.labels == {1: 2, 2: 1}
  assert [record for record, _ in found.broken] == [4, 5] and found.broken[1][1] == "OSError: disc failure"
  assert found.repeated == {"file": [(3, 0)], "picture": [(2, 1), (3, 0)], "id": [(2, 0)]}
  lines = dict(survey.table(found, ("x", "red", "blue")))
  assert lines["records"] == "6" and lines["labels"] == "2 values; red: 2, blue: 1"
  assert lines["broken"] == "2 (33.3%)" and lines["names that are in it before"] == "1 (16.7%); record 2 as 0"
  assert lines["field score"] == "float: 1"


def test_captions_in_arrays_are_texts_and_what_is_no_utf_8_is_broken():
  found = survey.survey(formats.Records([{"caption": np.array(["ä".encode(), b"b"], object)},
                                         {"caption": np.array([b"\xff"], object)}]))
  assert found.texts == {"ä": 1, "b": 1} and [record for record, _ in found.broken] == [1]


def test_a_part_is_spread_evenly_and_processes_count_alike(tmp_path):
  from mmjax.data import spec
  source = spec.open_source(formats.write_tars(tmp_path / "shards", count=450))
  one, two = survey.survey(source), survey.survey(source, processes=2)
  assert one == two and one.looked_at == 450
  few = survey.survey(source, most=10)
  assert few.looked_at == 10 and few.total == 450
  assert dict(survey.table(few))["records"] == "450, 10 of them looked at"


def test_page_shows_broken_records_and_what_the_model_sees(tmp_path, capsys):
  path = formats.write_pictures(tmp_path / "data")
  (tmp_path / "data" / "004.jpg").write_bytes(b"none <b>")
  assert cli.main(["data", "inspect", path, "--config=contrastive/siglip:smoke", "--processes=0"]) == 0
  printed = capsys.readouterr().out
  assert "JPEG RGB: 8" in printed and "record 2: 004.jpg: ValueError: no picture that is known" in printed
  page = (tmp_path / "data_inspect" / "inspect.html").read_text(encoding="utf-8")
  assert "of 32 tokens]" in page and "picture 1" in page and "bad</b>" in page and "http" not in page
  sheet = np.asarray(Image.open(tmp_path / "data_inspect" / "contact_sheet.png"))
  assert sheet.shape == (2 * 66, 8 * 66, 3)  # 64 pixels and a line around


def test_without_a_config_pictures_are_shown_as_they_are(tmp_path, capsys):
  assert cli.main(["data", "inspect", formats.write_classes(tmp_path / "data"), "--out=here", "--processes=0"]) == 0
  assert "3 values; ant: 3, bee: 3, cat: 3" in capsys.readouterr().out
  assert np.asarray(Image.open("here/contact_sheet.png")).shape == (2 * 130, 8 * 130, 3)


def test_patches_are_put_together_to_pictures_of_their_own_shapes(tmp_path, capsys):
  for i, (width, height) in enumerate(((40, 20), (20, 40))):
    (tmp_path / "data").mkdir(exist_ok=True)
    image = Image.new("RGB", (width, height))
    image.paste((255, 0, 0), (0, 0, width // 2, height // 2))
    image.save(tmp_path / "data" / f"{i}.png")
    (tmp_path / "data" / f"{i}.txt").write_text("red on black")
  (tmp_path / "data" / "2.png").write_bytes(b"")
  (tmp_path / "data" / "2.txt").write_text("nothing")
  given = ["--config=contrastive/siglip_naflex:smoke"]
  assert cli.main(["data", "inspect", "data", *given, "--processes=0"]) == 0
  page = (tmp_path / "data_inspect" / "inspect.html").read_text(encoding="utf-8")
  assert page.count("<img") == 3
  stream = make_stream(user_data.resolve(config.load(given[0][9:], dict.fromkeys(("data.train", "data.eval"), "data")))["data"],
                       "data")[0]
  good = [record for record in map(stream.record, range(3)) if record["valid"]]
  shown = [contact_sheet.pictures(record)[0] for record in good]
  assert {image.shape[0] > image.shape[1] for image in shown} == {True, False}
  for image, record in zip(shown, good):
    height, width = image.shape[0] // 4, image.shape[1] // 4
    red = contact_sheet.visible(image)[[height, height, -height, -height], [width, -width, width, -width], 0] > 128
    assert record["image_grid"].prod() > 1 and red.sum() == 1  # one quarter is red, flipped or not
  assert cli.main(["data", *given, "--config.data.train=data", "--config.data.eval=data", "--rows=3", "--save=few.png"]) == 0
  assert "the first 2 pictures" in capsys.readouterr().out


def test_texts_and_names_that_are_no_unicode_are_shown_escaped(tmp_path, capsys):
  for folder in ("plain", "table"):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "good.jpg").write_bytes(formats.picture(0))
  (tmp_path / "plain" / os.fsdecode(b"caf\xe9.jpg")).write_bytes(b"no picture")
  (tmp_path / "table" / "metadata.jsonl").write_text(json.dumps({"file_name": "good.jpg", "caption": "half a \ud800 pair"}))
  for folder, told in (("plain", r"caf\udce9.jpg"), ("table", r"half a \ud800 pair")):
    assert cli.main(["data", "inspect", folder, f"--out={folder}_page", "--processes=0"]) == 0
    assert told in capsys.readouterr().out
    assert told in (tmp_path / f"{folder}_page" / "inspect.html").read_text(encoding="utf-8")


def test_a_set_that_begins_with_broken_records_is_shown(tmp_path, capsys):
  path = formats.write_pictures(tmp_path / "data", count=40)
  for i in range(0, 40, 2):  # those of the inner folder come after them
    (tmp_path / "data" / f"{i:03}.jpg").write_bytes(b"")
  assert cli.main(["data", "inspect", path, "--processes=0"]) == 0
  page = (tmp_path / "data_inspect" / "inspect.html").read_text(encoding="utf-8")
  assert page.count("<img") == 40 and page.count(", bad</b>") == 20


def test_what_a_source_holds_is_written_even_if_the_config_can_make_nothing_of_it(tmp_path, capsys):
  path = formats.write_classes(tmp_path / "data")
  assert cli.main(["data", "inspect", path, "--config=contrastive/siglip:smoke", "--processes=0"]) == 1
  assert "has no 'caption'" in capsys.readouterr().err.splitlines()[-1]
  assert "ant: 3" in (tmp_path / "data_inspect" / "inspect.html").read_text(encoding="utf-8")


def test_build_by_the_command_line_is_read_back(tmp_path, capsys):
  path = formats.write_jsonl(tmp_path)
  assert cli.main(["data", "build", path, "--out=built", "--dedup=exact", "--exclude=picture 3", "--exclude=picture 4",
                   "--processes=0"]) == 0
  assert "built: 7 records, digest " in capsys.readouterr().out
  manifest = json.loads((tmp_path / "built" / "manifest.json").read_text())
  assert manifest["settings"]["exclude"] == ["picture 3", "picture 4"]
  assert cli.main(["data", "inspect", "built", "--processes=0"]) == 0
  assert "JPEG RGB: 7" in capsys.readouterr().out and os.path.exists("data_inspect/inspect.html")


@pytest.mark.parametrize("arguments, why", (
    (["inspect"], "inspect needs the data: mmjax data inspect SPEC"), (["build", "x"], "build needs --out=DIR"),
    (["inspect", "x", "--dedup=exact"], "--dedup is a step of build"), ([], "give inspect SPEC, build SPEC"),
    (["inspect", "x", "--build=scenes"], "--build=scenes stands alone"), (["inspect", "x", "--rows=-1"], "at least 0")))
def test_wrong_flags(arguments, why, capsys):
  with pytest.raises(SystemExit):
    cli.main(["data", *arguments])
  assert why in capsys.readouterr().err


@pytest.mark.parametrize("arguments, why", (
    (["inspect", "none"], "mmjax data: there is no none"),
    (["build", "none", "--out=x"], "mmjax data: there is no none"),
    (["inspect", "scenes:trian"], "mmjax data: scenes: there is no split 'trian'"),
    (["inspect", "lines:x.csv?colour=a"], "the source 'lines' has no 'colour' (it has path, root, image"),
    (["build", "shards", "--out=x", "--min_side=-1"], "mmjax data: min_side = -1: expected 0 or more")))
def test_wrong_data_is_one_line(arguments, why, tmp_path, capsys):
  formats.write_tars(tmp_path / "shards")
  assert cli.main(["data", *arguments]) == 2
  error = capsys.readouterr().err
  assert why in error and error.count("\n") == 1
