"""Every form of data gives the same records; parts, damaged files, and what is refused."""

import json
import os
import pickle
import re
import tarfile

import fsspec
import pytest

from mmjax import config
from mmjax.data import part, spec, stream, tar_index
from mmjax.data.sources import arrow, examples, lines, tar
from tests.data import formats

WRITERS = (formats.write_pictures, formats.write_classes, formats.write_csv, formats.write_jsonl,
           formats.write_parquet_of_paths, formats.write_parquet, formats.write_saved, formats.write_tars,
           formats.write_examples)


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path_factory.mktemp("cache")))


def source_of(text):
  return config.build("mmjax.data.sources", spec.parse(text), "data.train")


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_the_same_records_come_out_of_every_form(write, tmp_path):
  path = write(tmp_path / "data")
  source = pickle.loads(pickle.dumps(source_of(path)))
  assert len(source) == formats.COUNT
  found = {}
  for i in range(len(source)):
    record = source[i]
    found[record["image"]] = record.get("caption"), record.get("label")
  with_captions, with_labels = write is not formats.write_classes, write is not formats.write_pictures
  for i in range(formats.COUNT):
    png = write is formats.write_tars and i % 3 == 0
    assert found[formats.picture(i, "PNG" if png else "JPEG")] == (
        [formats.caption(i)] if with_captions else None, formats.label(i) if with_labels else None)


@pytest.mark.parametrize("write", WRITERS, ids=lambda write: write.__name__)
def test_error_of_a_transform_names_the_file_and_the_place_in_it(write, tmp_path):
  source = source_of(write(tmp_path / "data"))
  told = [source.where(i) for i in range(len(source))]
  assert len(set(told)) == len(source)
  files = {file.name for file in (tmp_path / "data").rglob("*")}
  assert all(one.split(",")[0].rpartition("/")[2] in files for one in told)
  two = part.cut(source, "[:2]")

  def refuse(record, rng):
    raise ValueError("not wanted")
  records = stream.Stream(two, (refuse,), shuffle=False)
  for row in range(2):
    with pytest.raises(stream.DataError, match=re.escape(f"record {row} ({two.where(row)}), transform 0 (function): ValueError: not wanted")):
      records._read(row)


@pytest.mark.parametrize("write", (formats.write_csv, formats.write_jsonl, formats.write_tars),
                         ids=lambda write: write.__name__)
def test_what_lies_there_is_known_from_the_folder_or_by_its_name(write, tmp_path):
  path = write(tmp_path / "data")
  name = spec.parse(path)["name"]
  digests = {source_of(one).digest for one in (path, str(tmp_path / "data"), f"{name}:{path}")}
  assert len(digests) == 1


def test_class_names_come_from_folders_or_the_schema(tmp_path):
  assert source_of(formats.write_classes(tmp_path / "a")).class_names("label") == formats.CLASSES
  assert source_of(formats.write_parquet(tmp_path / "b")).class_names("label") == formats.CLASSES
  assert source_of(formats.write_csv(tmp_path / "c")).class_names("label") is None  # numbers


def test_names_of_classes_are_found_once_and_anew_when_the_table_changes(tmp_path, monkeypatch):
  file = tmp_path / "pairs.jsonl"
  file.write_text("".join(json.dumps({"caption": "a", "label": name}) + "\n" for name in ("oak", "ash", "oak")))
  real, read = lines.Lines.row, []
  monkeypatch.setattr(lines.Lines, "row", lambda self, i: read.append(i) or real(self, i))
  assert lines.build(str(file)).classes == ("ash", "oak")
  seen = len(read)
  assert lines.build(str(file)).classes == ("ash", "oak") and len(read) - seen < seen
  file.write_text(file.read_text() + json.dumps({"caption": "b", "label": "elm"}) + "\n")
  assert lines.build(str(file)).classes == ("ash", "elm", "oak")


def test_label_in_words_becomes_its_place_among_them(tmp_path):
  path = formats.write_jsonl(tmp_path)
  rows = [json.loads(line) for line in open(path, encoding="utf-8")]
  with open(path, "w", encoding="utf-8") as file:
    file.writelines(json.dumps({**row, "label": formats.CLASSES[row["label"]]}) + "\n" for row in rows)
  source = source_of(path)
  assert source.class_names("label") == formats.CLASSES
  assert [source[i]["label"] for i in range(4)] == [0, 1, 2, 0]


