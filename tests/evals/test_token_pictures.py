"""Attention maps and principal components of patches: what they show, and that a report shows them."""

import numpy as np
import pytest

from mmjax.evals import feature_pca, token_pictures
from mmjax.evals.attention_maps import AttentionMaps
from mmjax.evals.feature_pca import FeaturePca
from mmjax.report import html, kept
from tests.evals.fake import FakeSession

GRID, HEADS, RECORDS = (2, 3), 2, 5
PATCHES = GRID[0] * GRID[1]
WANT = ("image/attention", "image/tokens")


def session(prefix=1, tokens=None, attention=None):
  """Pictures of 16 x 24 pixels, six patches in two rows; records beyond the third are not valid."""
  rng = np.random.default_rng(0)
  length = prefix + PATCHES
  if attention is None:
    attention = rng.dirichlet(np.ones(length), (RECORDS, HEADS, length)).astype(np.float32)
  if tokens is None:
    tokens = rng.normal(size=(RECORDS, PATCHES, 4)).astype(np.float32)
  image = rng.integers(100, 200, (RECORDS, 16, 24, 3)).astype(np.uint8)
  valid = np.array([True, False, True, True, True])
  return FakeSession({"image": image, "valid": valid, "image/attention": attention,
                      "image/tokens": tokens}, more=WANT)


def test_first_valid_records_are_taken_in_order():
  fake = session()
  rows, found = token_pictures.first_records(fake, AttentionMaps(records=3), WANT)
  np.testing.assert_array_equal(rows, [0, 2, 3])
  np.testing.assert_array_equal(found["image/tokens"],
                                fake.default.records["image/tokens"][[0, 2, 3]])


def test_the_map_is_what_the_class_token_sees_of_the_patches():
  fake = session(prefix=2)
  attention = fake.default.records["image/attention"]
  maps = AttentionMaps(grid=GRID).maps(fake, attention, PATCHES)
  seen = attention[:, :, 0, 2:]
  np.testing.assert_allclose(maps, seen / seen.sum(axis=-1, keepdims=True), rtol=1e-6)
  mean = AttentionMaps(grid=GRID, query="mean").maps(fake, attention, PATCHES)
  seen = attention[:, :, 2:, 2:].mean(axis=2)
  np.testing.assert_allclose(mean, seen / seen.sum(axis=-1, keepdims=True), rtol=1e-6)


def test_a_picture_is_bright_where_the_model_looks():
  attention = np.full((RECORDS, HEADS, PATCHES + 1, PATCHES + 1), 1e-6, np.float32)
  attention[:, :, 0, 1 + 5] = 1  # the last patch, lower right
  fake = session(attention=attention)
  metrics = AttentionMaps(grid=GRID, records=2).run(fake)
  assert metrics["entropy"] < 0.01 and metrics["records"] == 2
  saved = fake.saved["attention"]
  assert saved["pictures"].shape == (2, 2 + HEADS, 16, 24, 3)
  assert list(saved["captions"]) == ["picture", "all heads", "head 0", "head 1"]
  picture, lit = saved["pictures"][0, :2].astype(float)
  share = lit / picture
  assert share[12:, 20:].min() > 0.9 and share[:6, :12].max() < 0.2


def test_uniform_attention_has_the_entropy_one():
  attention = np.ones((RECORDS, HEADS, PATCHES, PATCHES), np.float32) / PATCHES
  fake = session(prefix=0, attention=attention)
  np.testing.assert_allclose(AttentionMaps(grid=GRID).run(fake)["entropy"], 1, rtol=1e-6)


def test_components_are_those_of_the_singular_value_decomposition():
  rows = np.random.default_rng(1).normal(size=(50, 6)) @ np.diag([5, 4, 3, 1, 1, 0.1])
  values, explained = feature_pca.components(rows, 3)
  centred = rows - rows.mean(axis=0)
  left, singular, _ = np.linalg.svd(centred, full_matrices=False)
  np.testing.assert_allclose(np.abs(values), np.abs(left * singular)[:, :3], rtol=1e-6, atol=1e-8)
  np.testing.assert_allclose(explained, (singular[:3] ** 2).sum() / (singular ** 2).sum())
  assert (values.max(axis=0) >= -values.min(axis=0)).all()


def test_patches_that_are_alike_have_one_colour():
  kinds = np.array([[0, 1, 2, 0, 1, 2]] * RECORDS)
  tokens = np.random.default_rng(2).normal(size=(3, 8))[kinds].astype(np.float32)
  fake = session(tokens=tokens)
  metrics = FeaturePca(grid=GRID).run(fake)
  np.testing.assert_allclose(metrics["explained"], 1, rtol=1e-6)
  colours = fake.saved["feature_pca"]["pictures"][:, 1]
  assert colours.shape == (4, 16, 24, 3)
  patches = colours.reshape(4, 2, 8, 3, 8, 3)
  assert (patches == patches[:1, :, :1, :, :1]).all()  # in every picture, all over a patch
  assert len(np.unique(patches[0, 0, 0, :, 0], axis=0)) == 3


def test_features_that_are_all_the_same_are_grey():
  fake = session(tokens=np.ones((RECORDS, PATCHES, 4), np.float32))
  assert FeaturePca(grid=GRID).run(fake)["explained"] == 1
  assert set(np.unique(fake.saved["feature_pca"]["pictures"][:, 1])) == {128}


def test_bad_input_is_named():
  for make in AttentionMaps, FeaturePca:
    with pytest.raises(ValueError, match="^records: must be at least 1"):
      make(records=0)
    with pytest.raises(ValueError, match="^evals.fake.grid: 6 patches are not 2x2"):
      make().run(session())
  with pytest.raises(ValueError, match="^query: must be one of"):
    AttentionMaps(query="all")
  with pytest.raises(ValueError, match="^evals.fake.query: no token stands before the patches"):
    AttentionMaps(query="prefix", grid=GRID).run(session(prefix=0))
  nothing = session()
  nothing.default.records["valid"] = np.zeros(RECORDS, bool)
  with pytest.raises(ValueError, match="^evals.fake.data: the stream has no valid record"):
    FeaturePca(grid=GRID).run(nothing)


def test_the_report_shows_the_pictures_with_their_captions(tmp_path):
  fake = session()
  AttentionMaps(grid=GRID, records=2).run(fake)
  FeaturePca(grid=GRID, records=2).run(fake)
  folder = tmp_path / "evals" / "7"
  folder.mkdir(parents=True)
  (tmp_path / "config.json").write_text('{"total_steps": 7}')
  for kind, arrays in fake.saved.items():
    assert kept.strips(arrays).count("<img") == 2 * len(arrays["captions"])
    np.savez(folder / f"look-{kind}.npz", **arrays)
  page = html.render(str(tmp_path))
  assert "all heads" in page and "components" in page and page.count("look, at step 7") == 2
