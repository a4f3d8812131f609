"""Reconstruction: PSNR against its formula, the pictures kept for the report."""

import numpy as np
import pytest

from mmjax.data.image_transforms import Normalise
from mmjax.evals.reconstruction import Reconstruction, psnr
from mmjax.report import kept
from tests.evals.fake import FakeSession

RNG = np.random.default_rng(0)


class Session(FakeSession):
  """Gives the pictures of `made`, batch by batch, as a masked model would."""

  def __init__(self, records, made, masked=None, **more):
    super().__init__(records, **more)
    self.made, self.masked, self.row = made, masked, 0

  def features(self, batch, want=()):
    key = want[0].partition("/")[0]
    rows = slice(self.row, self.row + len(batch[key]))
    self.row += len(batch[key])
    found = {want[0]: self.made} | ({} if self.masked is None else {f"{key}/masked": self.masked})
    count = len(batch[key])
    return {name: np.resize(x[rows], (count, *x.shape[1:])) for name, x in found.items()}


def test_psnr_is_of_the_masked_pixels_in_units_of_the_range():
  """The model's pixels are normalised; errors elsewhere and in bad rows do not count."""
  pixels = RNG.uniform(0.2, 0.8, (3, 8, 8, 3)).astype(np.float32)
  made = pixels + RNG.uniform(-0.1, 0.1, pixels.shape).astype(np.float32)
  masked = RNG.random((3, 8, 8, 1)) < 0.5
  normalise = Normalise(preset="imagenet")
  there = lambda x: np.stack([normalise({"image": one}, None)["image"] for one in x])
  records = {"image": there(pixels), "valid": np.array([True, True, False])}
  off = np.where(masked, made, 0.9)  # what was seen is not judged
  session = Session(records, there(off), masked, transforms=(normalise,))
  found = Reconstruction(batch_size=2).run(session)
  want, mean = [], []
  for truth, picture, where in zip(pixels[:2], made[:2], masked[:2, ..., 0]):
    want.append(-10 * np.log10(np.mean((truth[where] - picture[where]) ** 2)))
    mean.append(-10 * np.log10(np.mean((truth[where] - truth[~where].mean(axis=0)) ** 2)))
  np.testing.assert_allclose(found["psnr"], np.mean(want), rtol=1e-4)
  np.testing.assert_allclose(found["psnr/mean"], np.mean(mean), rtol=1e-4)
  assert found["records"] == 2
  pictures = session.saved["reconstructions"]["pictures"]
  assert pictures.shape == (2, 3, 8, 8, 3) and pictures.dtype == np.uint8
  given, seen, made_there = pictures[0]
  np.testing.assert_allclose(given, np.rint(255 * pixels[0]), atol=1)
  assert (seen[masked[0, ..., 0]] == 128).all()
  np.testing.assert_array_equal(seen[~masked[0, ..., 0]], given[~masked[0, ..., 0]])


def test_without_a_mask_the_whole_picture_counts():
  pixels = RNG.uniform(size=(2, 4, 4, 3)).astype(np.float32)
  session = Session({"image": pixels}, np.clip(pixels + 0.1, None, 1))
  found = Reconstruction(batch_size=2, max_records=1).run(session)
  assert found["records"] == 1 and 20 <= found["psnr"] < 24
  assert session.saved["reconstructions"]["pictures"].shape == (1, 2, 4, 4, 3)


def test_clips_are_shown_as_frames_side_by_side():
  video = RNG.uniform(size=(1, 8, 4, 6, 3)).astype(np.float32)
  masked = np.broadcast_to((np.arange(8) > 3)[:, None, None, None], (1, 8, 4, 6, 1))
  session = Session({"video": video}, video, masked)
  found = Reconstruction(input="video", batch_size=1).run(session)
  assert found["psnr"] == 100.0
  assert session.saved["reconstructions"]["pictures"].shape == (1, 3, 4, 24, 3)


def test_psnr_of_a_tenth_is_twenty_decibels():
  np.testing.assert_allclose(psnr(np.zeros(4), np.full(4, 0.1)), 20)


def test_the_report_shows_a_line_a_record():
  page = kept.reconstructions({"pictures": np.zeros((2, 3, 4, 4, 3), np.uint8)})
  assert page.count("<img") == 6 and page.count(">masked<") == 2
  assert kept.reconstructions({"pictures": np.zeros((1, 2, 4, 4, 3), np.uint8)}).count("<img") == 2


@pytest.mark.parametrize("fields, message", [
    (dict(max_records=0), "max_records: must be at least 1"),
    (dict(show=-1), "show: must be at least 0")])
def test_bad_settings_are_refused(fields, message):
  with pytest.raises(ValueError, match=message):
    Reconstruction(**fields)
