"""Readers of released evaluation sets, on tiny files of the same form."""

import json
import os
import pickle

import numpy as np
import pytest

from mmjax.data import records, spec
from mmjax.data.sources import coco, compositional, folder
from tests.data import formats


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "cache"))


def save(path, value):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
  return str(path)


def karpathy(root, with_folders):
  """As dataset_coco.json (with folders) and dataset_flickr30k.json have it."""
  images = []
  for i, split in enumerate(("train", "restval", "val", "test", "test")):
    place = {"filepath": "val2014"} if with_folders else {}
    save(root / place.get("filepath", "") / f"{i}.jpg", formats.picture(i))
    images.append({**place, "filename": f"{i}.jpg", "split": split, "imgid": i,
                   "sentids": [5 * i + k for k in range(5)],
                   "sentences": [{"tokens": ["x"], "raw": f"{i}: caption {k}.", "imgid": i, "sentid": 5 * i + k}
                                 for k in range(5)]})
  return save(root / "dataset.json", {"images": images, "dataset": "x"})


@pytest.mark.parametrize("with_folders", (True, False))
def test_karpathys_splits(with_folders, tmp_path):
  path = karpathy(tmp_path, with_folders)
  source = pickle.loads(pickle.dumps(spec.open_source(f"coco:{path}")))
  assert len(source) == 2 and source.name == "dataset.json/test"
  assert source[1]["image"] == formats.picture(4) and source[1]["caption"] == [f"4: caption {k}." for k in range(5)]
  assert len(coco.build(path, split="train+restval")) == 2
  assert coco.build(path, split="val").digest != source.digest
  with pytest.raises(ValueError, match="split: .* has no 'valid', but restval, test, train, val"):
    coco.build(path, split="valid")


def test_cocos_own_annotations(tmp_path):
  for i in range(3):
    save(tmp_path / "val2017" / f"{i}.jpg", formats.picture(i))
  path = save(tmp_path / "annotations" / "captions_val2017.json", {
      "images": [{"id": 10 + i, "file_name": f"{i}.jpg"} for i in range(3)],
      "annotations": [{"image_id": 12, "id": 1, "caption": "a"}, {"image_id": 10, "id": 2, "caption": "b"},
                      {"image_id": 12, "id": 3, "caption": "c"}]})
  source = coco.build(path, root=str(tmp_path / "val2017"))
  assert [source[i]["caption"] for i in range(2)] == [["b"], ["a", "c"]] and len(source) == 2
  assert source[1]["image"] == formats.picture(2)
  with pytest.raises(ValueError, match="^captions_val2017.json, 0.jpg: cannot read .*annotations/0.jpg"):
    coco.build(path)[0]
  assert records.where(source, 1) == "captions_val2017.json, 2.jpg"


@pytest.mark.parametrize("value", (b"no json", {"x": 1}, {"images": []}, [1], {"images": [{"filename": "x"}]}))
def test_other_files_are_no_captions(value, tmp_path):
  with pytest.raises(ValueError, match="path: .*x.json (cannot be read as JSON|is neither)"):
    coco.build(save(tmp_path / "x.json", value))


@pytest.mark.parametrize("value, why", (
    ({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 1, "bbox": []}]},
     "KeyError: 'caption'; of captions_.*.json: images with id and file_name"),  # instances_val2017.json
    ({"images": [{"id": 1, "file_name": "a"}], "annotations": [{"image_id": 2, "caption": "x"}]},
     "an annotation of image 2, which its images do not list"),
    ({"images": [{"filename": "a", "sentences": [{"raw": "x"}]}]}, "KeyError: 'split'; of Karpathy's: images with filename"),
    ({"images": ["a"], "annotations": []}, "TypeError: .*; of captions_")))
def test_captions_of_another_form_are_refused_in_one_line(value, why, tmp_path):
  with pytest.raises(ValueError, match=f"^path: .*x.json .*{why}") as error:
    coco.build(save(tmp_path / "x.json", value))
  assert "\n" not in str(error.value)


