"""Which settings a search compiles, drops and recommends; the compiler is stood in for."""

import copy
import dataclasses
import math

import jax
import pytest

from mmjax import config as config_lib
from mmjax.config import ConfigError
from mmjax.parallel import mesh as mesh_lib
from mmjax.parallel.chips import CHIPS
from mmjax.plan import cache, search as search_lib
from mmjax.plan.compile import CompileError
from mmjax.plan.estimate import REMATS, Candidate, Costs, Estimator
from mmjax.plan.topology import Topology
from mmjax.training.assemble import assemble
from tests.training import tiny

GIB = 2**30


@pytest.fixture(scope="module")
def config(tmp_path_factory):
  return tiny.config(tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz"))


@pytest.fixture(scope="module")
def estimator(config):
  return Estimator(assemble(config))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("MMJAX_PLAN_CACHE", str(tmp_path / "plans"))


def eight(slices=1, hbm_bytes=16 * GIB):
  """The eight host devices in place of a v5e of two by four."""
  chip = dataclasses.replace(CHIPS["v5e"], hbm_bytes=hbm_bytes)
  return Topology("v5e:2x4", slices, chip, jax.devices(), "tpu")


class Planner:
  """Plans that need `factor` times what is estimated; counts its calls."""

  def __init__(self, config, estimator, topology, factor=1.0):
    self.factor, self.chip, self.chips = factor, topology.chip, topology.chips
    self.costs, self.configs = {}, []
    for candidate in estimator.candidates():
      setting = changed(config, estimator.overrides(candidate))
      self.costs[config_lib.to_json(setting)] = estimator.estimate(candidate)

  def __call__(self, config, topology, slices):
    self.configs.append(config)
    costs = self.costs[config_lib.to_json(config)]
    peak = costs.state + self.factor * costs.temp
    return {"chips": self.chips, "fits": peak <= self.chip.hbm_bytes, "peak_gib": peak / GIB,
            "hbm_gib": self.chip.hbm_bytes / GIB, "hardware_tflops_per_chip": costs.flops / 1e12,
            "comm_gib": (costs.ici + costs.dcn) / GIB, "bound": "compute",
            "step_s_lower_bound": costs.seconds(self.chip)}


def changed(config, overrides):
  config = copy.deepcopy(config)
  for path, text in overrides.items():
    config_lib.override(config, path, text)
  return config


def run_search(config, estimator, topology, planner=None, **kwargs):
  planner = planner or Planner(config, estimator, topology)
  found = search_lib.search(config, topology, estimator=estimator, planner=planner, **kwargs)
  return found, planner


# What is estimated


@pytest.mark.parametrize("mesh", [{"data": 8}, {"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2},
                                  {"fsdp": 2, "sequence": 4}])
def test_state_bytes_are_those_that_lie_on_a_device(config, estimator, mesh):
  run = assemble({**config, "mesh": mesh})
  here = jax.devices()[0]
  lies = 0
  for leaf in jax.tree.leaves(run.placed):
    index = leaf.sharding.devices_indices_map(leaf.shape)[here]
    part = [len(range(*cut.indices(n))) for cut, n in zip(index, leaf.shape)]
    lies += math.prod(part) * leaf.dtype.itemsize
  sizes = tuple(mesh.get(axis, 1) for axis in mesh_lib.AXES)
  assert estimator.layout(sizes).state == lies


def test_cheaper_memory_costs_more_flops(estimator):
  policies = [estimator.policy(remat) for remat in REMATS]
  stored = [policy.stored for policy in policies]
  flops = [policy.flops for policy in policies]
  assert stored == sorted(stored) and flops == sorted(flops, reverse=True)
  assert stored[0] < stored[-1] and flops[0] > flops[-1]


def test_full_remat_stores_one_more_input_for_each_block_more(config, estimator):
  deeper = copy.deepcopy(config)
  deeper["objective"]["image"]["depth"] = 3
  more = Estimator(assemble(deeper)).policy("full").wide - estimator.policy("full").wide
  tokens, width = 4, 32
  assert more == tokens * width * 4


def test_candidates_are_the_config_and_what_divides(config, estimator):
  found = estimator.candidates()
  assert found[0] == Candidate(16, "none", (8, 1, 1, 1, 1)) and not estimator.overrides(found[0])
  assert {c.batch_size for c in found} == {8, 16, 32, 64, 128}
  assert {c.remat for c in found} == set(REMATS)
  assert {c.size("tensor") for c in found} == {1, 2}  # two heads
  assert all(math.prod(c.mesh) == 8 and c.batch_size % estimator.layout(c.mesh).parts == 0
             for c in found)


@pytest.mark.parametrize("slices", [2, 8])
def test_only_data_crosses_slices(slices, estimator):
  meshes = {c.mesh for c in Estimator(estimator.run, slices).candidates()}
  assert meshes and all(mesh[0] % slices == 0 for mesh in meshes)


def test_overrides_make_the_config_the_candidate(config, estimator):
  for candidate in estimator.candidates()[3::17]:
    run = assemble(changed(config, estimator.overrides(candidate)))
    assert run.settings.batch_size == candidate.batch_size
    assert tuple(run.mesh.shape[axis] for axis in mesh_lib.AXES) == candidate.mesh
    assert {run.objective.image.remat, run.objective.text.remat} == {candidate.remat}


def test_overrides_undo_a_preset(config):
  config = {**config, "mesh": {"preset": "fsdp_tp", "tensor": 2}}
  estimator = Estimator(assemble(config))
  plain = next(c for c in estimator.candidates() if c.mesh == (8, 1, 1, 1, 1))
  run = assemble(changed(config, estimator.overrides(plain)))
  assert tuple(run.mesh.shape.values()) == plain.mesh


def test_towers_of_different_policies_stay_so_as_a_policy_of_its_own(config):
  config = changed(config, {"objective.image.remat": "full"})
  estimator = Estimator(assemble(config))
  assert estimator.own.remat == "as configured"
  assert {*estimator.remats} == {*REMATS, "as configured"}
  assert "objective.image.remat" not in estimator.overrides(
      dataclasses.replace(estimator.own, batch_size=32))


def test_a_small_batch_is_compared_with_the_configs_and_a_large_one_with_its_own(estimator):
  # Every step takes as long, so speeds are as the batches: 8 rows are half as fast as 16.
  costs = {c: dataclasses.replace(estimator.estimate(c), temp=0, flops=0, ici=0, dcn=0, traffic=1)
           for c in estimator.candidates()}
  chip = eight().chip
  own = dataclasses.replace(estimator.own, batch_size=32)
  left, dropped = search_lib._worth_trying(costs, [], own, chip)
  assert dropped[search_lib.TOO_SLOW] == sum(c.batch_size < 16 for c in costs) > 0
  assert {c.batch_size for c in left} == {16, 32, 64, 128}


# What is compiled


def test_never_compiles_more_than_asked_and_accounts_for_everything(config, estimator):
  for most in (1, 2, 5):
    found, planner = run_search(config, estimator, eight(), max_compiles=most)
    assert len(found.trials) == most and len(planner.configs) <= most
    assert most + sum(found.untried.values()) == found.considered == len(estimator.candidates())


def test_the_config_as_it_is_comes_first(config, estimator):
  found, planner = run_search(config, estimator, eight(), max_compiles=1)
  assert planner.configs == [config] and found.trials[0].overrides == {}


def test_a_state_that_does_not_fit_is_not_compiled(config, estimator):
  states = {c: estimator.estimate(c).state for c in estimator.candidates()}
  limit = sorted(states.values())[len(states) // 3]
  found, _ = run_search(config, estimator, eight(hbm_bytes=limit))
  too_large = sum(state > limit for state in states.values())
  assert found.untried[search_lib.CANNOT_FIT_STATE] == too_large > 0
  assert all(states[trial.candidate] <= limit for trial in found.trials)


def test_nothing_that_fits_is_said_so(config, estimator):
  found, planner = run_search(config, estimator, eight(hbm_bytes=1000))
  assert not planner.configs and found.recommended is None and not found.best
  assert found.untried == {search_lib.CANNOT_FIT_STATE: found.considered}
  assert "none fits" in search_lib.show(found)


def test_what_did_not_fit_is_not_tried_with_more_rows(estimator):
  own = estimator.own
  failed = search_lib.Trial(own, {}, estimator.estimate(own), {"fits": False})
  costs = {c: estimator.estimate(c) for c in estimator.candidates()}
  left, dropped = search_lib._worth_trying(costs, [failed], own, eight().chip)
  same = [c for c in costs if (c.remat, c.mesh) == (own.remat, own.mesh) and c.batch_size > 16]
  assert same and not left.keys() & {*same} and dropped[search_lib.CANNOT_FIT] == len(same)


@pytest.mark.parametrize("error", [ConfigError("mesh: no"), CompileError("the compiler failed")])
def test_refused_settings_are_told_and_end(config, estimator, error):
  calls = []

  def refuse(config, topology, slices):
    calls.append(config)
    raise error

  found, _ = run_search(config, estimator, eight(), refuse, max_compiles=3)
  assert len(calls) == 3 and found.recommended is None
  assert str(error) in search_lib.show(found)
  assert found.to_json()["trials"][0]["error"] == str(error)


def test_measurements_correct_the_estimates(estimator):
  own = estimator.own
  costs = estimator.estimate(own)
  plan = {"peak_gib": (costs.state + 3 * costs.temp) / GIB, "step_s_lower_bound": 1.0,
          "hardware_tflops_per_chip": 2 * costs.flops / 1e12, "comm_gib": costs.ici / 2 / GIB,
          "details": {"traffic": {"bytes": 5 * costs.traffic}}}
  trial = search_lib.Trial(own, {}, costs, plan)
  other = estimator.estimate(dataclasses.replace(own, batch_size=64))
  found = search_lib.corrected(own, other, [trial], devices=1)
  assert (found.temp, found.flops, found.traffic, found.ici) == pytest.approx(
      (3 * other.temp, 2 * other.flops, 5 * other.traffic, other.ici / 2))
  assert found.state == other.state


def test_fewer_than_one_compile_is_refused(config, estimator):
  with pytest.raises(ConfigError, match="--max_compiles=0"):
    run_search(config, estimator, eight(), max_compiles=0)


# What is recommended


def test_pareto_keeps_what_nothing_beats():
  points = [(1, 5), (2, 4), (2, 5), (3, 1), (4, 1), (1, 5)]
  assert search_lib.pareto(points) == [0, 1, 3]
  assert search_lib.pareto([]) == [] and search_lib.pareto([(1, 2, 3)]) == [0]


def trial(batch, peak, seconds):
  plan = {"chips": 1, "fits": True, "hbm_gib": 16.0, "peak_gib": peak, "comm_gib": 0.0,
          "hardware_tflops_per_chip": 1.0, "step_s_lower_bound": seconds}
  candidate = Candidate(batch, "full", (1,) * 5)
  return search_lib.Trial(candidate, {}, Costs(1, 1, 1, 1, 1, 1, batch), plan)


def test_recommended_is_the_fastest_that_leaves_room():
  full, fast, slow = trial(64, 15.5, 1.0), trial(32, 12.0, 1.0), trial(16, 2.0, 1.0)
  assert search_lib.recommend([full, slow, fast], batch_size=16) is fast
  assert search_lib.recommend([full], batch_size=16) is None


def test_among_equally_fast_ones_the_configs_batch_and_then_less_memory():
  small, own, larger = trial(16, 2.0, 1.0), trial(32, 6.0, 2.0), trial(32, 8.0, 1.99)
  assert search_lib.recommend([small, larger, own], batch_size=32) is own
  assert search_lib.recommend([small, larger, own], batch_size=64) is small


def test_text_names_the_flags_and_what_was_not_tried(config, estimator):
  found, _ = run_search(config, estimator, eight(), max_compiles=4)
  text = search_lib.show(found, "mine.py")
  assert all(f"--config.{path}={value}" in text
             for path, value in found.recommended.overrides.items())
  assert all(reason in text for reason in found.untried)
  assert f"4 of {found.considered} settings" in text
  rows = found.to_json()["trials"]
  assert [row["pareto"] for row in rows] == [trial in found.best for trial in found.trials]
  assert found.to_json()["recommended"] == found.trials.index(found.recommended)


# The cache


def test_a_second_search_compiles_nothing(config, estimator):
  first, _ = run_search(config, estimator, eight(), max_compiles=4)
  second, planner = run_search(config, estimator, eight(), max_compiles=4)
  assert not planner.configs and all(trial.cached for trial in second.trials)
  assert [t.candidate for t in second.trials] == [t.candidate for t in first.trials]
  assert "from cache" in search_lib.show(second) and "from cache" not in search_lib.show(first)


def test_damaged_results_are_planned_anew_with_a_warning(config, estimator, caplog):
  run_search(config, estimator, eight(), max_compiles=3)
  files = sorted(cache.directory().iterdir())
  assert len(files) == 3  # and nothing half-written beside them
  files[0].write_text("{")
  files[1].write_text('{"key": "another", "result": {}}')
  _, planner = run_search(config, estimator, eight(), max_compiles=3)
  assert len(planner.configs) == 2
  assert all(str(file) in caplog.text for file in files[:2])


@pytest.mark.slow
def test_live_search_of_a_recipe_on_an_absent_pod():
  from mmjax.plan import topology
  config = config_lib.load("contrastive/siglip:smoke")
  found = search_lib.search(config, topology.find("v5e:2x2"), max_compiles=2)
  assert len(found.trials) == 2 and found.recommended is not None
  for trial in found.trials:
    assert trial.fits and trial.plan["peak_gib"] * GIB > trial.estimate.state
  again = search_lib.search(config, topology.find("v5e:2x2"), max_compiles=2)
  assert [t.plan for t in again.trials] == [t.plan for t in found.trials]
  assert all(trial.cached for trial in again.trials)
