"""Dense probes against scikit-learn, NumPy loops and planted signals."""

import jax
import numpy as np
import pytest

from configs import common
from mmjax import config as config_lib
from mmjax import train
from mmjax.evals import dense_labels, dense_probe, frozen
from mmjax.training.assemble import assemble
from mmjax.training.evaluate import Session
from tests.conftest import needs
from tests.evals.fake import FakeSession, Stream

LABELS = ("depth", "normals", "semantic")
TRIVIAL = {"rmse": "mean", "delta1": "mean", "angle": "mean", "miou": "majority",
           "pixel_accuracy": "majority"}


def records(count=24, grid=4, patch=4, dim=12, noise=0.0, seed=0):
  """Tokens [N, grid^2, dim] of which the labels are a linear function, the same for any `seed`.

  All pixels of a patch have one label, so pooling loses nothing.
  """
  rng, fixed = np.random.default_rng(seed), np.random.default_rng(9)
  tokens = rng.normal(size=(count, grid, grid, dim))
  depth = 5 + tokens @ fixed.normal(size=(dim, 1)) / 3
  normals = dense_labels.unit(tokens @ fixed.normal(size=(dim, 3)) / 3 + [0, 0, 2])
  classes = (tokens @ fixed.normal(size=(dim, 3))).argmax(axis=-1)
  pixels = lambda array: array.repeat(patch, axis=1).repeat(patch, axis=2)
  seen = tokens + noise * rng.normal(size=tokens.shape)
  return {"image/tokens": seen.reshape(count, grid * grid, dim).astype(np.float32),
          "depth": pixels(np.maximum(depth, 0.5)).astype(np.float32),
          "normals": pixels(normals).astype(np.float32),
          "semantic": pixels(classes).astype(np.int32)}


def probe(label, train, test, **more):
  return dense_probe.build(train=Stream(train), label=label, batch_size=7, **more).run(
      FakeSession(test))


# Metrics


def test_depth_metrics_are_those_of_a_loop_over_known_pixels():
  rng = np.random.default_rng(0)
  kind, seen = dense_labels.Depth(), rng.uniform(1, 5, (3, 6, 6, 1))
  kind.observe(seen)
  errors, near, count = [], 0, 0
  for _ in range(4):
    label, guess = rng.uniform(1, 5, (6, 6, 1)), rng.uniform(-1, 6, (6, 6, 1))
    label[rng.random((6, 6)) < 0.3] = 0
    kind.score(guess, label)
    for truth, value in zip(label.ravel(), guess.ravel()):
      if truth > 0:
        value = max(value, 1e-3)
        errors.append((value - truth) ** 2)
        near += max(value / truth, truth / value) < 1.25
        count += 1
  found = kind.metrics()
  assert kind.known == count
  assert found["rmse"] == pytest.approx(np.sqrt(np.mean(errors)))
  assert found["delta1"] == pytest.approx(near / count)


def test_angle_is_that_between_prediction_and_truth_in_degrees():
  kind = dense_labels.Normals()
  kind.observe(np.broadcast_to(np.array([0, 0, 1.0]), (1, 2, 2, 3)))
  label = np.array([[[0, 0, 1.0], [1, 0, 0]], [[0, 1, 0], [0, 0, 0]]])  # the last one unknown
  guess = np.array([[[0, 0, 3.0], [0, 1, 0]], [[0, 1, 1], [9, 9, 9]]])
  kind.score(guess, label)
  assert kind.metrics() == {"angle": pytest.approx((0 + 90 + 45) / 3),
                            "angle/mean": pytest.approx((0 + 90 + 90) / 3)}


def test_miou_and_accuracy_are_those_of_scikit_learn():
  metrics = needs("sklearn.metrics")
  rng = np.random.default_rng(1)
  kind = dense_labels.Classes()
  kind.observe(np.array([[[0, 1, 2, 3, 4, 2, 2]]]))
  label, scores = rng.integers(-1, 4, (5, 8, 8)), rng.normal(size=(5, 8, 8, 5))  # 4 is not there
  scores[rng.random((5, 8, 8)) < 0.4, 1] += 3
  for one, score in zip(label, scores):
    kind.score(score, one)
  truth, guess = label[label >= 0], scores.argmax(-1)[label >= 0]
  found, there = kind.metrics(), [0, 1, 2, 3]
  jaccard = lambda guess: metrics.jaccard_score(truth, guess, labels=there, average="macro")
  assert found["miou"] == pytest.approx(jaccard(guess))
  assert found["pixel_accuracy"] == pytest.approx(metrics.accuracy_score(truth, guess))
  assert found["miou/majority"] == pytest.approx(jaccard(np.full_like(truth, 2)))
  assert found["pixel_accuracy/majority"] == pytest.approx(np.mean(truth == 2))