def test_home_folder_stands_in_paths_of_released_sets(tmp_path, monkeypatch):
  monkeypatch.setenv("HOME", str(tmp_path))
  karpathy(tmp_path / "coco", True)
  os.rename(tmp_path / "coco" / "dataset.json", tmp_path / "dataset.json")
  assert coco.build("~/dataset.json", root="~/coco")[1]["image"] == formats.picture(4)
  save(tmp_path / "a.json", {"0": {"filename": "4.jpg", "caption": "x", "negative_caption": "y"}})
  assert compositional.build("~/a.json", root="~/coco/val2014")[0]["image"] == formats.picture(4)
  np.savez(tmp_path / "a.npz", image=np.zeros((2, 3)))
  assert len(spec.open_source("~/a.npz")) == 2


def test_sugarcrepe(tmp_path):
  for name, count in (("add_att", 12), ("swap_obj", 2)):
    save(tmp_path / "data" / f"{name}.json", {str(i): {
        "filename": f"{i}.jpg", "caption": f"{name} {i}", "negative_caption": f"not {name} {i}"} for i in range(count)})
  for i in range(12):
    save(tmp_path / "val2017" / f"{i}.jpg", formats.picture(i))
  source = compositional.build(str(tmp_path / "data"), root=str(tmp_path / "val2017"))
  assert len(source) == 14 and source.class_names("category") == ("add_att", "swap_obj")
  assert source[10] == {"image": formats.picture(10), "caption": ["add_att 10", "not add_att 10"], "category": 0,
                        "group": 10}  # in the order of numbers, not of texts
  assert source[13]["category"] == 1
  assert len(compositional.build(str(tmp_path / "data" / "swap_obj.json"), root=str(tmp_path / "val2017"))) == 2


def test_winoground(tmp_path):
  lines = []
  for i in range(2):
    for k in range(2):
      save(tmp_path / "images" / f"ex_{i}_img_{k}.png", formats.picture(2 * i + k, "PNG"))
    lines.append(json.dumps({"id": i, "image_0": f"ex_{i}_img_0", "image_1": f"ex_{i}_img_1", "caption_0": f"c{i}0",
                             "caption_1": f"c{i}1", "tag": "x", "collapsed_tag": ("Relation", "Object")[i]}))
  source = compositional.build(save(tmp_path / "examples.jsonl", "\n".join(lines).encode()))
  assert len(source) == 4 and source.class_names("category") == ("Object", "Relation")
  assert source[3] == {"image": formats.picture(3, "PNG"), "caption": ["c11", "c10"], "category": 0, "group": 1}
  with pytest.raises(ValueError, match="is neither SugarCrepe's nor Winoground's: KeyError"):
    compositional.build(save(tmp_path / "other.jsonl", b'{"id": 1}'))
  with pytest.raises(ValueError, match="is neither SugarCrepe's nor Winoground's"):
    compositional.build(save(tmp_path / "other.json", b"[1]"))
  with pytest.raises(ValueError, match="other.json has no records"):
    compositional.build(save(tmp_path / "other.json", b"{}"))


def test_names_of_imagenets_folders(tmp_path):
  for name in ("n01440764", "n01443537"):
    save(tmp_path / "val" / name / "1.JPEG", formats.picture(0))
  mapping = save(tmp_path / "LOC_synset_mapping.txt", b"n01440764 tench, Tinca tinca\nn01443537 goldfish, C. auratus\n")
  source = folder.build(str(tmp_path / "val"), names=mapping)
  assert source.class_names("label") == ("tench", "goldfish") and source.classes == ("n01440764", "n01443537")
  as_json = save(tmp_path / "names.json", {"n01440764": "tench", "n01443537": "goldfish"})
  assert spec.open_source(f"folder:{tmp_path}/val?names={as_json}").class_names("label") == ("tench", "goldfish")
  with pytest.raises(ValueError, match="names: .* has no name for the folder 'n01443537'"):
    folder.build(str(tmp_path / "val"), names=save(tmp_path / "few.json", {"n01440764": "tench"}))
  with pytest.raises(ValueError, match="names: .*none.txt cannot be read"):
    folder.build(str(tmp_path / "val"), names=str(tmp_path / "none.txt"))
