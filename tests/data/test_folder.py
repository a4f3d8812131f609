"""Class folders: records, labels, digest, and errors; pictures in arrays."""

import pickle

import numpy as np
from PIL import Image
import pytest

from mmjax.data import spec, transforms
from mmjax.data.sources import arrays, folder
from mmjax.data.stream import Stream


def write(root, **classes):
  """Class folders in which each file is a grey picture of 6 x 5 pixels."""
  for name, files in classes.items():
    (root / name).mkdir(parents=True)
    for i, file in enumerate(files):
      Image.fromarray(np.full((6, 5), 10 * i, np.uint8)).save(root / name / file)
  return str(root)


def test_records_are_the_pictures_of_the_sorted_class_folders(tmp_path):
  path = write(tmp_path, dog=["b.png", "a.jpg"], cat=["x.PNG"], ant=["y.webp"])
  (tmp_path / "dog" / "notes.txt").write_text("no picture")
  (tmp_path / ".cache").mkdir()
  source = pickle.loads(pickle.dumps(folder.build(path)))
  assert source.classes == source.class_names("label") == ("ant", "cat", "dog")
  assert source.class_names("image") is None
  assert source.files == ("ant/y.webp", "cat/x.PNG", "dog/a.jpg", "dog/b.png")
  assert [source[i]["label"] for i in range(len(source))] == [0, 1, 2, 2]
  record = Stream(source, (transforms.Decode(), transforms.Resize(4)), shuffle=False).record(3)
  assert record["valid"] and record["image"].shape == (4, 4, 3) and record["label"] == 2


def test_folders_in_class_folders_links_and_links_to_nothing(tmp_path):
  path = write(tmp_path / "root", cat=["a.png", "link.png"], dog=["a.jpg"])
  write(tmp_path / "elsewhere", owl=["a.png"])
  write(tmp_path / "root" / "cat", inner=["b.png"])
  (tmp_path / "root" / "owl").symlink_to(tmp_path / "elsewhere" / "owl")
  (tmp_path / "root" / "dog" / "again").symlink_to(tmp_path / "root")  # without end, if it were followed
  (tmp_path / "root" / "cat" / "link.png").unlink()
  (tmp_path / "root" / "cat" / "link.png").symlink_to("nowhere.png")
  (tmp_path / "root" / "dog" / "self.png").symlink_to("self.png")
  source = spec.open_source(path)
  assert source.files == ("cat/a.png", "cat/inner/b.png", "cat/link.png", "dog/a.jpg", "dog/self.png", "owl/a.png")
  records = Stream(source, (transforms.Decode(), transforms.Resize(4)), shuffle=False)
  found = [records.record(i) for i in range(len(source))]
  assert [int(record["label"]) for record in found if record["valid"]] == [0, 0, 1, 2]
  assert "cat/link.png" in str(found[2]["error"])


def test_digest_follows_names_and_sizes(tmp_path):
  digests = [folder.build(write(tmp_path / "a", cat=["x.png"])).digest,
             folder.build(write(tmp_path / "b", cat=["y.png"])).digest,
             folder.build(write(tmp_path / "c", dog=["x.png"])).digest,
             folder.build(write(tmp_path / "d", cat=["x.png"])).digest]
  assert len(set(digests)) == 3 and digests[0] == digests[3]
  (tmp_path / "a" / "cat" / "x.png").write_bytes(b"more or less")
  assert folder.build(str(tmp_path / "a")).digest != digests[0]


def test_class_without_pictures_stays_a_class_with_a_warning(tmp_path, caplog):
  source = folder.build(write(tmp_path, cat=[], dog=["x.png"]))
  assert source.classes == ("cat", "dog") and source[0]["label"] == 1
  assert "cat has no pictures" in caplog.text


def test_folder_that_cannot_be_used_is_refused(tmp_path):
  with pytest.raises(ValueError, match="path: is empty"):
    folder.build("")
  with pytest.raises(ValueError, match="there is no folder .*/none"):
    folder.build(str(tmp_path / "none"))
  with pytest.raises(ValueError, match="holds no folders; put the pictures of each class into"):
    folder.build(str(tmp_path))
  with pytest.raises(ValueError, match="none of the 2 folders in .* holds a picture"):
    folder.build(write(tmp_path, cat=[], dog=[]))


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 1), (6, 5, 3), (6, 5, 4)])
def test_pictures_in_arrays_are_decoded_to_colour(tmp_path, shape):
  pixels = np.arange(2 * np.prod(shape), dtype=np.uint8).reshape(2, *shape)
  np.savez(tmp_path / "data.npz", image=pixels, label=np.array([0, 3]))
  source = arrays.build(str(tmp_path / "data.npz"))
  image = Stream(source, (transforms.Decode(),), shuffle=False).record(1)["image"]
  expected = pixels[1].reshape(6, 5, -1)[:, :, :3]
  np.testing.assert_array_equal(image, np.broadcast_to(expected, (6, 5, 3)))
  assert source.class_names("label") == ("0", "1", "2", "3")
  assert source.class_names("image") is None


def test_pictures_in_arrays_of_floats_are_refused(tmp_path):
  np.savez(tmp_path / "data.npz", image=np.zeros((2, 6, 5)), label=np.array([0, 3]))
  record = {"image": arrays.build(str(tmp_path / "data.npz"))[0]["image"]}
  with pytest.raises(TypeError, match="must be uint8 .*found float64"):
    transforms.Decode()(record, None)
