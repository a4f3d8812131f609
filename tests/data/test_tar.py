"""Tar shards as they arrive: cut, padded, with holes, joined end to end; many of them; names with dots."""

import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pytest

from mmjax.data import spec, tar_index
from tests.data import formats

RECORDS = 30


@pytest.fixture(autouse=True)
def _cache(tmp_path_factory, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def shard(tmp_path):
  """A shard, and {record: byte at which its first header lies}."""
  file = tmp_path / "a.tar"
  write(file, range(RECORDS))
  with tarfile.open(file) as archive:
    return file, {int(member.name[:4]): member.offset for member in archive if member.name.endswith(".jpg")}


def write(file, records):
  with tarfile.open(file, "w") as archive:
    for i in records:
      formats.add(archive, f"{i:04}.jpg", formats.picture(i))
      formats.add(archive, f"{i:04}.txt", formats.caption(i).encode())


def found(file):
  """[number of each record, or why it is bad]."""
  source, told = spec.open_source(str(file)), []
  for i in range(len(source)):
    try:
      record = source[i]
      number = int(record["id"])
      assert record["image"] == formats.picture(number) and record["caption"] == [formats.caption(number)]
      told.append(number)
    except ValueError as error:
      told.append(str(error))
  return told


def check(told, *want):
  """Numbers are equal, and bad records are told as the patterns say."""
  assert len(told) == len(want), told
  for i, (one, wanted) in enumerate(zip(told, want)):
    assert re.search(f"^a.tar, record {i}: .*{wanted}", one) if isinstance(wanted, str) else one == wanted, (one, wanted)


def test_file_cut_short_keeps_what_can_be_read_and_one_bad_record(shard, caplog):
  file, begin = shard
  file.write_bytes(file.read_bytes()[:begin[4] + 700])
  check(found(file), 0, 1, 2, 3, "the file ends within 0004.jpg")
  assert "the file ends within 0004.jpg" in caplog.text


@pytest.mark.parametrize("member", (0, 1))
def test_damaged_header_costs_its_record_only(shard, member):
  file, begin = shard
  data, at = bytearray(file.read_bytes()), begin[4]
  if member:
    at = data.index(b"0004.txt")
  data[at:at + 512] = b"x" * 512
  file.write_bytes(data)
  check(found(file), 0, 1, 2, 3, f"what follows byte {at:,} of [0-9,]+ is no tar header; what follows byte .* is read",
        *range(5, RECORDS))


def test_damage_over_whole_records_is_one_bad_record(shard):
  file, begin = shard
  data = bytearray(file.read_bytes())
  data[begin[4]:begin[9]] = np.random.default_rng(0).bytes(begin[9] - begin[4])
  file.write_bytes(data)
  check(found(file), 0, 1, 2, 3, "is no tar header", *range(9, RECORDS))


@pytest.mark.parametrize("begins", ("at a header", "within a file"))
def test_hole_of_zeros_is_one_bad_record_and_what_follows_is_read(shard, begins):
  """As a download leaves it that writes several pieces of a file at a time, and broke off."""
  file, begin = shard
  data, first, end = bytearray(file.read_bytes()), begin[4], begin[20] - 100
  if begins == "within a file":
    first = data.index(b"0003.txt") + 512 + 3
  data[first:end] = bytes(end - first)
  file.write_bytes(data)
  whole = range(4) if begins == "at a header" else range(3)  # the text whose end is zeros is no text
  check(found(file), *whole, "bytes of zeros at byte .*, where a file should begin; what follows byte",
        *range(20, RECORDS))


def test_file_that_is_zeros_from_somewhere_on_is_told(shard):
  file, begin = shard
  data = file.read_bytes()
  file.write_bytes(data[:begin[4]].ljust(len(data), b"\0"))
  check(found(file), 0, 1, 2, 3, "bytes of zeros end the [0-9,]+ of the file: was it cut short and padded")


@pytest.mark.parametrize("zeros", (1024, 10240))
def test_usual_ends_are_no_damage(shard, zeros):
  file, _ = shard
  with tarfile.open(file) as archive:
    end = archive.getmembers()[-1].offset + 1024
  file.write_bytes(file.read_bytes()[:end] + bytes(zeros))
  check(found(file), *range(RECORDS))


def test_padding_to_ten_thousand_bytes_is_no_damage_however_long_it_is(tmp_path):
  for blocks in range(21):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
      formats.add(archive, "0000.jpg", b"1")
      formats.add(archive, "README", b"x" * 512 * blocks)
    assert not len(tar_index.walk(str(tmp_path / "a.tar"))["bad"])


@pytest.mark.parametrize("padding", (1024, 10240))
def test_tars_joined_end_to_end_are_read_to_the_end(tmp_path, padding):
  """`cat a.tar b.tar`, with ends as `tar` and as others write them."""
  parts = []
  for i in range(3):
    write(tmp_path / "part", range(10 * i, 10 * i + 10))
    data = (tmp_path / "part").read_bytes()
    parts.append(data.rstrip(b"\0") if padding == 1024 else data)
    if padding == 1024:
      parts[-1] = parts[-1].ljust(-(-len(parts[-1]) // 512) * 512, b"\0") + bytes(1024)
  (tmp_path / "a.tar").write_bytes(b"".join(parts))
  check(found(tmp_path / "a.tar"), *range(30))


def test_bytes_behind_the_end_that_are_no_tar_are_told(shard):
  file, _ = shard
  file.write_bytes(file.read_bytes() + b"signature" * 100)
  check(found(file), *range(RECORDS), "bytes of zeros at byte .*, where a file should begin; no header follows")


def test_names_with_dots_are_refused_and_it_is_said_how_they_are_split(tmp_path):
  with tarfile.open(tmp_path / "a.tar", "w") as archive:
    for i in range(20):
      formats.add(archive, f"laion.{i:06}.jpg", b"1")
      formats.add(archive, f"laion.{i:06}.txt", b"1")
  with pytest.raises(ValueError, match="a.tar holds 40 files of 40 endings: .* laion.000000.jpg is of the record laion; "
                                       "rename the files, as laion.0001.jpg to laion_0001.jpg"):
    spec.open_source(str(tmp_path / "a.tar"))


def test_index_of_many_endings_takes_memory_by_members_not_by_records_times_endings(tmp_path):
  """Frames of clips as endings; records that share none of them."""
  with tarfile.open(tmp_path / "a.tar", "w") as archive:
    for clip in range(300):
      for frame in range(8):
        formats.add(archive, f"clip{clip}.{(clip * 8 + frame) % 1000:04}.jpg", b"%d" % frame)
  index = tar_index.walk(str(tmp_path / "a.tar"))
  assert len(index["endings"]) == 1000 and len(index["member_ends"]) == 300
  assert sum(array.nbytes for name, array in index.items() if name != "endings") < 60 * 2400
  source = spec.open_source(str(tmp_path / "a.tar"))
  assert source[299]["0399.jpg"] == b"7" and len(source[299]) == 9


MANY = """
import os, resource, sys
from mmjax.data import spec
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
for attempt in range(2):
  source = spec.open_source(sys.argv[1])
assert [source[i]["id"] for i in (0, 299)] == ["0000", "0299"] and len(source) == 300
print(len(os.listdir("/proc/self/fd")))
"""


def test_hundreds_of_shards_take_a_few_open_files(tmp_path):
  for i in range(300):
    write(tmp_path / f"{i:03}.tar", [i])
  done = subprocess.run([sys.executable, "-c", MANY, str(tmp_path)], env={**os.environ, "PYTHONPATH": os.getcwd()},
                        capture_output=True, text=True, timeout=200)
  assert done.returncode == 0, done.stderr
  assert int(done.stdout) < 40
