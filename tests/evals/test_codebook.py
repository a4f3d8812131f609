"""Use of codes over a stream, against a count by hand."""

import numpy as np
import pytest

from mmjax.config import ConfigError
from mmjax.evals.codebook import IDS, VOCABULARY, Codebook
from tests.evals.fake import FakeSession


class Session(FakeSession):
  """Gives the ids of its records and says that there are 8."""

  def features(self, batch, want=()):
    return {IDS: batch[IDS], VOCABULARY: np.int32(8)}


class NoIds(FakeSession):
  def abstract_batch(self, stream, batch_size):
    return {}

  def error(self, key, what):
    return ConfigError(f"evals.codebook.{key}: {what}")


def test_codes_are_counted_over_valid_rows():
  ids = np.array([[0, 0], [3, 3], [5, 5], [7, 7], [0, 0]])
  valid = np.array([True, True, True, False, True])
  found = Codebook(batch_size=2).run(Session({IDS: ids, "valid": valid}))
  share = np.array([4, 2, 2]) / 8
  assert found == pytest.approx({
      "used": 3 / 8, "perplexity": np.exp(-np.sum(share * np.log(share))), "perplexity/ceiling": 8})


def test_codes_are_counted_as_far_as_wanted():
  session = Session({IDS: np.arange(6)[:, None], "valid": np.ones(6, bool)})
  assert Codebook(batch_size=2, max_records=3).run(session)["used"] == pytest.approx(4 / 8)
  with pytest.raises(ValueError, match="max_records: must be at least 1"):
    Codebook(max_records=0)


def test_an_objective_without_ids_is_named_before_the_run():
  with pytest.raises(ConfigError, match="evals.codebook.name: the objective has no tokenizer"):
    Codebook().check(NoIds({"image": np.zeros((2, 3))}))


def test_a_stream_of_bad_records_is_an_error():
  session = Session({IDS: np.zeros((2, 2), int), "valid": np.zeros(2, bool)})
  with pytest.raises(ValueError, match="no valid record"):
    Codebook().run(session)
