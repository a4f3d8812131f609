"""The baseline learns colours, cannot learn shapes, and is measured as a model is."""

import importlib.util
import pathlib
import sys

import numpy as np
import pytest

from mmjax.evals import retrieval, zero_shot

FILE = pathlib.Path(__file__).parents[2] / "launch/colour_histogram.py"
spec = importlib.util.spec_from_file_location("colour_histogram", FILE)
colour_histogram = sys.modules["colour_histogram"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(colour_histogram)

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}
SHAPES = ("bar", "pole")  # same area, so that colours tell nothing of them
WORDS = ("a", *COLOURS, *SHAPES)


def tokenise(record, rng):
  ids = [WORDS.index(word) for word in record["caption"].split()]
  text = np.zeros(4, np.int32)
  text[:len(ids)] = ids
  return {**record, "text": text, "text_mask": np.arange(4) < len(ids)}


class Pictures:
  """Records of a coloured bar or pole on noise, `count` of them; every tenth is bad."""

  def __init__(self, count, seed):
    self.count, self.rng = count, np.random.default_rng(seed)
    self.labels = self.rng.integers([4, 2], size=(count, 2))

  def __len__(self):
    return self.count

  def record(self, row):
    colour, shape = self.labels[row]
    image = self.rng.uniform(-0.2, 0.0, (8, 8, 3)).astype(np.float32)
    box = (slice(2, 4), slice(1, 7)) if SHAPES[shape] == "bar" else (slice(1, 7), slice(2, 4))
    image[box] = np.array(list(COLOURS.values())[colour]) * 2.0 - 1.0
    caption = f"a {list(COLOURS)[colour]} {SHAPES[shape]}"
    text = tokenise({"caption": caption}, None)
    if row % 10 == 9:
      image, text["text_mask"] = np.zeros_like(image), np.zeros(4, bool)
    return {"image": image, "text": text["text"], "text_mask": text["text_mask"],
            "colour": np.int32(colour), "shape": np.int32(shape),
            "valid": np.array(row % 10 != 9), "error": np.array("")}


def test_baseline_tells_colours_and_not_shapes_and_finds_captions_as_well_as_colours_allow():
  tasks = {
      "colour": zero_shot.build(classes=tuple(COLOURS), templates=("a {}", "a {} bar"),
                                tokenise=tokenise, label="colour", batch_size=64),
      "shape": zero_shot.build(classes=SHAPES, templates=("a {}",), tokenise=tokenise,
                               label="shape", batch_size=64),
      "retrieval": retrieval.build(distinct=True, batch_size=64)}
  got = colour_histogram.evaluate(Pictures(300, 0), tasks, default=Pictures(200, 1))
  assert got["colour/top1"] == 1.0 and got["colour/records"] == 180
  assert 0.3 < got["shape/top1"] < 0.7
  assert got["retrieval/images"] == 8
  assert 0.25 <= got["retrieval/i2t/R@1"] <= 0.75 and got["retrieval/i2t/R@1/chance"] == 1 / 8


def test_histogram_counts_pixels_and_does_not_depend_on_normalisation():
  images = np.random.default_rng(0).uniform(size=(3, 5, 4, 3)).astype(np.float32)
  low, high = np.zeros(3), np.ones(3)
  got = colour_histogram.histograms(images, low, high)
  level = np.floor(images * 8).astype(int)
  expected = np.zeros((3, 8, 8, 8))
  for i, y, x in np.ndindex(3, 5, 4):
    r, g, b = level[i, y, x]
    expected[i, b, g, r] += 1 / 20
  np.testing.assert_allclose(got[:, :-1] ** 2, expected.reshape(3, -1), atol=1e-6)
  moved = colour_histogram.histograms(images * 4 - 2, low * 4 - 2, high * 4 - 2)
  assert np.mean(moved != got) < 1e-3  # rounding moves a pixel on the edge of a bin


def test_regression_is_the_ridge_solution():
  rng = np.random.default_rng(0)
  images = rng.uniform(size=(30, 3, 3, 3)).astype(np.float32)
  text, mask = rng.integers(0, 6, (30, 4)), np.ones((30, 4), bool)
  fitted = colour_histogram.fit(images, text, mask)
  x = colour_histogram.histograms(images, fitted.low, fitted.high)
  y = np.stack([np.isin(np.arange(len(fitted.mean)), row) for row in text]) - fitted.mean
  # At the minimum of |x w - y|^2 + RIDGE |w|^2 its gradient is zero.
  gradient = x.T @ (x @ fitted.weights - y) + colour_histogram.RIDGE * fitted.weights
  np.testing.assert_allclose(gradient, 0, atol=1e-4)


def test_no_valid_training_record_is_an_error():
  pictures = Pictures(10, 0)
  pictures.record = lambda row: Pictures.record(pictures, 9)
  with pytest.raises(ValueError, match="no valid training record"):
    colour_histogram.evaluate(pictures, {})


def test_caption_is_its_known_tokens_less_what_every_caption_holds():
  baseline = colour_histogram.Baseline(None, None, np.array([1.0, 0.5, 0.25], np.float32), None)
  text, mask = np.array([[0, 1, 7, 2]]), np.array([[True, True, True, False]])  # 7 is not in train
  expected = np.array([[0.0, 0.5, -0.25]])
  np.testing.assert_allclose(baseline.text(text, mask), expected / np.linalg.norm(expected))
