"""Tables as others write them: quotes out of place, labels of any kind, splits by name, damage that is told."""

import csv
import io
import json
import random

import numpy as np
import pyarrow as pa
from pyarrow import ipc, parquet
import pytest

from mmjax.data import columns, records, spec
from mmjax.data.sources import lines
from tests.data import formats


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path_factory.mktemp("cache")))


def rows(path, data):
  """The rows of a table with that content; of one that cannot be read its error."""
  path.write_bytes(data)
  source, found = lines.build(str(path)), []
  for i in range(len(source)):
    try:
      found.append(tuple(source.row(i).values()))
    except ValueError as error:
      found.append(str(error))
  return found


@pytest.mark.parametrize("delimiter, ending", ((",", "csv"), ("\t", "tsv"), (";", "csv")))
def test_quote_within_a_cell_is_a_letter(tmp_path, delimiter, ending):
  text = 'file_name,caption\na.jpg,a 5" pipe\nb.jpg,x\nc.jpg,"y\n\n3"" z"\nd.jpg,a 7" disc\n'.replace(",", delimiter)
  assert rows(tmp_path / f"a.{ending}", text.encode()) == [
      ("a.jpg", 'a 5" pipe'), ("b.jpg", "x"), ("c.jpg", 'y\n\n3" z'), ("d.jpg", 'a 7" disc')]


def test_cell_that_is_open_on_a_line_with_an_even_number_of_quotes(tmp_path):
  assert rows(tmp_path / "a.csv", b'a,b\n5" x,"one\ntwo"\n3,4\n') == [('5" x', "one\ntwo"), ("3", "4")]


def test_quote_that_is_closed_in_another_cell_costs_its_own_line_only(tmp_path):
  found = rows(tmp_path / "a.csv", b'a,b\n1,"open\n2,"good"\n3,x\n')
  assert found == ["a.csv, line 2: unexpected end of data", ("2", "good"), ("3", "x")]


def test_line_break_of_a_carriage_return_alone_is_told(tmp_path):
  found = rows(tmp_path / "a.csv", b"a,b\n1,x\ry\n2,z\r\r\n")
  assert found == ["a.csv, line 2: a second row begins in it; write a cell that holds a line break in quotes", ("2", "z")]


def test_any_table_that_csv_writes_is_read_back(tmp_path):
  rng = random.Random(0)
  pieces = ('"', '""', ",", "a", "\n", "x y", '"q"', " ", "é")
  for seed in range(100):
    table = [tuple("".join(rng.choices(pieces, k=rng.randint(1, 6))) for _ in range(2)) for _ in range(rng.randint(1, 8))]
    file = io.StringIO(newline="")
    writer = csv.writer(file, quoting=rng.choice((csv.QUOTE_ALL, csv.QUOTE_MINIMAL)))
    writer.writerows([("one", "two"), *table])
    assert rows(tmp_path / f"{seed}.csv", file.getvalue().encode()) == table


