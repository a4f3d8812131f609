"""Sources for the tests of streams and the loader; importable, so that worker processes find
them."""

import io

import numpy as np
from PIL import Image

from mmjax.data import stream
from mmjax.data import transforms as T


class Pictures:
  """Small JPEG files with captions. `damaged` ids hold a file cut short, `unreadable` ids raise."""

  name = "pictures"
  digest = "0"

  def __init__(self, length=50, damaged=(), unreadable=(), misshapen=()):
    self.length, self.damaged = length, damaged
    self.unreadable, self.misshapen = unreadable, misshapen

  def __len__(self):
    return self.length

  def __getitem__(self, i):
    if i in self.unreadable:
      raise OSError("disc failure")
    file = io.BytesIO()
    image = np.random.default_rng(i).integers(0, 255, (20, 24, 3)).astype(np.uint8)
    Image.fromarray(image).save(file, "JPEG")
    data = file.getvalue()[:60] if i in self.damaged else file.getvalue()
    extra = {"extra": 1.0} if i in self.misshapen else {}
    return {"image": data, "caption": ["a picture", f"picture {i}"], "id": i, **extra}


AUGMENT = (T.Decode(), T.RandomResizedCrop(8), T.Flip(), T.ColourJitter(0.4, 0.4, 0.4, 0.1),
           T.RandAugment(), T.Normalise("half"), T.SampleCaption(), T.Tokenise("bytes", 12))
KEEP = T.Keep(("image", "text", "text_mask", "id"))


def pictures(transforms=(*AUGMENT, KEEP), shuffle=True, seed=0, max_bad_fraction=1.0, max_bad=None,
             **source):
  return stream.Stream(Pictures(**source), transforms, shuffle, seed, max_bad_fraction, max_bad)
