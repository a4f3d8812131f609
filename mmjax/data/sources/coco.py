"""Released caption sets, as their JSON files have them: COCO and Flickr30k.

Two forms are known by their keys: Karpathy's splits (dataset_coco.json, dataset_flickr30k.json) and
COCO's own annotations (captions_val2017.json). A record is a dict of

  id          str, the picture's file name
  image       bytes of the file, for transforms.Decode
  caption     list of str, all that the picture has
"""

import dataclasses
import hashlib
import json
import os
from typing import Any

from mmjax.data import places
from mmjax.data.sources import lines


@dataclasses.dataclass(frozen=True)
class Coco:
  """Record i is the i-th picture of the split.

  Attributes:
    root: where the pictures lie.
    pictures: their paths in it.
    captions: those of each.
    name: of the file, and the split if it is Karpathy's.
    digest: SHA-256 over pictures and captions.
  """

  root: str
  pictures: tuple[str, ...]
  captions: tuple[tuple[str, ...], ...]
  name: str
  digest: str

  def __len__(self) -> int:
    return len(self.pictures)

  def where(self, i: int) -> str:
    """The file of a record, and the picture it names, for errors."""
    return f"{self.name}, {self.pictures[i]}"

  def __getitem__(self, i: int) -> dict[str, Any]:
    """Raises ValueError naming the file and the picture if this cannot be read."""
    try:
      image = lines.picture(self.pictures[i], self.root)
    except ValueError as error:
      raise ValueError(f"{self.where(i)}: {error}") from error
    return {"id": self.pictures[i], "image": image, "caption": list(self.captions[i])}


def build(path: str, root: str | None = None, split: str = "test") -> Coco:
  """The source of one split.

  Args:
    path: the JSON file.
    root: where the pictures lie; default beside it. Karpathy's COCO has train2014/ and val2014/ there.
    split: of Karpathy's: "train", "val", "test", COCO's "restval", or several as in "train+restval".
      COCO's own files are a split each, and pay no heed to it.

  Raises:
    ValueError: no such file, form or split.
  """
  path = os.path.expanduser(path)
  try:
    told = json.loads(places.read(path))
  except (OSError, ValueError) as error:
    raise ValueError(f"path: {path} cannot be read as JSON: {error}") from error
  images = told.get("images") if isinstance(told, dict) else None
  if not images or not ("annotations" in told or "sentences" in next(iter(images))):
    raise ValueError(f'path: {path} is neither one of Karpathy\'s ("images" with "sentences") nor of COCO\'s '
                     '("images" and "annotations")')
  try:
    found = _annotated(told, path) if "annotations" in told else _of_split(images, split, path)
  except (KeyError, TypeError) as error:
    wanted = ("captions_*.json: images with id and file_name, annotations with image_id and caption"
              if "annotations" in told else "Karpathy's: images with filename, split and sentences, these with raw")
    raise ValueError(f"path: {path} is not as expected, {type(error).__name__}: {error}; of {wanted}") from error
  digest = hashlib.sha256(json.dumps(found).encode()).hexdigest()
  name = places.name_of(path) if "annotations" in told else f"{places.name_of(path)}/{split}"
  return Coco(os.path.expanduser(root) if root else places.folder_of(path), tuple(one for one, _ in found),
              tuple(tuple(texts) for _, texts in found), name, digest)


def _of_split(images, split, path):
  known = sorted({image["split"] for image in images})
  wanted = split.split("+")
  for one in wanted:
    if one not in known:
      raise ValueError(f"split: {path} has no {one!r}, but {', '.join(known)}")
  return [("/".join(filter(None, (image.get("filepath"), image["filename"]))),
           [sentence["raw"] for sentence in image["sentences"]])
          for image in images if image["split"] in wanted]


def _annotated(told, path):
  captions = {image["id"]: [] for image in told["images"]}
  for annotation in told["annotations"]:
    if annotation["image_id"] not in captions:
      raise ValueError(f"path: {path} has an annotation of image {annotation['image_id']!r}, which its images do "
                       "not list; expected one of COCO's captions_*.json as it was released")
    captions[annotation["image_id"]].append(annotation["caption"])
  return [(image["file_name"], captions[image["id"]]) for image in told["images"] if captions[image["id"]]]