def test_mark_at_the_begin_of_a_file_belongs_to_no_record(tmp_path):
  assert rows(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n') == [(1,), (2,)]
  assert rows(tmp_path / "a.csv", b"\xef\xbb\xbf\na,b\n1,2\n") == [("1", "2")]
  with pytest.raises(ValueError, match="b.csv is empty; its first line should name the columns"):
    rows(tmp_path / "b.csv", b"\xef\xbb\xbf")


def labels(text):
  source = spec.open_source(text)
  return [source[i].get("label") for i in range(len(source))], source.class_names("label")


@pytest.mark.parametrize("cells, want, names", (
    (("1", "", "3"), [1, None, 3], None),
    (("1.0", "", "3.0"), [1, None, 3], None),  # as pandas writes whole numbers of which one is missing
    (("oak", "", "ash"), [1, None, 0], ("ash", "oak"))))
def test_record_without_a_label_has_none(tmp_path, cells, want, names):
  (tmp_path / "a.csv").write_text("caption,label\n" + "".join(f"x,{cell}\n" for cell in cells))
  assert labels(str(tmp_path / "a.csv")) == (want, names)
  parquet.write_table(pa.table({"caption": ["x"] * 3, "class": [value or None for value in cells]}), tmp_path / "a.parquet")
  assert set(spec.open_source(str(tmp_path / "a.parquet"))[1]) == {"caption"}
  source = spec.open_source(str(tmp_path / "a.csv"))
  with pytest.raises(ValueError, match="the record has no 'label'"):  # so that it is bad where labels are read
    records.get(source[1], "label")


def test_column_of_too_many_values_is_no_label_unless_it_is_asked_for(tmp_path, monkeypatch, caplog):
  monkeypatch.setattr(columns, "MOST_CLASSES", 3)
  (tmp_path / "a.csv").write_text("caption,category\n" + "".join(f"x,t{i}\n" for i in range(5)))
  path = str(tmp_path / "a.csv")
  assert spec.open_source(path)[4] == {"caption": ["x"], "category": "t4"}
  assert "the column 'category' is not read as label, for it has more than 3 values" in caplog.text
  with pytest.raises(ValueError, match="label: .*'category' has more than 3 values; give another, or .label=None"):
    spec.open_source(f"{path}?label=category")


@pytest.mark.parametrize("form", ("parquet", "jsonl"))
@pytest.mark.parametrize("values, want", (
    (["oak", None, "ash", ""], ([1, None, 0, None], ("ash", "oak"))),
    ([2.0, None, 1.0, float("nan")], ([2, None, 1, None], None)),
    ([True, False, None, True], ([1, 0, None, 1], ("False", "True"))),
    ([[1, 2], [], None, [3]], None),
    ([{"a": 1}, None, {"a": 2}, None], None),
    ([0.5, 0.25, 1.0, None], None)))
def test_labels_are_numbers_or_texts_and_what_is_neither_keeps_its_name(tmp_path, form, values, want):
  path = tmp_path / f"a.{form}"
  table = [{"caption": "x", "category": value} for value in values]
  if form == "parquet":
    parquet.write_table(pa.Table.from_pylist(table), path)
  else:
    path.write_text("".join(json.dumps(row) + "\n" for row in table))
  if want is not None:
    assert labels(str(path)) == want
    return
  assert spec.open_source(str(path))[0] == {"caption": ["x"], "category": values[0]}
  with pytest.raises(ValueError, match="label: the column 'category' holds .*; give another, or .label=None"):
    spec.open_source(f"{path}?label=category")


@pytest.mark.parametrize("off", ("?label=None", "?label="))
def test_label_can_be_turned_off(tmp_path, off):
  parquet.write_table(pa.table({"caption": ["x", "y"], "class": ["a", "b"]}), tmp_path / "a.parquet")
  (tmp_path / "a.csv").write_text("caption,class\nx,a\ny,b\n")
  for name in ("a.parquet", "a.csv"):
    source = spec.open_source(f"{tmp_path}/{name}{off}")
    assert source[1] == {"caption": ["y"], "class": "b"} and source.class_names("label") is None


def splits(folder, *names):
  folder.mkdir(parents=True)
  for name in names:
    parquet.write_table(pa.table({"caption": [name]}), folder / f"{name}.parquet")
  return str(folder)


@pytest.mark.parametrize("inner", ("", "data"))
def test_splits_are_told_by_the_stems_of_files(tmp_path, inner, caplog):
  splits(tmp_path / "set" / inner, "train", "test", "validation-1", "more")
  for given, want in (("", "train"), ("?split=test", "test"), ("?split=validation", "validation-1")):
    source = spec.open_source(f"{tmp_path}/set{given}")
    assert [source[i]["caption"] for i in range(len(source))] == [[want]]
  assert "1 files are not read, for they are of no split, unlike the others: more.parquet" in caplog.text
  with pytest.raises(ValueError, match="split: .* has no 'dev', but test, train, validation"):
    spec.open_source(f"{tmp_path}/set?split=dev")


def test_split_of_what_has_none_is_refused(tmp_path):
  path = splits(tmp_path / "a", "0000", "0001")
  assert len(spec.open_source(path)) == 2
  with pytest.raises(ValueError, match="split: .*a has none: no file in it is called as in test.parquet"):
    spec.open_source(f"{path}?split=test")
  with pytest.raises(ValueError, match="split: .*0000.parquet is one file, which has no splits"):
    spec.open_source(f"{path}/0000.parquet?split=test")
  saved = formats.write_saved(tmp_path / "b")
  assert len(spec.open_source(f"{saved}/train?split=train")) == formats.COUNT
  with pytest.raises(ValueError, match="split: .*train is one split, train; leave it out"):
    spec.open_source(f"{saved}/train?split=test")


def test_damaged_parquet_of_several_is_named(tmp_path):
  path = splits(tmp_path / "a", "0000", "0001", "0002")
  whole = (tmp_path / "a" / "0001.parquet").read_bytes()
  (tmp_path / "a" / "0001.parquet").write_bytes(whole[:len(whole) // 2])
  with pytest.raises(ValueError, match="path: .*/0001.parquet cannot be read: .*; if it was cut short"):
    spec.open_source(path)


def test_error_of_an_arrow_record_names_file_and_row(tmp_path):
  path = formats.write_parquet_of_paths(tmp_path / "data")
  (tmp_path / "data" / "images" / "004.jpg").unlink()
  source = spec.open_source(path)
  with pytest.raises(ValueError, match="^metadata.parquet, row 4: cannot read .*004.jpg: No such file"):
    source[4]


def test_picture_in_a_list_of_one(tmp_path):
  table = pa.Table.from_pylist([{"images": [{"bytes": b"1", "path": None}], "text": "x"}])
  with ipc.new_file(str(tmp_path / "a.arrow"), table.schema) as out:
    out.write_table(table)
  assert spec.open_source(str(tmp_path / "a.arrow"))[0] == {"image": b"1", "caption": ["x"]}


@pytest.mark.parametrize("value, want", (
    (np.array([b"\xc3\xa9", b"two"], object), ["é", "two"]), (np.array(b"one"), ["one"]), (np.array([], object), [])))
def test_captions_that_are_arrays(value, want):
  assert columns.captions(value) == want


def test_columns_of_released_sets_are_known_and_others_can_be_named():
  found = columns.find(["image_name", "comment_number", "comment"])
  assert found.image == ("image_name",) and found.caption == ("comment",)
  found = columns.find(["image/encoded", "image/class/label", "prompt"])
  assert (found.image, found.caption, found.label) == (("image/encoded",), ("prompt",), ("image/class/label",))
  with pytest.raises(ValueError, match="no 'image'; it has photo; if that is called otherwise, .* SPEC.image=NAME"):
    records.get({"photo": b""}, "image")
