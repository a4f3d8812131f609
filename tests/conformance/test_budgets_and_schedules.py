"""Budgets and decoding schedules against 4M's own code (apple/ml-4m), `fourm_*.npz`.

Counts must be equal. Temperatures are float64 formulas of the same form: rtol 1e-12. Filtered
logits are the input's own numbers.
"""

import json
import pathlib

import jax
import numpy as np
import pytest

from mmjax.generate import logits, schedules
from mmjax.masking import budgets

FOLDER = pathlib.Path(__file__).parents[1] / "data" / "conformance"


def load(name):
  with np.load(FOLDER / f"{name}.npz") as data:
    return {key: data[key] for key in data}


@pytest.fixture(scope="module")
def drawn():
  return load("fourm_budgets")


@pytest.fixture(scope="module")
def decoded():
  return load("fourm_schedules")


TOTAL = 128  # input and target tokens of all cases
DRAWS = 1000
split = jax.jit(budgets.split, static_argnums=2)


@pytest.mark.parametrize("case", range(24))
def test_budgets_of_given_draws_have_no_mismatch(drawn, case):
  most = drawn["in/max_tokens"]
  for part, name in (("in", "input"), ("tgt", "target")):
    share, more = (drawn[f"in/case{case}/{part}_{kind}"] for kind in ("p", "extra"))
    more = np.concatenate([more, np.eye(len(share), dtype=np.float32)])[:len(share)]  # one shape
    counts = split(share, more, TOTAL, most)
    np.testing.assert_array_equal(counts, drawn[f"out/case{case}/{name}_budget"])
    most = np.where(drawn["in/is_img"], most - counts, most)


def test_statistics_of_drawn_budgets_are_those_of_4m(drawn):
  alpha, most = drawn["in/input_alphas"][1], drawn["in/max_tokens"]
  keys = jax.random.split(jax.random.key(0), DRAWS)
  counts, _ = jax.jit(jax.vmap(lambda key: budgets.draw(key, alpha, TOTAL, most)))(keys)
  mean, deviation = drawn["out/stats/dir1/input_mean"], drawn["out/stats/dir1/input_std"]
  error = deviation * np.sqrt(1 / DRAWS + 1 / 4000)  # of the difference of the means
  assert (np.abs(np.mean(counts, axis=0) - mean) < 4 * error).all()
  np.testing.assert_allclose(np.std(counts, axis=0), deviation, rtol=0.15)
  np.testing.assert_allclose(np.mean(counts == 0, axis=0), drawn["out/stats/dir1/input_pzero"],
                             atol=0.042)  # 4 sqrt(0.1 * 0.9 * (1 / 1000 + 1 / 4000))


@pytest.mark.parametrize("name", ["cosine", "linear"])
@pytest.mark.parametrize("steps, tokens", [
    (1, 196), (8, 196), (25, 196), (49, 196), (12, 784), (300, 196)])
def test_tokens_a_step(decoded, name, steps, tokens):
  np.testing.assert_array_equal(schedules.TOKENS[name](steps, tokens),
                                decoded[f"out/{name}_{steps}_{tokens}"])


def test_temperatures(decoded):
  counts = schedules.linear(25, 196)
  np.testing.assert_allclose(schedules.linear_temperature(6.0, counts),
                             decoded["out/temp_linear_6"], rtol=1e-12)
  np.testing.assert_allclose(schedules.one_over_x(6.0, counts, lowest=0.5, power=0.5),
                             decoded["out/temp_onex_6_0.5_0.5"], rtol=1e-12)


def test_a_chain_of_three_modalities(decoded):
  counts = [schedules.linear(49, 196), schedules.cosine(8, 196), schedules.linear(25, 196)]
  temperatures = [schedules.one_over_x(6.0, counts[0]),
                  schedules.linear_temperature(3.0, counts[1]),
                  schedules.constant_temperature(6.0, counts[2])]
  np.testing.assert_array_equal(np.concatenate(counts), decoded["out/chain_num_tokens"])
  np.testing.assert_allclose(np.concatenate(temperatures), decoded["out/chain_temperature"],
                             rtol=1e-12)


@pytest.mark.parametrize("top_k, top_p", [(0.0, 0.8), (7, 0.0), (0.25, 0.0), (10, 0.9)])
def test_filtered_logits(decoded, top_k, top_p):
  got = logits.keep_top(decoded["in/logits"], top_k, top_p)
  want = decoded[f"out/filter_k{top_k}_p{top_p}"]
  np.testing.assert_array_equal(np.where(np.isneginf(got), -1e9, got), want)


def test_the_cases_are_what_this_file_takes_them_for(drawn, decoded):
  assert "Clamping LOSES tokens" in json.loads(str(drawn["meta"]))["note"]
  assert "BEFORE dividing by temperature" in json.loads(str(decoded["meta"]))["note"]