# The fit


@pytest.mark.parametrize("l2", [1e-3, 1.0, 300.0])
def test_ridge_is_scikit_learns(l2):
  linear_model = needs("sklearn.linear_model")
  rng = np.random.default_rng(0)
  (x,) = frozen.standardise(rng.normal(2, 3, (60, 9)))
  y = rng.normal(size=(60, 2)) + x[:, :2]
  theirs = linear_model.Ridge(alpha=l2).fit(x, y)
  weights = dense_probe.fit_ridge(x, y, l2)
  np.testing.assert_allclose(weights[:-1].T, theirs.coef_, atol=1e-9)
  np.testing.assert_allclose(weights[-1], theirs.intercept_, atol=1e-9)


def test_strength_of_ridge_is_the_best_on_held_out_patches():
  rng = np.random.default_rng(0)
  x, x_held = rng.normal(size=(2, 40, 30))
  weights = rng.normal(size=(30, 1))
  y, y_held = (part @ weights + 4 * rng.normal(size=(40, 1)) for part in (x, x_held))
  l2 = dense_probe.choose_for_ridge(x, y, x_held, y_held)
  error = lambda l2: np.mean((np.hstack([x_held, np.ones((40, 1))])
                              @ dense_probe.fit_ridge(x, y, l2) - y_held) ** 2)
  assert 1e-6 < l2 < 1e6
  assert error(l2) <= min(error(10.0**power) for power in range(-6, 7))


@pytest.mark.parametrize("grid, size", [((4, 4), (16, 16)), ((3, 5), (12, 30)), ((4, 4), (4, 4))])
def test_upsampling_is_bilinear_as_jax_image_resize(grid, size):
  array = np.random.default_rng(0).normal(size=(*grid, 2)).astype(np.float32)
  theirs = jax.image.resize(array, (*size, 2), "linear")
  np.testing.assert_allclose(dense_probe.upsample(array, size), theirs, atol=1e-6)


def test_targets_are_what_is_known_of_a_patch():
  depth = np.zeros((1, 4, 4, 1), np.float32)
  depth[0, 0, :2, 0] = 2, 4          # of the first patch half is known
  depth[0, 2:, 2:] = 7
  mean, known = dense_labels.Depth().pool(depth, (2, 2))
  np.testing.assert_array_equal(known, [[[True, False], [False, True]]])
  assert mean[0, 0, 0] == 3 and mean[0, 1, 1] == 7
  normals = np.zeros((1, 2, 2, 3), np.float32)
  normals[0, 0] = [[1, 0, 0], [0, 1, 0]]
  mean, known = dense_labels.Normals().pool(normals, (1, 1))
  np.testing.assert_allclose(mean[0, 0, 0], [0.5**0.5, 0.5**0.5, 0], atol=1e-6)
  classes = np.array([[[3, 1, -1, -1], [1, 1, -1, -1]]])
  commonest, known = dense_labels.Classes().pool(classes, (1, 2))
  assert commonest[0, 0, 0] == 1 and list(known[0, 0]) == [True, False]


# The whole


@pytest.mark.parametrize("label", LABELS)
def test_a_planted_signal_is_found_and_noise_is_the_trivial_predictor(label):
  more = {"patches": None, "l2": 10.0 if label == "semantic" else None}
  found = probe(label, records(64), records(24, seed=1), **more)
  blind = {**records(64), "image/tokens": records(64, seed=5)["image/tokens"]}
  noise = probe(label, blind, {**records(24, seed=1),
                               "image/tokens": records(24, seed=6)["image/tokens"]}, **more)
  for name in {"depth": ("rmse",), "normals": ("angle",), "semantic": ("pixel_accuracy", "miou")
               }[label]:
    trivial = found[f"{name}/{TRIVIAL[name]}"]
    # Between the patches' centres the truth jumps and the prediction does not, so even a probe that
    # knows the labels is not right everywhere.
    if label == "semantic":
      assert found[name] > trivial + 0.25
      assert noise[name] < trivial + 0.15
    else:
      assert found[name] < 0.75 * trivial
      assert noise[name] > 0.97 * noise[f"{name}/{TRIVIAL[name]}"]
  assert found["records"] == 24 and found["patches"] == 64 * 16


