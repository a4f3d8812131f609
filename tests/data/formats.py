"""The same few pictures with captions and labels, written in the forms that people have them in."""

import csv
import io
import json
import tarfile

import numpy as np
from PIL import Image
import pyarrow as pa
from pyarrow import ipc, parquet

from mmjax.data.sources import examples

CLASSES = ("ant", "bee", "cat")
COUNT = 9


def picture(i, form="JPEG", size=(20, 24)):
  """A picture file, another for each i."""
  pixels = np.random.default_rng(i).integers(0, 255, (*size, 3)).astype(np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form)
  return file.getvalue()


def caption(i):
  return f'picture {i}, "so called" – ♞'


def label(i):
  return i % len(CLASSES)


def write_pictures(root, count=COUNT):
  """Pictures in the folder, and one folder deep, with .txt beside them."""
  for i in range(count):
    folder = root / ("inner" if i % 2 else "")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{i:03}.jpg").write_bytes(picture(i))
    (folder / f"{i:03}.txt").write_text(caption(i) + "\n", encoding="utf-8")
  return str(root)


def write_classes(root, count=COUNT):
  for i in range(count):
    (root / CLASSES[label(i)]).mkdir(parents=True, exist_ok=True)
    (root / CLASSES[label(i)] / f"{i:03}.jpg").write_bytes(picture(i))
  return str(root)


def _files(root, count):
  (root / "images").mkdir(parents=True, exist_ok=True)
  for i in range(count):
    (root / "images" / f"{i:03}.jpg").write_bytes(picture(i))
    yield {"file_name": f"images/{i:03}.jpg", "caption": caption(i), "label": label(i)}


def write_csv(root, count=COUNT, delimiter=",", name="metadata.csv"):
  rows = list(_files(root, count))
  with open(root / name, "w", newline="", encoding="utf-8") as file:
    table = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
    table.writeheader()
    table.writerows(rows)
  return str(root / name)


def write_jsonl(root, count=COUNT):
  lines = [json.dumps(row, ensure_ascii=False) for row in _files(root, count)]
  (root / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
  return str(root / "metadata.jsonl")


def write_parquet_of_paths(root, count=COUNT):
  parquet.write_table(pa.Table.from_pylist(list(_files(root, count))), root / "metadata.parquet")
  return str(root)


def rows(count=COUNT):
  """As Hugging Face's `datasets` embeds pictures."""
  return [{"image": {"bytes": picture(i), "path": f"{i}.jpg"}, "text": caption(i), "label": label(i)}
          for i in range(count)]


def schema():
  features = {"image": {"_type": "Image"}, "text": {"dtype": "string", "_type": "Value"},
              "label": {"names": list(CLASSES), "_type": "ClassLabel"}}
  fields = [("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("text", pa.string()), ("label", pa.int64())]
  told = json.dumps({"info": {"features": features}})
  return pa.schema(fields, metadata={"huggingface": told})


def write_parquet(root, count=COUNT):
  """As on the hub: data/train-00000-of-00002.parquet."""
  (root / "data").mkdir(parents=True)
  half = count // 2
  for i, part in enumerate((rows(count)[:half], rows(count)[half:])):
    table = pa.Table.from_pylist(part, schema())
    parquet.write_table(table, root / "data" / f"train-{i:05}-of-00002.parquet", row_group_size=2)
  parquet.write_table(pa.Table.from_pylist(rows(1), schema()), root / "data" / "test-00000-of-00001.parquet")
  return str(root)


def write_saved(root, count=COUNT):
  """As `DatasetDict.save_to_disk`."""
  (root / "train").mkdir(parents=True)
  (root / "dataset_dict.json").write_text('{"splits": ["train"]}')
  with ipc.new_stream(str(root / "train" / "data-00000-of-00001.arrow"), schema()) as out:
    for row in rows(count):
      out.write_batch(pa.RecordBatch.from_pylist([row], schema()))
  (root / "train" / "state.json").write_text(
      json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": "train"}))
  (root / "train" / "dataset_info.json").write_text("{}")
  return str(root)


def add(archive, name, data):
  """Adds a file to an open tar."""
  info = tarfile.TarInfo(name)
  info.size = len(data)
  archive.addfile(info, io.BytesIO(data))


def write_tars(root, count=COUNT, shards=2):
  """WebDataset shards; the caption of every other record stands in its .json."""
  root.mkdir(parents=True, exist_ok=True)
  each = -(-count // shards)
  for shard in range(shards):
    with tarfile.open(root / f"{shard:03}.tar", "w") as archive:
      for i in range(shard * each, min(count, (shard + 1) * each)):
        name = f"some/{i:06}"
        png = i % 3 == 0
        add(archive, f"{name}.{'PNG' if png else 'jpg'}", picture(i, "PNG") if png else picture(i))
        if i % 2:
          add(archive, f"{name}.json", json.dumps({"caption": caption(i), "width": 24}).encode())
        else:
          add(archive, f"{name}.txt", caption(i).encode())
        add(archive, f"{name}.cls", str(label(i)).encode())
  return str(root)


def write_examples(root, count=COUNT):
  from array_record.python import array_record_module
  root.mkdir(parents=True, exist_ok=True)
  writer = array_record_module.ArrayRecordWriter(str(root / "train.array_record-00000-of-00001"),
                                                 "group_size:1")
  for i in range(count):
    writer.write(examples.encode({"image": picture(i), "caption": [caption(i)], "label": label(i)}))
  writer.close()
  return str(root)


class Records:
  """A source of records in memory; one that is an exception is raised."""

  name, digest = "records", "0"

  def __init__(self, records):
    self.records = records

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    if isinstance(self.records[i], Exception):
      raise self.records[i]
    return self.records[i]