def test_split_of_a_folder_with_several(tmp_path):
  path = formats.write_parquet(tmp_path / "data")
  assert len(source_of(f"{path}?split=test")) == 1
  with pytest.raises(config.ConfigError, match="split: .* has no 'valid', but test, train"):
    source_of(f"{path}?split=valid")


def test_columns_that_are_asked_for(tmp_path):
  path = formats.write_jsonl(tmp_path)
  assert source_of(f"{path}?caption=file_name")[2]["caption"] == ["images/002.jpg"]
  with pytest.raises(config.ConfigError, match="there is no column 'captoin'; did you mean 'caption'"):
    source_of(f"{path}?caption=captoin")


def test_shards_by_braces_pattern_and_url(tmp_path):
  folder = formats.write_tars(tmp_path / "shards")
  whole = [source_of(folder)[i] for i in range(formats.COUNT)]
  remote = fsspec.filesystem("memory")
  for name in os.listdir(folder):
    remote.pipe(f"/bucket/{name}", open(os.path.join(folder, name), "rb").read())
  for text in (f"{folder}/{{000..001}}.tar", f"{folder}/*.tar", "memory://bucket/*.tar",
               "memory://bucket/{000,001}.tar", "memory://bucket"):
    source = pickle.loads(pickle.dumps(source_of(text)))
    assert [source[i] for i in range(len(source))] == whole
  with pytest.raises(ValueError, match="there is no memory://bucket/002.tar"):
    source_of("memory://bucket/{000..002}.tar")


def test_index_of_a_shard_is_built_once_and_anew_when_it_changes(tmp_path, monkeypatch):
  folder = formats.write_tars(tmp_path / "shards")
  first = source_of(folder)
  walks = []
  walk = tar_index.walk
  monkeypatch.setattr(tar_index, "walk", lambda path: walks.append(path) or walk(path))
  assert source_of(folder).digest == first.digest and not walks
  formats.write_tars(tmp_path / "more", count=formats.COUNT + 4, shards=2)
  os.replace(tmp_path / "more" / "001.tar", tmp_path / "shards" / "001.tar")
  again = source_of(folder)
  assert [os.path.basename(path) for path in walks] == ["001.tar"] and again.digest != first.digest


def test_file_twice_in_a_tar_and_bad_members_are_bad_records(tmp_path):
  with tarfile.open(tmp_path / "a.tar", "w") as archive:
    for name, data in (("a.jpg", b"1"), ("a.jpg", b"2"), ("a.txt", b"x"), ("b.jpg", b"3"),
                       ("b.json", b"{"), ("c.jpg", b"4"), ("c.txt", b"\xff"), ("d.jpg", b"5"), ("README", b"")):
      formats.add(archive, name, data)
  source = source_of(str(tmp_path / "a.tar"))
  assert len(source) == 4
  for i, why in enumerate(("two files a.jpg", "b.json: ", "the caption of c is not UTF-8")):
    with pytest.raises(ValueError, match=f"a.tar, record {i}: .*{why}"):
      source[i]
  assert source[3] == {"id": "d", "image": b"5", "caption": []}


def test_members_of_a_record_need_not_be_neighbours(tmp_path):
  """`tar` packs a folder in the order in which it lists it; of tars joined end to end names come again."""
  with tarfile.open(tmp_path / "a.tar", "w") as archive:
    for name, data in (("./a.jpg", b"1"), ("./b.jpg", b"2" * (tar._GAP + 1)), ("./b.txt", b"y"), ("./a.txt", b"x"),
                       ("./a.jpg", b"3"), ("./a.txt", b"z"), ("./c.jpg", b"4")):
      formats.add(archive, name, data)
  source = source_of(str(tmp_path / "a.tar"))
  found = [(source[i]["id"], source[i]["image"][:1], source[i]["caption"]) for i in range(len(source))]
  assert found == [("./a", b"1", ["x"]), ("./b", b"2", ["y"]), ("./a", b"3", ["z"]), ("./c", b"4", [])]


def test_tar_that_ends_at_a_file_without_closing_is_told(tmp_path, caplog):
  folder = formats.write_tars(tmp_path / "shards", shards=1)
  file = tmp_path / "shards" / "000.tar"
  with tarfile.open(file) as archive:
    begin = next(member for member in archive if member.name.startswith("some/000004")).offset
  file.write_bytes(file.read_bytes()[:begin])
  assert len(source_of(folder)) == 4 and "if it was cut short, records are missing" in caplog.text


