"""What a SPEC stands for: arguments, and what a folder is that holds several things."""

import os
import tarfile

import pyarrow as pa
from pyarrow import parquet
import pytest

from mmjax import cli_prepare
from mmjax.data import spec
from tests.data import formats


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path_factory.mktemp("cache")))


def test_plus_in_an_argument_is_a_plus():
  assert spec.parse("coco:a.json?split=train+restval&root=a+b") == {
      "name": "coco", "path": "a.json", "split": "train+restval", "root": "a+b"}
  assert spec.parse("coco:a.json?root=R%26D%20x")["root"] == "R&D x"


@pytest.mark.parametrize("name", ("joined", "packed"))
def test_spec_within_a_spec_is_quoted(name):
  assert spec.parse(f"{name}:a%3Fsplit%3Dtest?columns=c") == {"name": name, "path": "a?split=test", "columns": "c"}


def test_argument_without_a_value_is_told():
  with pytest.raises(ValueError, match="'D' after '.' has no '='; expected arguments such as"):
    spec.parse("coco:a.json?root=R&D")


def test_columns_of_a_set_with_arguments_are_read_as_prepare_prints(monkeypatch, capsys):
  from mmjax.prepare import command
  monkeypatch.setattr(command, "prepare", lambda *args: {"columns": ["score"], "records": 1, "broken": 0})
  monkeypatch.setattr(spec, "open_source", lambda text: None)
  inner = "coco:a b.json?split=train+restval&root=x[:95%]"

  class Flags:
    job, spec, model, out, batch_size, shard_records, step = "score", inner, "m", "out & co", 1, 1, None
    features = classes = template = None
  cli_prepare.run(Flags, {})
  told = capsys.readouterr().out.partition('--config.data.train="')[2].partition('"')[0]
  assert spec.parse(told) == {"name": "joined", "path": inner, "columns": "out & co"}


@pytest.mark.parametrize("upper", (".TXT", ".Txt"))
def test_text_files_in_capital_letters_are_captions(tmp_path, upper):
  path = formats.write_pictures(tmp_path)
  for file in list(tmp_path.rglob("*.txt")):
    file.rename(file.with_suffix(upper))
  source = spec.open_source(path)
  assert len(source) == formats.COUNT and source[3]["caption"] == [formats.caption(6)]


def test_tables_of_a_download_beside_its_pictures_are_not_read(tmp_path, caplog):
  """As img2dataset writes files: 00000.parquet beside 00000/000000000.jpg and .txt."""
  for shard in range(2):
    formats.write_pictures(tmp_path / f"{shard:05}", count=3)
    parquet.write_table(pa.table({"url": ["http://a/b.jpg"], "caption": ["x"]}), tmp_path / f"{shard:05}.parquet")
  source = spec.open_source(str(tmp_path))
  assert len(source) == 6 and source[0]["caption"] == [formats.caption(0)]
  assert "tables that name none of the pictures there are not read: 00000.parquet, 00001.parquet; to read" in caplog.text


def test_stray_table_does_not_take_the_place_of_class_folders(tmp_path, caplog):
  path = formats.write_classes(tmp_path)
  (tmp_path / "labels.csv").write_text("id,breed\n1,ant\n")
  assert spec.parse(path) == {"name": "folder", "path": path} and "are not read: labels.csv" in caplog.text
  (tmp_path / "labels.csv").write_text("id,picture_of\nx,ant/000.jpg\ny,bee/001.jpg\n")
  assert spec.parse(f"{path}?image=picture_of")["name"] == "lines"  # but it does if its columns are named


def test_table_with_a_bad_record_near_its_begin_still_describes_its_folder(tmp_path):
  formats.write_csv(tmp_path, name="pairs.csv")
  text = (tmp_path / "pairs.csv").read_bytes().replace(b"\r\n", b"\n").split(b"\n")
  text[4] = b"images/003.jpg,one\rtwo,0"
  (tmp_path / "pairs.csv").write_bytes(b"\n".join(text))
  assert spec.parse(str(tmp_path))["name"] == "lines"
  (tmp_path / "pairs.csv").write_bytes(b"\xff\xfe")
  (tmp_path / "broken.parquet").write_bytes(b"none")
  assert spec.parse(str(tmp_path))["name"] == "pictures"


def test_of_several_tables_that_which_names_pictures_is_read(tmp_path):
  formats.write_csv(tmp_path, name="pairs.csv")
  (tmp_path / "notes.csv").write_text("path,caption\nnone.jpg,x\n")
  assert spec.parse(str(tmp_path))["path"].endswith("pairs.csv")
  formats.write_csv(tmp_path, name="again.csv")
  with pytest.raises(ValueError, match=r"holds several tables \(again.csv, pairs.csv\); name one of them"):
    spec.parse(str(tmp_path))


def test_embedded_pictures_are_the_data_whatever_lies_beside_them(tmp_path):
  path = formats.write_parquet(tmp_path / "data")
  (tmp_path / "data" / "data" / "preview.png").write_bytes(formats.picture(0, "PNG"))
  assert spec.parse(f"{path}/data")["name"] == "arrow"


def test_picture_beside_class_folders_is_told(tmp_path, caplog):
  path = formats.write_classes(tmp_path)
  (tmp_path / "overview.jpg").write_bytes(formats.picture(0))
  assert spec.parse(path)["name"] == "pictures"
  assert f"overview.jpg lies beside the folders ant, bee, cat, so these are no classes; if they are, read folder:{path}" in caplog.text
  assert len(spec.open_source(f"folder:{path}")) == formats.COUNT


def test_compressed_tars_are_told(tmp_path, caplog):
  with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
    formats.add(archive, "a.jpg", b"1")
  with pytest.raises(ValueError, match="holds a.tar.gz, which is compressed.*unpack it with gunzip"):
    spec.parse(str(tmp_path))
  formats.write_tars(tmp_path, shards=1)
  assert len(spec.open_source(str(tmp_path))) == formats.COUNT
  assert "1 compressed files are not read, the first is a.tar.gz; unpack them" in caplog.text


def test_home_folder_stands_in_paths(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  formats.write_csv(tmp_path / "a")
  os.rename(tmp_path / "a" / "images", tmp_path / "images")
  for text in ("~/a/metadata.csv?root=~", "lines:~/a/metadata.csv?root=~"):
    assert spec.open_source(text)[1]["image"] == formats.picture(1)
