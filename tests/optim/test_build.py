"""The update as a whole: order of its parts, groups, state."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from mmjax.optim import build

DEPTH = 3
KEYS = jax.random.split(jax.random.key(0), 4)
PARAMS = {
    "blocks": {"kernel": jax.random.normal(KEYS[0], (DEPTH, 4, 8)), "bias": jnp.ones((DEPTH, 8))},
    "head": {"kernel": jax.random.normal(KEYS[1], (8, 2))},
}
GRADS = jax.tree.map(lambda p: 3 * jnp.cos(7 * p), PARAMS)
CONSTANT = {"name": "constant"}


def run(steps=3, params=PARAMS, grads=GRADS, **arguments):
  """Parameters and optimizer state after some updates with the same gradient."""
  tx, _ = build.build(params, 10, **arguments)
  state = tx.init(params)
  for _ in range(steps):
    updates, state = jax.jit(tx.update)(grads, state, params)
    params = optax.apply_updates(params, updates)
  return params, state


def assert_close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-6, atol=1e-7), a, b)


def test_equals_optax_adamw_with_clipping_and_schedule():
  ours, _ = run(lr=0.1, weight_decay=0.2, clip_norm=1.0, groups=[{"match": ".*"}],
                schedule={"name": "cosine", "warmup_steps": 2}, hyper={"b2": 0.95})
  lr = optax.warmup_cosine_decay_schedule(0.0, 0.1, 2, 10)
  tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(lr, b2=0.95, weight_decay=0.2))
  theirs, state = PARAMS, tx.init(PARAMS)
  for _ in range(3):
    updates, state = tx.update(GRADS, state, theirs)
    theirs = optax.apply_updates(theirs, updates)
  assert_close(ours, theirs)


def test_decay_by_schedule_does_not_know_the_peak_learning_rate():
  zero = jax.tree.map(jnp.zeros_like, GRADS)
  common = dict(steps=1, grads=zero, weight_decay=0.1, schedule=CONSTANT, groups=[{"match": ".*"}])
  for lr in (0.5, 0.01):
    assert_close(run(lr=lr, decay="schedule", **common)[0], jax.tree.map(lambda p: 0.9 * p, PARAMS))
    assert_close(run(lr=lr, decay="lr", **common)[0],
                 jax.tree.map(lambda p: (1 - 0.1 * lr) * p, PARAMS))


def test_multipliers_scale_step_and_decay():
  rules = [{"match": "head/.*", "lr": 0.5, "decay": 0.0}, {"match": ".*"}]
  plain, _ = run(steps=1, lr=0.1, schedule=CONSTANT, groups=[{"match": ".*"}])
  ours, _ = run(steps=1, lr=0.1, schedule=CONSTANT, groups=rules, weight_decay=0.3)
  moved = lambda after: after["head"]["kernel"] - PARAMS["head"]["kernel"]
  np.testing.assert_allclose(moved(ours), 0.5 * moved(plain), rtol=1e-4, atol=1e-6)


def test_frozen_parameters_keep_their_bits_and_have_no_state():
  rules = [{"match": "blocks/.*", "freeze": True}, {"match": ".*"}]
  params, state = run(lr=0.1, weight_decay=0.1, clip_norm=1.0, groups=rules)
  jax.tree.map(np.testing.assert_array_equal, params["blocks"], PARAMS["blocks"])
  assert np.any(params["head"]["kernel"] != PARAMS["head"]["kernel"])
  shapes = [leaf.shape for leaf in jax.tree.leaves(state)]
  assert sorted(shapes) == [(), (), (8, 2), (8, 2)]      # two counts, two moments of the head


def test_frozen_gradients_do_not_enter_the_clipped_norm():
  rules = [{"match": "blocks/.*", "freeze": True}, {"match": ".*"}]
  small = {"blocks": GRADS["blocks"], "head": {"kernel": jnp.full((8, 2), 0.1)}}
  huge = {"blocks": jax.tree.map(lambda g: 1e6 * g, GRADS["blocks"]), "head": small["head"]}
  # A large eps makes Adam's step depend on the size of the gradient.
  common = dict(lr=0.1, clip_norm=1.0, groups=rules, hyper={"eps": 1.0})
  assert_close(run(grads=huge, **common)[0], run(grads=small, **common)[0])


def test_stacked_layers_move_as_if_they_stood_alone():
  rules = [{"match": ".*", "layer_decay": 0.5}]
  stack, grads = PARAMS["blocks"], GRADS["blocks"]
  together, _ = run(params=stack, grads=grads, lr=0.1, weight_decay=0.1, groups=rules)
  for i in range(DEPTH):
    pick = lambda tree: jax.tree.map(lambda x: x[i], tree)
    alone, _ = run(params=pick(stack), grads=pick(grads), lr=0.1, weight_decay=0.1,
                   groups=[{"match": ".*", "lr": 0.5 ** (DEPTH - i)}])
    assert_close(pick(together), alone)


def test_state_has_explicit_dtypes_and_keeps_them():
  _, state = run(steps=2, lr=0.1, hyper={"mu_dtype": "bfloat16"})
  assert not any(leaf.weak_type for leaf in jax.tree.leaves(state))
  dtypes = [str(leaf.dtype) for leaf in jax.tree.leaves(state)]
  assert dtypes == ["int32"] + 3 * ["bfloat16"] + 3 * ["float32"] + ["int32"]   # mu, nu
  tx, _ = build.build(PARAMS, 10, hyper={"mu_dtype": "bfloat16"})
  before, after = tx.init(PARAMS), state
  assert [x.dtype for x in jax.tree.leaves(before)] == [x.dtype for x in jax.tree.leaves(after)]


def test_reported_learning_rate_is_the_one_used():
  node = {"name": "cosine", "warmup_steps": 4}
  tx, info = build.build(PARAMS, 10, lr=0.1, schedule=node, groups=[{"match": ".*"}],
                         hyper={"b1": 0.0, "b2": 0.0})         # direction: the gradient's sign
  state = tx.init(PARAMS)
  for step in range(10):
    updates, state = tx.update(GRADS, state, PARAMS)
    used = np.abs(updates["head"]["kernel"]).max()
    assert used == pytest.approx(float(info.lr_at(step)), rel=1e-5)


def test_it_can_be_built_from_shapes_inside_a_trace():
  state = jax.eval_shape(lambda params: build.build(params, 10)[0].init(params), PARAMS)
  assert len(jax.tree.leaves(state)) == 8


def test_flat_node_of_a_config_is_parted():
  node = ml_collections.ConfigDict({"name": "adamw", "b2": 0.95, "lr": 1e-3, "clip_norm": 1.0})
  common, hyper = build.split(node)
  assert common == {"name": "adamw", "lr": 1e-3, "clip_norm": 1.0} and hyper == {"b2": 0.95}
  assert build.from_config(node, PARAMS, 10)[1].lr_at(0) == pytest.approx(1e-3)


@pytest.mark.parametrize("node, message", [
    ({"b3": 0.9}, "optim.b3: unknown key for .*adamw; nearest is 'b[12]'"),
    ({"wieght_decay": 0.1}, "nearest is 'weight_decay'"),
    ({"name": "adamv"}, "optim.name='adamv': unknown; nearest is 'adamw'"),
    ({"schedule": {"name": "cosin"}}, "optim.schedule.name='cosin': unknown; nearest is 'cosine'"),
    ({"schedule": {"name": "cosine", "warmup": 3}}, "optim.schedule.warmup: .*'warmup_steps'"),
    ({"schedule": {"name": "cosine", "total_steps": 3}}, "optim.schedule.total_steps: unknown"),
    ({"name": "no_such_lab.optim.mine"}, "cannot import 'no_such_lab.optim'"),
    ({"lr": -1.0}, "must not be negative"), ({"clip_norm": 0.0}, "must be positive or None"),
    ({"decay": "none"}, "'lr' or 'schedule'"),
])
def test_mistakes_in_a_config_are_refused(node, message):
  with pytest.raises(ValueError, match=message):
    build.from_config(node, PARAMS, 10)


def test_a_dotted_name_is_the_users_own():
  ours, _ = run(lr=0.1, schedule=CONSTANT)
  dotted, _ = run(lr=0.1, schedule=CONSTANT, name="mmjax.optim.optimizers.adamw")
  jax.tree.map(np.testing.assert_array_equal, ours, dotted)
