"""SugarCrepe's accuracy and Winoground's scores against their definitions, score by score."""

import numpy as np
import pytest

from mmjax.evals import compositional
from tests.evals.fake import FakeSession, Stream


def winoground(scores):
  """Text, image and group score of s[example, caption, image], written as in the paper's equations."""
  text = image = group = 0
  for s in scores:
    f = s[0, 0] > s[1, 0] and s[1, 1] > s[0, 1]
    g = s[0, 0] > s[0, 1] and s[1, 1] > s[1, 0]
    text, image, group = text + f, image + g, group + (f and g)
  return np.array([text, image, group]) / len(scores)


def test_scores_are_the_papers():
  scores = np.random.default_rng(0).normal(size=(200, 2, 2))
  # Record 2i is image 0 with captions (0, 1), record 2i + 1 is image 1 with captions (1, 0).
  right = np.stack([scores[:, 0, 0], scores[:, 1, 1]], 1).reshape(-1)
  wrong = np.stack([scores[:, 1, 0], scores[:, 0, 1]], 1).reshape(-1)
  group = np.repeat(np.arange(200), 2)
  mixed = np.random.default_rng(1).permutation(400)
  got = compositional.score(right[mixed], wrong[mixed], np.zeros(400, int), group[mixed])
  np.testing.assert_allclose([got["text"], got["image"], got["group"]], winoground(scores), rtol=1e-12)
  np.testing.assert_allclose(winoground(np.random.default_rng(2).normal(size=(20_000, 2, 2))),
                             [got["text/chance"], got["image/chance"], got["group/chance"]], atol=0.01)
  assert got["examples"] == 200


def test_accuracy_of_categories_and_a_tie_is_no_hit():
  got = compositional.score(np.array([1.0, 2, 3, 4]), np.array([1.0, 1, 5, 3]), np.array([0, 0, 1, 1]),
                            np.arange(4), ("add", "swap"))
  assert got == {"accuracy": 0.5, "accuracy/chance": 0.5, "records": 4.0, "accuracy/add": 0.5, "accuracy/swap": 0.5}


@pytest.mark.parametrize("batch_size", (3, 8))
def test_records_are_scored_by_their_embeddings_and_invalid_ones_left_out(batch_size):
  rng = np.random.default_rng(0)
  unit = lambda *shape: (lambda x: x / np.linalg.norm(x, axis=-1, keepdims=True))(rng.normal(size=shape))
  words, images = unit(16, 4), unit(8, 4)
  text = np.arange(16).reshape(8, 2, 1)
  valid = np.arange(8) != 5
  records = {"image": images, "text": text, "text_mask": np.ones(text.shape, bool), "valid": valid,
             "category": np.arange(8) % 2, "group": np.arange(8)}
  session = FakeSession(records, words)
  session.default = Stream(records, names=("add", "swap"))
  got = compositional.build(batch_size=batch_size).run(session)
  scores = np.einsum("bd,bkd->bk", images, words[text[..., 0]])
  hit = (scores[:, 0] > scores[:, 1])[valid]
  assert got["accuracy"] == hit.mean() and got["records"] == 7
  assert got["accuracy/swap"] == hit[(np.arange(8) % 2 == 1)[valid]].mean()


def test_other_numbers_of_captions_and_no_records_are_refused():
  one = {"image": np.ones((2, 3)), "text": np.zeros((2, 1), int), "text_mask": np.ones((2, 1), bool),
         "category": np.zeros(2, int), "group": np.arange(2)}
  with pytest.raises(ValueError, match="expected two captions a record, found 1"):
    compositional.build(batch_size=2).run(FakeSession(one, np.ones((1, 3))))
  two = one | {"text": np.zeros((2, 2, 1), int), "text_mask": np.ones((2, 2, 1), bool), "valid": np.zeros(2, bool)}
  with pytest.raises(ValueError, match="no record with two captions"):
    compositional.build(batch_size=2).run(FakeSession(two, np.ones((1, 3))))
