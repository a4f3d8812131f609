"""ArrayRecord folders: checked against what `mmjax data build` says of them, and errors that name file and record."""

import json
import shutil

import pytest

from mmjax.data import spec
from mmjax.data.build import command
from mmjax.data.build.settings import Settings
from mmjax.data.sources import examples
from tests.data import formats


def built(out, first=0, **settings):
  """A build of 9 records in 3 shards."""
  records = formats.Records([{"image": formats.picture(n), "label": n} for n in range(first, first + 9)])
  command.build(records, str(out), Settings(shard_records=3, **settings), processes=0)
  return out


def test_shards_are_those_of_the_manifest_and_have_to_be_whole(tmp_path):
  folder = built(tmp_path / "out")
  shard = folder / "train.array_record-00001-of-00003"
  shutil.copy(shard, folder / "train.array_record-00001-of-00005")  # of an earlier attempt
  source = spec.open_source(str(folder))
  assert [source[i]["label"] for i in range(len(source))] == list(range(9))
  data = shard.read_bytes()
  shard.write_bytes(data[:-1])
  with pytest.raises(ValueError, match="00001-of-00003, which the manifest.json beside it names, is not whole; copy"):
    spec.open_source(str(folder))
  shard.unlink()
  with pytest.raises(ValueError, match="00001-of-00003, which the manifest.json beside it names, is missing"):
    spec.open_source(str(folder))


def test_build_that_is_not_finished_is_refused(tmp_path):
  folder = built(tmp_path / "out")
  (folder / "manifest.json").unlink()
  with pytest.raises(ValueError, match="out is a build that is not finished; the same `mmjax data build` goes on"):
    spec.open_source(str(folder))


@pytest.mark.parametrize("name", ("manifest.json", "build.json"))
@pytest.mark.parametrize("text", ("[1, 2]", "{}", "no json"))
def test_manifest_of_somebody_else_is_passed_over(name, text, tmp_path):
  formats.write_examples(tmp_path)
  (tmp_path / name).write_text(text)
  assert len(spec.open_source(str(tmp_path))) == formats.COUNT


def test_digest_is_of_all_folders_and_classes_have_to_agree(tmp_path):
  folders = [str(built(tmp_path / name, first)) for name, first in (("a", 0), ("b", 5), ("c", 20))]
  digest = lambda *paths: examples.build(paths).digest
  assert digest(folders[0]) == json.loads((tmp_path / "a" / "manifest.json").read_text())["digest"]
  assert len({digest(folders[0]), digest(*folders[:2]), digest(folders[0], folders[2])}) == 3
  for folder, classes in zip(folders, (["x"], ["y"])):
    manifest = json.loads(open(f"{folder}/manifest.json").read())
    open(f"{folder}/manifest.json", "w").write(json.dumps({**manifest, "classes": classes}))
  assert examples.build((folders[0], folders[2])).class_names("label") == ("x",)
  with pytest.raises(ValueError, match="a and .*b have other classes"):
    examples.build(folders)


def damage(file, number):
  """Overwrites the picture of a record."""
  data, picture = bytearray(file.read_bytes()), formats.picture(number)
  at = data.index(picture)
  data[at:at + 40] = b"x" * 40
  file.write_bytes(data)


def test_damaged_first_record_is_a_bad_record_that_is_named(tmp_path):
  folder = built(tmp_path / "out")
  damage(folder / "train.array_record-00000-of-00003", 0)
  damage(folder / "train.array_record-00001-of-00003", 4)
  source = spec.open_source(str(folder))
  for i, where in ((0, "train.array_record-00000-of-00003, record 0: "), (4, "00001-of-00003, record 1: ")):
    with pytest.raises(ValueError, match=where):
      source[i]
  assert source[5]["label"] == 5
  with pytest.raises(IndexError):
    source[9]


def test_the_file_that_is_broken_is_the_one_that_is_named(tmp_path):
  folder = built(tmp_path / "out")
  (folder / "manifest.json").unlink()
  (folder / "build.json").unlink()
  (folder / "train.array_record-00001-of-00003").write_bytes(b"")
  with pytest.raises(ValueError, match="00001-of-00003 cannot be read: "):
    spec.open_source(str(folder))
