"""Sources read what was stored, and a wrong name gets the nearest right one."""

import io
import pickle
import sys

from etils import epath
import numpy as np
from PIL import Image
import pytest
import tensorflow_datasets as tfds

from mmjax.data import spec, transforms
from mmjax.data.sources import arrays
from mmjax.data.sources import tfds as tfds_source


def test_npz_records_are_rows_of_its_arrays_also_after_pickling(tmp_path):
  path = str(tmp_path / "data.npz")
  np.savez(path, image=np.arange(24).reshape(6, 4), caption=np.array(list("abcdef")))
  source = pickle.loads(pickle.dumps(arrays.build(path)))
  assert len(source) == 6 and len(source.digest) == 64 and source.name == "data.npz"
  np.testing.assert_array_equal(source[2]["image"], [8, 9, 10, 11])
  assert source[2]["caption"] == "c"


def test_npz_that_is_missing_damaged_or_ragged_is_refused(tmp_path):
  with pytest.raises(ValueError, match="no file"):
    arrays.build(str(tmp_path / "none.npz"))
  (tmp_path / "bad.npz").write_bytes(b"PK not a zip")
  with pytest.raises(ValueError, match="cannot read"):
    arrays.build(str(tmp_path / "bad.npz"))
  np.savez(tmp_path / "ragged.npz", a=np.zeros(3), b=np.zeros(4))
  with pytest.raises(ValueError, match="share one leading axis"):
    arrays.build(str(tmp_path / "ragged.npz"))


def png(level):
  file = io.BytesIO()
  Image.fromarray(np.full((5, 4, 3), level, np.uint8)).save(file, "PNG")
  file.seek(0)
  return file


class TinyPairs(tfds.core.GeneratorBasedBuilder):
  """Twelve records; images are given as encoded files, for tfds encodes arrays with TensorFlow."""

  VERSION = tfds.core.Version("1.0.0")
  code_path = epath.Path(__file__)  # else tfds looks for it with a package that is not installed

  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({
        "image": tfds.features.Image(shape=(None, None, 3)), "id": np.int64,
        "caption": tfds.features.Sequence(tfds.features.Text()), "title": tfds.features.Text(),
        "class": tfds.features.ClassLabel(names=["even", "odd"]),
        "text": tfds.features.Sequence({"raw": tfds.features.Text()})}))

  def _split_generators(self, manager):
    return {"train": self._generate_examples(12), "test": self._generate_examples(3)}

  def _generate_examples(self, n):
    for i in range(n):
      yield i, {"image": png(i), "id": i, "caption": [f"number {i}", "ä picture"], "title": "t", "class": i % 2,
                "text": [{"raw": "x"}]}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
  folder = str(tmp_path_factory.mktemp("tfds"))
  TinyPairs(data_dir=folder, file_format="array_record").download_and_prepare()
  return folder


def test_tfds_records_hold_encoded_images_and_are_read_without_tensorflow(data_dir):
  source = pickle.loads(pickle.dumps(tfds_source.build("tiny_pairs", "train", data_dir)))
  assert len(source) == 12 and "tensorflow" not in sys.modules
  assert sorted(source[i]["id"] for i in range(12)) == list(range(12))
  record = source[5]
  decoded = transforms.Decode()(record, None)
  np.testing.assert_array_equal(decoded["image"], np.full((5, 4, 3), record["id"], np.uint8))
  caption = transforms.SampleCaption("first")(record, None)["caption"]
  assert caption == f"number {record['id']}"


def test_tfds_features_become_image_caption_and_label(data_dir):
  source = pickle.loads(pickle.dumps(tfds_source.build("tiny_pairs", "train", data_dir)))
  record = source[5]
  assert record["caption"] == [f"number {record['id']}", "ä picture"] and record["label"] == record["id"] % 2
  assert source.class_names("label") == ("even", "odd") and "class" not in record
  source = tfds_source.build("tiny_pairs", "train", data_dir, caption="title", label="")
  record = source[5]
  assert record["caption"] == ["t"] and record["class"] == record["id"] % 2 and "label" not in record
  assert source.class_names("label") is None
  with pytest.raises(ValueError, match="label: the feature 'title' is Text.*, which is no label"):
    tfds_source.build("tiny_pairs", "train", data_dir, label="title")
  # A feature of a usual name that is no text keeps its name.
  source = tfds_source.build("tiny_pairs", "train", data_dir, keys=("text", "id"))
  assert set(source[0]) == {"text", "id"}


def test_tfds_names_the_file_of_a_record(data_dir, monkeypatch):
  source = tfds_source.build("tiny_pairs", "train[4:]+test", data_dir)
  assert source.where(0) == "tiny_pairs-train.array_record-00000-of-00001, record 4"
  assert source.where(9) == "tiny_pairs-test.array_record-00000-of-00001, record 1"

  def damaged(record, decoders=None):
    raise RuntimeError("not wanted")
  monkeypatch.setattr(source.records.dataset_info.features, "deserialize_example_np", damaged)
  with pytest.raises(ValueError, match="^tiny_pairs-test.array_record-00000-of-00001, record 1: RuntimeError: not wanted"):
    source[9]


def test_folder_of_a_prepared_version_is_known(data_dir):
  for folder in ("tiny_pairs", "tiny_pairs/1.0.0"):
    assert len(spec.open_source(f"{data_dir}/{folder}?split=test")) == 3


def test_tfds_reads_parts_of_splits_and_chosen_keys(data_dir):
  source = tfds_source.build("tiny_pairs", "train[:50%]", data_dir, keys=("id",))
  assert len(source) == 6 and set(source[0]) == {"id"}
  assert source.digest != tfds_source.build("tiny_pairs", "train", data_dir).digest


@pytest.mark.parametrize("name, split, keys, told", [
    ("tiny_pair", "train", None, "nearest is 'tiny_pairs'"),
    ("tiny_pairs", "trian", None, "nearest is 'train'"),
    ("tiny_pairs", "train", ("imge",), "nearest is 'image'"),
    ("tiny_pairs", "train[:5x]", None, "split"),
])
def test_tfds_names_that_do_not_exist_get_the_nearest(data_dir, name, split, keys, told):
  with pytest.raises(ValueError, match=told):
    tfds_source.build(name, split, data_dir, keys)
