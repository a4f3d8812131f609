"""Sets as other programs write them: GNU tar, PyArrow as Hugging Face's `datasets` uses it, webdataset."""

import gzip
import io
import json
import shutil
import subprocess
import tarfile

import numpy as np
import pyarrow as pa
from pyarrow import parquet
import pytest

from mmjax.data import spec
from tests.data import formats

COUNT = 9
needs_tar = pytest.mark.skipif(
    not shutil.which("tar") or b"GNU" not in subprocess.run(["tar", "--version"], capture_output=True).stdout,
    reason="GNU tar is not here")


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))


def pairs(source):
  """{picture: captions} of all records."""
  return {record["image"]: record["caption"] for record in map(source.__getitem__, range(len(source)))}


WANT = {formats.picture(i): [formats.caption(i)] for i in range(COUNT)}


@needs_tar
@pytest.mark.parametrize("form", ("gnu", "pax", "ustar"))
def test_gnu_tar_of_a_folder_as_it_lies(form, tmp_path):
  """Members begin with ./, texts come long after their pictures, names are long; folders and hidden files come
  along."""
  root, inner = tmp_path / "in", tmp_path / "in" / "sub folder"
  inner.mkdir(parents=True)
  for i in range(COUNT):
    name = f"{'long' * 22 if i == 3 else ''}{i:03}" + ("x" * 120 if i == 4 and form != "ustar" else "")
    (inner / f"{name}.JPG").write_bytes(formats.picture(i))
    (inner / f"{name}.txt").write_text(formats.caption(i), encoding="utf-8")
  (root / ".DS_Store").write_bytes(b"x")
  (inner / "._000.JPG").write_bytes(b"AppleDouble")
  members = ["./", "./sub folder/", "./.DS_Store", *sorted((f"./{path.relative_to(root)}" for path in inner.iterdir()),
                                                          key=lambda name: (name[-1], name[::-1]))]
  (tmp_path / "list").write_text("\n".join(members))
  subprocess.run(["tar", f"--format={form}", "--no-recursion", "-cf", tmp_path / "a.tar", "-C", root, "-T", tmp_path / "list"],
                 check=True)
  source = spec.open_source(str(tmp_path / "a.tar"))
  assert pairs(source) == WANT


@needs_tar
def test_gnu_tar_that_was_appended_to(tmp_path):
  for i in range(COUNT):
    folder = tmp_path / f"part{i % 2}"
    folder.mkdir(exist_ok=True)
    (folder / f"{i:03}.jpg").write_bytes(formats.picture(i))
    (folder / f"{i:03}.txt").write_text(formats.caption(i), encoding="utf-8")
  for flag, name in (("-cf", "part1"), ("-rf", "part0")):
    subprocess.run(["tar", flag, tmp_path / "a.tar", "-C", tmp_path, name], check=True)
  assert pairs(spec.open_source(str(tmp_path / "a.tar"))) == WANT


def test_webdatasets_writer(tmp_path):
  """Its members belong to bigdata, the key may have dots in its folder, columns are named by two endings."""
  with tarfile.open(tmp_path / "train-000000.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
    for i in range(COUNT):
      for ending, data in (("caption.txt", formats.caption(i).encode()), ("cls", str(i % 3).encode()),
                           ("jpg", formats.picture(i)), ("json", json.dumps({"width": 24}).encode())):
        info = tarfile.TarInfo(f"v1.0/sample{i:05}.{ending}")
        info.size, info.mode, info.mtime, info.uname, info.gname = len(data), 0o444, 1.7e9, "bigdata", "bigdata"
        archive.addfile(info, io.BytesIO(data))
  source = spec.open_source(f"{tmp_path}/train-000000.tar?caption=caption.txt")
  assert pairs(source) == WANT
  assert sorted(source[i]["label"] for i in range(COUNT)) == sorted(i % 3 for i in range(COUNT))


def test_compressed_tar_is_refused_with_what_to_do(tmp_path):
  formats.write_tars(tmp_path / "shards", COUNT, shards=1)
  (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "shards" / "000.tar").read_bytes()))
  with pytest.raises(ValueError, match="a.tar.gz"):
    len(spec.open_source(str(tmp_path / "a.tar.gz")))


def hugging_face(root):
  """A picture that is missing, one that is broken; lists of captions; a class that is unknown (-1)."""
  features = {"image": {"_type": "Image"}, "sentences": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
              "label": {"names": ["ant", "bee", "cat"], "_type": "ClassLabel"}}
  schema = pa.schema([("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
                      ("sentences", pa.list_(pa.string())), ("label", pa.int64())],
                     metadata={"huggingface": json.dumps({"info": {"features": features}})})
  rows = [{"image": {"bytes": formats.picture(i), "path": None}, "sentences": [formats.caption(i), "second"], "label": i % 3}
          for i in range(COUNT)]
  rows[4]["image"] = None
  rows[5]["image"]["bytes"] = b"broken"
  rows[6]["sentences"] = []
  (root / "data").mkdir(parents=True)
  parquet.write_table(pa.Table.from_pylist(rows, schema), root / "data" / "train-00000-of-00001.parquet",
                      row_group_size=4, compression="zstd", use_dictionary=True)
  return str(root)


def test_parquet_in_hugging_faces_form(tmp_path):
  source = spec.open_source(f"{hugging_face(tmp_path / 'hub')}?caption=sentences")
  assert len(source) == COUNT and source.class_names("label") == ("ant", "bee", "cat")
  for i in sorted(set(range(COUNT)) - {4, 5, 6}):
    record = source[i]
    assert (record["image"], record["caption"], record["label"]) == (
        formats.picture(i), [formats.caption(i), "second"], np.int64(i % 3))
  assert source[5]["image"] == b"broken" and source[6]["caption"] == []
  with pytest.raises(ValueError, match="train-00000-of-00001.parquet, row 4: no picture is named"):
    source[4]