def test_at_one_pixel_a_patch_a_linear_label_is_exact():
  found = probe("depth", records(64, patch=1), records(24, patch=1, seed=1), l2=1e-6, patches=None)
  assert found["rmse"] < 0.05 < found["rmse/mean"] and found["delta1"] > 0.99


@pytest.mark.parametrize("label, unknown", [("depth", 0), ("normals", 0), ("semantic", -1)])
def test_unknown_pixels_are_neither_learned_nor_scored(label, unknown):
  train, test = records(32), records(12, seed=1)
  plain = probe(label, train, test, l2=1.0, patches=None)
  holes = {}
  for name, part in (("train", train), ("test", test)):
    part = {key: array.copy() for key, array in part.items()}
    part[label][:, :2, :1] = unknown    # a part of one patch: its mean and its class stay
    part["image/tokens"][0] = 50        # a record of which nothing is known
    part[label][0] = unknown
    holes[name] = part
  found = probe(label, holes["train"], holes["test"], l2=1.0, patches=None)
  assert found["patches"] == plain["patches"] - 16
  name = {"depth": "rmse", "normals": "angle", "semantic": "pixel_accuracy"}[label]
  assert found[name] == pytest.approx(plain[name], rel=0.15)


def test_invalid_records_and_those_past_the_cap_are_left_out():
  train, test = records(30), records(20, seed=1)
  for part in (train, test):
    part["valid"] = np.arange(len(part["depth"])) % 3 != 0
    part["depth"][~part["valid"]] = 1e6
    part["image/tokens"][~part["valid"]] = 1e6
  found = probe("depth", train, test, max_records=9, patches=5)
  assert found["records"] == 9 and found["patches"] == 45 and found["rmse"] < found["rmse/mean"]


def test_a_diverged_model_is_the_trivial_predictor_and_no_error():
  train, test = records(16), records(8)
  train["image/tokens"][:] = test["image/tokens"][:] = np.nan
  found = probe("depth", train, test, l2=1.0, patches=None)
  assert found["rmse"] == pytest.approx(found["rmse/mean"])


def test_probe_does_not_depend_on_scale_and_offset_of_the_tokens():
  train, test = records(24, noise=0.5), records(12, noise=0.5, seed=1)
  first = probe("depth", train, test)
  for part in (train, test):
    part["image/tokens"] = part["image/tokens"] * 40 - 9
  second = probe("depth", train, test)
  assert second["l2"] == first["l2"] and second["rmse"] == pytest.approx(first["rmse"], rel=1e-4)


def test_a_map_and_a_given_grid_are_read_as_tokens_row_by_row():
  train, test = records(24), records(12, seed=1)
  found = probe("depth", train, test)
  for part in (train, test):
    part["image/map"] = part["image/tokens"].reshape(-1, 4, 4, 12)
  assert probe("depth", train, test, feature="image/map") == found
  assert probe("depth", train, test, grid=(4, 4)) == found
  for part in (train, test):  # the lower half cut off: 2 rows of 4
    part["image/tokens"] = part["image/tokens"][:, :8]
    part["depth"] = part["depth"][:, :8]
  assert probe("depth", train, test, grid=(2, 4))["rmse"] < found["rmse/mean"]


def test_the_model_is_not_shown_the_maps():
  class Blind(FakeSession):
    def features(self, batch, want=()):
      assert not {"depth", "normals", "semantic", "text"} & set(batch)
      return super().features(batch, want)

  part = {**records(12), "text": np.zeros((12, 3), np.int32)}
  dense_probe.build(train=Stream(part), batch_size=8).run(Blind(part))


class Checked(FakeSession):
  """With the shapes of the batches, as `check` wants them."""

  def abstract_batch(self, stream, batch_size):
    return next(self.batches(stream, batch_size))


