"""Every optimizer in a run: from its config to a sharded, donated state."""

import jax
import pytest

from mmjax.config import ConfigError
from mmjax.data import loader
from mmjax.training.assemble import assemble
from tests.training import tiny

RUNS = [  # the smallest of the config that says something of its own
    {"name": "adamw", "mu_dtype": "bfloat16"}, {"name": "sgd"}, {"name": "lion", "lr": 1e-3},
    {"name": "lamb", "weight_decay": 0.01}, {"name": "adafactor", "min_dim_size_to_factor": 16},
    {"name": "muon", "schedule": {"name": "wsd", "cooldown_percent": 25}},
]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  return tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz", count=16)


@pytest.mark.parametrize("optim", RUNS, ids=lambda node: node["name"])
def test_no_state_as_large_as_a_kernel_is_replicated(pairs, optim):
  run = assemble(tiny.config(pairs, optim={"lr": 3e-3, **optim}, mesh={"data": 4, "fsdp": 2}))
  smallest = min(row.size for row in run.optim_info.table if row.path.endswith("kernel"))
  state = zip(jax.tree.leaves(run.abstract.opt_state), jax.tree.leaves(run.shardings.opt_state))
  large = [sharding for leaf, sharding in state if leaf.size >= smallest]
  assert len(large) >= 20 and not any(sharding.is_fully_replicated for sharding in large)


@pytest.mark.slow
@pytest.mark.parametrize("optim", RUNS[-3:], ids=lambda node: node["name"])
def test_those_with_parts_of_our_own_learn(pairs, optim):
  run = assemble(tiny.config(pairs, optim={"lr": 3e-3, **optim}), jax.devices()[:1])
  state, step, losses = run.create_state(), run.step_fn(), []
  with run.use(), loader.train_batches(run.stream, 16, run.batch_sharding) as batches:
    for _, (_, batch) in zip(range(4), batches):
      state, metrics = step(state, batch)
      losses.append(float(metrics["loss"].compute()))
  assert losses[-1] < losses[0] and not state.halted


@pytest.mark.parametrize("optim, message", [
    ({"name": "moun"}, "optim.name: no 'moun' in .*did you mean 'muon'"),
    ({"name": "muon", "b3": 0.9}, "optim.b3: unknown key"),
    ({"name": "muon", "table": 1}, "optim.table: unknown key"),
    ({"name": "lion", "mu_dtype": "float8"}, "optim.mu_dtype='float8': must be"),
    ({"name": "sgd", "nesterov": 1}, "optim.nesterov: expected"),
    ({"schedule": {"name": "wsd"}}, "optim.schedule.cooldown_steps: is missing"),
])
def test_a_mistake_is_refused_at_launch(pairs, optim, message):
  with pytest.raises(ConfigError, match=message):
    assemble(tiny.config(pairs, optim=optim))
