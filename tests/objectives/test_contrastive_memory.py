"""The order in which the contrastive objective's towers are differentiated."""

import jax
import jax.numpy as jnp

from mmjax.models.text import TextTransformer
from mmjax.models.vit import ViT
from mmjax.objectives.contract import Context
from mmjax.objectives.contrastive import Contrastive


def test_the_image_tower_is_differentiated_only_when_all_gradients_of_the_text_tower_are_there():
  trunk = dict(width=32, depth=1, heads=2)
  objective = Contrastive(ViT(patch=8, grid=(2, 2), **trunk), TextTransformer(
      vocab=50, length=8, out_dim=32, **trunk), losses={"softmax": 1.0})
  shape = jax.ShapeDtypeStruct
  batch = {"image": shape((4, 16, 16, 3), jnp.float32), "text": shape((4, 8), jnp.int32),
           "valid": shape((4,), bool), "row": shape((4, 2), jnp.uint32)}
  params, _ = jax.eval_shape(objective.init, jax.random.key(0), batch)
  ctx = Context(step=0, state={}, teachers={}, seed=0)

  def loss(params, batch):
    features, _ = objective.forward(ctx, params, batch)
    return jnp.vdot(features["image/embed"], features["text/embed"])

  equations = jax.make_jaxpr(jax.grad(loss))(params, batch).eqns
  leaves = len(jax.tree.leaves(params["text"]))  # other barriers are of final norms
  barriers = [eqn for eqn in equations
              if eqn.primitive.name == "optimization_barrier" and len(eqn.invars) == 1 + leaves]
  embed, *gradients = [x.aval.shape for x in barriers[-1].invars]
  assert embed == (4, 32)
  assert sorted(gradients) == sorted(x.shape for x in jax.tree.leaves(params["text"]))
  # What follows the barrier is the image tower's alone: nothing of the vocabulary's size.
  after = equations[equations.index(barriers[-1]) + 1:]
  assert len(after) > 10
  assert not any(50 in x.aval.shape for eqn in after for x in eqn.outvars)