@pytest.mark.parametrize("delimiter", (";", "\t", "|"))
def test_csv_with_another_delimiter_is_read(tmp_path, delimiter):
  file = formats.write_csv(tmp_path / "data", delimiter=delimiter)
  source = source_of(file)
  assert [source[i]["caption"] for i in range(len(source))] == [[formats.caption(i)] for i in range(formats.COUNT)]


def test_table_that_is_no_utf_8_is_refused(tmp_path):
  (tmp_path / "a.csv").write_bytes("image,caption\na.jpg,x\n".encode("utf-16"))
  with pytest.raises(ValueError, match="a.csv is not UTF-8 .*; save it as UTF-8"):
    source_of(str(tmp_path / "a.csv"))


def test_lines_that_cannot_be_read_keep_their_row(tmp_path):
  formats.write_csv(tmp_path)
  file = tmp_path / "metadata.csv"
  text = file.read_bytes().split(b"\r\n")
  text[2:4] = [b"one cell", b'images/002.jpg,"two\nlines",2', b'\xff\xfe,x,1', b"images/none.jpg,y,1", b""]
  file.write_bytes(b"\r\n".join(text))
  source = source_of(str(file))
  assert len(source) == formats.COUNT + 2
  for i, why in ((1, "line 3: 1 cells, but the heading has 3"), (3, "line 6: 'utf-8' codec"),
                 (4, "^metadata.csv, line 7: cannot read .*none.jpg: No such file")):
    with pytest.raises(ValueError, match=why):
      source[i]
  assert source[2]["caption"] == ["two\nlines"] and source[2]["label"] == 2
  assert source[5]["caption"] == [formats.caption(3)]


def test_a_quote_that_is_never_closed_costs_its_own_line_only(tmp_path):
  rows = [b"file_name,caption"] + [b"%d.jpg,c" % i for i in range(3000)]
  rows[11] = b'10.jpg,"c'
  (tmp_path / "a.csv").write_bytes(b"\n".join(rows))
  source = source_of(str(tmp_path / "a.csv"))
  assert len(source) == 3000
  for i in (9, 11, 1500):
    assert source.row(i) == {"file_name": f"{i}.jpg", "caption": "c"}
  with pytest.raises(ValueError, match="a.csv, line 12: unexpected end of data"):
    source.row(10)
  assert source.row(2999) == {"file_name": "2999.jpg", "caption": "c"}


def test_json_lines_that_cannot_be_read_keep_their_row(tmp_path):
  (tmp_path / "a.jsonl").write_bytes(b'{"image": "a.jpg", "text": "x"}\n\n{"image"\n[1]\n{"image": "http://b"}\n')
  source = source_of(str(tmp_path / "a.jsonl"))
  assert len(source) == 4
  for i, why in ((1, "a.jsonl, line 3: "), (2, r"line 4: expected an object \{...\}, found list"),
                 (3, "http://b is a URL; download")):
    with pytest.raises(ValueError, match=why):
      source[i]


def test_picture_without_text_has_no_caption_and_is_told(tmp_path, caplog):
  path = formats.write_pictures(tmp_path)
  (tmp_path / "004.txt").unlink()
  (tmp_path / "006.txt").write_bytes(b"\xff")
  (tmp_path / "008.txt").write_bytes(b"\xef\xbb\xbfone\r\n\r\n two \n")
  source = source_of(path)
  assert "1 of 9 pictures have no text file beside them, the first is 004.jpg" in caplog.text
  assert source[2]["caption"] == [] and source[4]["caption"] == ["one", "two"]
  with pytest.raises(ValueError, match="006.txt is not UTF-8"):
    source[3]


def test_parts_hold_each_record_once_and_do_not_follow_the_stored_order(tmp_path):
  path = formats.write_classes(tmp_path, count=40)
  whole = source_of(path)
  begin, rest = part.cut(whole, "[:75%]"), part.cut(whole, "[75%:]")
  ids = [[one[i]["image"] for i in range(len(one))] for one in (begin, rest)]
  assert len(begin) == 30 and len(rest) == 10 and len(set(ids[0] + ids[1])) == 40
  assert len({rest[i]["label"] for i in range(10)}) == 3  # stored class by class
  assert begin.digest != rest.digest != whole.digest and begin.class_names("label") == formats.CLASSES
  assert spec.parse(f"{path}[75%:]") == {"name": "folder", "path": path, "part": "[75%:]"}
  assert len(part.cut(whole, "[held_out]")) == 2 and len(part.cut(whole, "[train]")) == 38
  for text, why in (("[5:5]", "of 40 records is empty"), ("[1.5:]", "neither a whole number"),
                    ("[a:]", "expected a form such as")):
    with pytest.raises(ValueError, match=why):
      part.cut(whole, text)