@pytest.mark.parametrize("change, message", [
    ({"feature": "image/token"}, "fake.feature: .* mean 'image/tokens'"),
    ({"feature": "image/pooled"}, r"fake.feature: 'image/pooled' has the shape \[8, 3\]; tokens"),
    ({"label": "normals"}, "fake.label: the records of train have no 'normals'"),
    ({"label": "semantic"}, r"fake.label: 'semantic' of train is float32 \[16, 16\] .* int \[H,"),
    ({"grid": (3, 5)}, r"fake.grid: 'image/tokens' has 16 tokens, which are not 3 rows of 5"),
    ({"grid": (1, 16)}, None),
    ({"grid": (16, 1), "feature": "image/tall"}, r"fake.grid: .*48 tokens"),
    ({"feature": "image/nine"}, r"fake.label: 'depth' of \[16, 16\] pixels cannot .* \[3, 3\]"),
])
def test_settings_that_do_not_fit_are_one_line_with_the_key_before_anything_runs(change, message):
  part = records(16)
  part = {"image/tokens": part["image/tokens"], "depth": part["depth"],
          "semantic": part["depth"][..., 0], "image/pooled": np.zeros((16, 3), np.float32),
          "image/tall": np.zeros((16, 48, 2), np.float32),
          "image/nine": np.zeros((16, 9, 2), np.float32)}
  evaluator = dense_probe.build(**{"train": Stream(part), "batch_size": 8, **change})
  if message is None:
    return evaluator.check(Checked(part))
  for act in (evaluator.check, evaluator.run):
    with pytest.raises(ValueError, match=r"^evals." + message) as error:
      act(Checked(part))
    assert "\n" not in str(error.value)


def test_records_that_tell_nothing_are_one_line_with_the_key():
  empty = {**records(12), "depth": np.zeros((12, 16, 16, 1), np.float32)}
  with pytest.raises(ValueError, match="fake.train: has no pixel whose depth is known"):
    probe("depth", empty, records(12))
  with pytest.raises(ValueError, match="fake.data: has no pixel whose depth is known"):
    probe("depth", records(12), empty)
  same = {**records(12), "semantic": np.full((12, 16, 16), 2, np.int32)}
  with pytest.raises(ValueError, match="fake.train: all 192 patches are of class 2"):
    probe("semantic", same, records(12))
  more = {**records(12), "semantic": np.full((12, 16, 16), 7, np.int32)}
  with pytest.raises(ValueError, match="fake.train: has no pixel of class 7, which data has"):
    probe("semantic", records(12), more, l2=1.0)
  with pytest.raises(ValueError, match="fake.train: has 1 records of which some cannot be held"):
    probe("depth", records(1), records(12))


@pytest.mark.parametrize("change, message", [
    ({"label": "instance"}, "label: must be one of depth, normals, semantic, not 'instance'"),
    ({"grid": (4,)}, "grid: must"), ({"l2": 0.0}, "l2: must"),
    ({"held_out": 1.0}, "held_out: must"), ({"patches": 0}, "patches: must"),
    ({"max_records": 0}, "max_records: must")])
def test_values_out_of_range_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    dense_probe.build(train=None, **change)


@pytest.mark.slow
def test_the_probes_of_a_recipe_run_on_an_untrained_encoder_without_data():
  c = common.base(batch_size=8, total_steps=1)
  c.objective = {"name": "encoder", "model": {
      "name": "vit", "patch": 8, "grid": (8, 8), "width": 32, "depth": 1, "heads": 2,
      "pool": "mean", "scan": False}}
  c.data = common.maps("train", ("depth",), count=20, size=64, crop=(0.5, 1.0))
  c.evals = common.dense_probes(count=20, size=64, records=8)
  for node in c.evals.values():
    node.update(batch_size=8, l2=1.0, data=node["train"])
  run = assemble(config_lib.plain(c), example_data=True)  # one picture over and over
  session, state = Session(run), run.create_state()
  session.check(state)
  found = train.evaluate(run, state, session)
  assert found["depth_dense_probe/patches"] == 8 * 16
  assert found["depth_dense_probe/records"] == 8
  assert found["depth_dense_probe/rmse"] < found["depth_dense_probe/rmse/mean"]
  assert found["normals_dense_probe/angle"] < found["normals_dense_probe/angle/mean"]
  assert found["semantic_dense_probe/miou"] > found["semantic_dense_probe/miou/majority"]
