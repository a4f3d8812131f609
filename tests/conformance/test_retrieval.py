"""Retrieval metrics equal OpenCLIP's `get_clip_metrics` (values in open_clip_retrieval.npz)."""

import pathlib

import numpy as np

from mmjax.evals import retrieval

CASE = pathlib.Path(__file__).parents[1] / "data/conformance/open_clip_retrieval.npz"


def test_retrieval_equals_open_clip():
  """Exactly: ranks of 40 pairs without ties are integers, and their means are float64."""
  case = np.load(CASE)
  ids = np.arange(len(case["in/image"]))
  got = retrieval.score(case["in/image"], case["in/text"], ids, ids, chunk=7)
  for way, name in (("i2t", "image_to_text"), ("t2i", "text_to_image")):
    for metric in ("mean_rank", "median_rank", "R@1", "R@5", "R@10"):
      assert got[f"{way}/{metric}"] == case[f"out/{name}_{metric}"], (way, metric)
