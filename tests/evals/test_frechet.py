"""Fréchet distance: its formula, what it compares, and the encoder of another checkpoint."""

import dataclasses

from etils import epath
import jax
import numpy as np
import pytest
import scipy.linalg

from mmjax.checkpoint import paths
from mmjax.checkpoint.interop import workdir
from mmjax.checkpoint.interop.pretrained import Pretrained
from mmjax.evals import frechet
from mmjax.evals.frechet import Frechet
from mmjax.models.vit import ViT
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.assemble import assemble
from mmjax.training.evaluate import Session
from tests.evals.fake import FakeSession, Stream
from tests.training import tiny

RNG = np.random.default_rng(0)


def gaussian(size=5, count=400):
  mix = RNG.normal(size=(size, size))
  return RNG.normal(size=(count, size)) @ mix + RNG.normal(size=size)


def test_distance_of_diagonal_gaussians_is_the_closed_form():
  mean, other_mean = RNG.normal(size=4), RNG.normal(size=4)
  deviation, other = RNG.uniform(0.1, 3, 4), RNG.uniform(0.1, 3, 4)
  want = np.square(mean - other_mean).sum() + np.square(deviation - other).sum()
  got = frechet.distance((mean, np.diag(deviation ** 2)), (other_mean, np.diag(other ** 2)))
  np.testing.assert_allclose(got, want, rtol=1e-12)


def test_distance_is_that_of_scipys_square_root():
  one, other = frechet.moments(gaussian()), frechet.moments(gaussian())
  root = scipy.linalg.sqrtm(one[1] @ other[1]).real
  want = np.square(one[0] - other[0]).sum() + np.trace(one[1] + other[1] - 2 * root)
  np.testing.assert_allclose(frechet.distance(one, other), want, rtol=1e-8)
  np.testing.assert_allclose(frechet.distance(other, one), want, rtol=1e-8)


def test_a_set_is_at_no_distance_from_itself_even_with_few_records():
  few = frechet.moments(gaussian(size=20, count=6))  # a singular covariance
  np.testing.assert_allclose(frechet.distance(few, few), 0, atol=1e-6)


def session(reference, others, **more):
  made = FakeSession({"image": others.astype(np.float32), **more}, more=("image/made",))
  made.reference = Stream({"image": reference.astype(np.float32)})
  made.abstract_batch = lambda stream, size: {
      name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype)
      for name, x in made.stream(stream).records.items()}
  return made


def test_both_streams_are_compared_without_padding():
  reference, others = gaussian(count=50), gaussian(count=30) + 2
  want = frechet.distance(frechet.moments(reference.astype(np.float32)),
                          frechet.moments(others.astype(np.float32)))
  fake = session(reference, others)
  got = Frechet(reference=fake.reference, feature="image/embed", batch_size=16).run(fake)
  np.testing.assert_allclose(got["distance"], want, rtol=1e-6)
  assert got["records"] == 30 and 0 < got["distance/halves"] < got["distance"]
  first = Frechet(reference=fake.reference, feature="image/embed", batch_size=16, max_records=20)
  assert first.run(fake)["records"] == 20


def test_pictures_that_a_model_makes_go_through_the_encoder():
  reference = gaussian(count=40)
  fake = session(reference, reference + 5, **{"image/made": reference.astype(np.float32)})
  own = Frechet(reference=fake.reference, feature="image/embed")
  made = Frechet(reference=fake.reference, feature="image/embed", pictures="image/made",
                 show=0)
  assert own.run(fake)["distance"] > 100 and made.run(fake)["distance"] < 1e-6


def test_bad_input_is_named():
  with pytest.raises(ValueError, match="^max_records: must be at least 2"):
    Frechet(reference=None, max_records=1)
  fake = session(gaussian(count=3), gaussian(count=50))
  with pytest.raises(ValueError, match="^evals.fake.reference: 3 records"):
    Frechet(reference=fake.reference, feature="image/embed").run(fake)
  for message, changes in {"pictures: 'image/nothing'": dict(pictures="image/nothing"),
                           "feature: 'image/tokens'": dict(feature="image/tokens")}.items():
    with pytest.raises(ValueError, match=f"^evals.fake.{message}"):
      Frechet(reference=fake.reference, **{"feature": "image/embed", **changes}).check(fake)


def test_the_encoder_of_another_checkpoint_gives_the_features(tmp_path):
  pairs = tiny.write_pairs(tmp_path / "pairs.npz")
  node = {"name": "vit", "patch": 8, "width": 16, "depth": 1, "heads": 2, "pool": "mean",
          "position": "sincos"}
  encoder = ViT(**{key: value for key, value in node.items() if key != "name"})
  batch = {"image": np.load(pairs)["image"][:8], "row": np.zeros((8, 2), np.uint32),
           "valid": np.ones(8, bool)}
  params = mesh_lib.unbox(jax.jit(encoder.init)(jax.random.key(0), batch["image"])["params"])
  path = str(tmp_path / "encoder")
  workdir.write(Pretrained(objective={"name": "encoder", "model": node},
                           params=paths.flatten(params)), epath.Path(path))
  run = assemble(tiny.config(pairs, evals={"frechet": {
      "reference": {"source": {"name": "arrays", "path": pairs}}, "encoder": path,
      "batch_size": 32}}))
  evaluated, evaluator = Session(run), run.evaluations[0].evaluator
  with run.use():
    got = evaluated.encoder(path)(batch)["image/pooled"]
    want = jax.jit(encoder.apply)({"params": params}, batch["image"])[0]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    evaluator.check(evaluated)
    assert abs(evaluator.run(evaluated)["distance"]) < 1e-6  # of the stream from itself
    with pytest.raises(ValueError, match="evals..encoder: .*nowhere"):
      dataclasses.replace(evaluator, encoder=path + "/nowhere").check(evaluated)