def test_example_messages_come_back_as_they_went_in():
  record = {"image": b"\xff\x00", "caption": ["a", "b"], "label": 3, "id": "ä", "score": 0.5, "sizes": [1, 2]}
  back = examples.decode(examples.encode(record))
  assert back.pop("sizes").tolist() == record["sizes"]
  assert back == {"image": b"\xff\x00", "caption": [b"a", b"b"], "label": 3, "id": "ä", "score": 0.5}
  assert examples.encode(record) == examples.encode(dict(reversed(record.items())))
  with pytest.raises(ValueError, match="no tf.train.Example"):
    examples.decode(b"\xff\xff\xff")
  with pytest.raises(TypeError, match="'x' cannot be stored: dict"):
    examples.encode({"x": {}})


@pytest.mark.parametrize("make, why", (
    (lambda root: str(root / "none"), "there is no .*none"),
    (lambda root: str(root), "is empty"),
    (lambda root: _write(root / "a.xyz"), r"a.xyz is no kind of data that is known; expected a folder, or \*.tar"),
    (lambda root: _write(root / "a.tar.gz"), "is compressed"),
    (lambda root: _write(root / "a.tar", b"\x1f\x8b"), "is compressed"),
    (lambda root: _write(root / "a.tar", b"no tar"), None),
    (lambda root: _write(root / "a.parquet", b"no parquet"), "a.parquet cannot be read"),
    (lambda root: _write(root / "a.array_record", b"none"), "a.array_record"),
    (lambda root: _write(root / "a.csv"), "a.csv is empty; its first line should name the columns"),
    (lambda root: _write(root / "a.csv", b"image,caption\n"), "has no records"),
    (lambda root: _write(root / "notes.md") and str(root), "holds nothing that is known: no pictures"),
    (lambda root: _write(root / "a.csv", b"x") and _write(root / "b.csv", b"x") and str(root),
     "holds several tables .a.csv, b.csv.; name one"),
    (lambda root: "", "is empty; give a folder, a file, a pattern, or tfds:NAME")))
def test_what_cannot_be_read_is_one_line(make, why, tmp_path):
  text = make(tmp_path)
  if why is None:  # a tar of nothing but damage is one bad record
    source = source_of(text)
    with pytest.raises(ValueError, match="record 0: cannot be read as a tar"):
      source[0]
    return
  with pytest.raises(ValueError, match=why) as error:
    source_of(text)
  assert "\n" not in str(error.value)


def _write(path, data=b""):
  path.write_bytes(data)
  return str(path)


def test_folders_two_deep_are_no_classes_and_it_is_told(tmp_path, caplog):
  formats.write_classes(tmp_path / "first")
  formats.write_classes(tmp_path / "second")
  assert spec.parse(str(tmp_path))["name"] == "pictures"
  assert f"give one of the folders in it, such as {tmp_path}/first" in caplog.text
  with pytest.raises(ValueError, match="so that its folders are no classes; give one of them, such as .*first"):
    source_of(f"folder:{tmp_path}")


def test_one_folder_is_no_class_and_it_is_told(tmp_path, caplog):
  formats.write_pictures(tmp_path / "images")
  for file in tmp_path.rglob("*.txt"):
    file.unlink()
  assert spec.parse(str(tmp_path))["name"] == "pictures"
  assert "all pictures lie in one folder, images, so there are no classes" in caplog.text


@pytest.mark.parametrize("write", (formats.write_csv, formats.write_classes, formats.write_tars),
                         ids=lambda write: write.__name__)
def test_of_folders_called_as_splits_it_is_train_that_is_read(write, tmp_path, caplog):
  write(tmp_path / "data" / "train", count=7)
  write(tmp_path / "data" / "val", count=3)
  (tmp_path / "data" / "README.md").write_text("of two splits")
  assert len(source_of(str(tmp_path / "data"))) == 7
  assert "train is read; for another give its path" in caplog.text


def test_arrow_files_of_other_columns_are_refused(tmp_path):
  formats.write_parquet(tmp_path / "a")
  formats.write_parquet_of_paths(tmp_path / "b")
  with pytest.raises(ValueError, match="metadata.parquet has other columns than"):
    arrow.build((str(tmp_path / "a"), str(tmp_path / "b" / "metadata.parquet")))
