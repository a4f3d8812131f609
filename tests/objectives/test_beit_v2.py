"""BEiT v2: the loss is the cross-entropy of the ids at masked places, in both predictions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.masking.block import Block
from mmjax.models.palette import Palette
from mmjax.models.patch_aggregation import PatchAggregation
from mmjax.models.vit import ViT
from mmjax.objectives.contract import Context
from mmjax.objectives.masked import Masked
from mmjax.parallel import mesh as mesh_lib
from mmjax.targets.tokens import Tokens

ROWS = 4


@pytest.fixture(scope="module")
def case():
  """The objective on a batch: its features in training, and terms."""
  objective = Masked(
      encoder=ViT(patch=2, width=16, depth=2, heads=2, class_token=True, mask_token=True,
                  pool="mean", position="sincos"),
      mask=Block(ratio=0.4, least=2), target=Tokens(Palette(patch=2, levels=3)), hide="token",
      decoder=PatchAggregation(width=16, layer=0, depth=1, heads=2), loss="cross_entropy")
  rng = np.random.default_rng(0)
  batch = {"image": rng.uniform(-1, 1, (ROWS, 8, 8, 3)).astype(np.float32),
           "row": np.stack([np.zeros(ROWS), np.arange(ROWS)], 1).astype(np.uint32),
           "valid": np.arange(ROWS) != 2}
  shapes, state = jax.eval_shape(objective.init, jax.random.key(0), batch)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.2).astype(np.float32),
                        mesh_lib.unbox(shapes))
  ctx = Context(step=jnp.int32(0), state=state, teachers={}, seed=1)

  @jax.jit
  def run(params, batch):
    features, _ = objective.forward(ctx, params, batch)
    return features, objective.terms(ctx, params, features, batch)[0]

  return objective, ctx, batch, *run(params, batch)


def test_loss_is_the_cross_entropy_of_the_ids_of_masked_tokens(case):
  objective, ctx, batch, features, terms = case
  ids = np.asarray(objective.target.tokenizer.ids({}, batch["image"]))
  drop = np.asarray(objective.mask(ctx.keys("mask", batch), (4, 4)).drop)
  assert drop.shape == (ROWS, 7)  # 16 - floor(16 * 0.6)
  assert set(terms) == {"prediction", "aggregated"}
  for name, logits in features["predictions"].items():
    logits = np.asarray(logits, np.float64)
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, np.take_along_axis(ids, drop, 1)[..., None], -1)[..., 0]
    assert float(terms[name].mean) == pytest.approx(nll[batch["valid"]].mean(), rel=1e-5)
    assert terms[name].weight == 3 * 7


def test_a_model_that_knows_nothing_is_told_apart(case):
  assert case[0].trivial(8) == {"prediction": pytest.approx(np.log(27))}
