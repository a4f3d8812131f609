"""Retention: each rule by itself, and all at once."""

import math

import pytest

from mmjax.checkpoint import retention


def steps(*numbers):
  return {step: {} for step in numbers}


def test_last_ones_stay():
  assert retention.kept(steps(10, 20, 30, 40), keep_last=2) == {30, 40}


def test_multiples_stay_for_ever():
  assert retention.kept(steps(10, 20, 30, 40, 50), keep_last=1, keep_every_steps=20) == {20, 40, 50}


@pytest.mark.parametrize("mode, best", [("max", 20), ("min", 30)])
def test_best_stays(mode, best):
  metrics = {10: {"m": 1.0}, 20: {"m": 9.0}, 30: {"m": 0.5}, 40: {"m": 5.0}}
  assert retention.kept(metrics, keep_last=1, keep_best=("m", mode, 1)) == {best, 40}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_of_equally_good_ones_the_later_stays(mode):
  metrics = {10: {"m": 1.0}, 20: {"m": 1.0}, 30: {"m": 1.0}, 40: {}}
  assert retention.kept(metrics, keep_last=1, keep_best=("m", mode, 2)) == {20, 30, 40}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_nan_and_missing_metrics_are_never_best(mode):
  metrics = {10: {"m": math.nan}, 20: {"m": 3.0}, 30: {}, 40: {"m": math.nan}, 50: {}}
  assert retention.kept(metrics, keep_last=1, keep_best=("m", mode, 3)) == {20, 50}


def test_all_rules_at_once():
  metrics = {step: {"m": -abs(step - 35.0)} for step in range(10, 100, 10)}
  kept = retention.kept(metrics, keep_last=2, keep_every_steps=50, keep_best=("m", "max", 1))
  assert kept == {40, 50, 80, 90}


@pytest.mark.parametrize("rules, word", [
    ((0, None, None), "keep_last"), ((1, 0, None), "keep_every_steps"),
    ((1, None, ("loss", "lowest", 1)), "'max' or 'min'"),
    ((1, None, ("loss", "min", 0)), "how many")])
def test_senseless_rules_are_refused(rules, word):
  with pytest.raises(ValueError, match=word):
    retention.check(*rules)
