"""The benchmark of the train step: what it runs, counts and prints. No test asserts a time."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from benchmarks import train_step
from mmjax.training import assemble

KEYS = {"step_ms_min", "step_ms_median", "cpu_s_per_step", "share_of_matmul", "peak_rss_gib",
        "first_losses"}


@pytest.mark.slow
def test_last_line_is_json_with_the_documented_keys_and_the_losses_repeat(capsys):
  losses = []
  for _ in range(2):
    train_step.main(["--size=tiny", "--steps=1", "--repeats=2"])
    last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert set(last) == KEYS
    assert all(np.isfinite(last[key]) and last[key] > 0 for key in KEYS - {"first_losses"})
    losses.append(last["first_losses"])
  assert len(losses[0]) == train_step.FIRST and losses[0] == losses[1]
  assert losses[0][-1] < losses[0][0]  # it trains


def test_s16_is_the_model_of_the_issue_and_its_flops_are_those_of_the_formula(monkeypatch):
  case = train_step.CASES["s16"]
  assert dataclasses.astuple(case)[:6] == (384, 12, 6, 64, 32, "float32")
  assert (case.length, case.vocab) == (64, 32_000)
  # By hand, forward and backward (3 x 2 FLOPs a multiply-add): 12 D^2 a token and layer, the two
  # products of attention, and what surrounds the trunks.
  d, images, texts = 384, 32 * 16, 32 * 64
  trunks = 6 * (images + texts) * 12 * 12 * d ** 2
  attention = 6 * 2 * d * 12 * (images * 16 + texts * 64)
  around = 6 * (images * 3 * 16 * 16 * d                # patch embedding
                + (2 * images + 10 * 32) * d ** 2       # pooling head
                + 32 * d ** 2)                          # projection of the text
  with monkeypatch.context() as patch:  # the counting needs no parameters
    patch.setattr(assemble.Run, "create_state", lambda run: None)
    _, _, flops = train_step.make_step(case)
  assert flops == pytest.approx(trunks + attention + around, rel=1e-3)
  assert flops == pytest.approx(336e9, rel=1e-3)


def test_a_product_keeps_the_size_of_its_argument_and_counts_its_flops():
  products = train_step.make_products(train_step.CASES["tiny"])
  for name, (fn, x, flops) in products.items():
    y, _ = fn(x)
    assert y.shape == x.shape and 0.5 < float(np.std(y) / np.std(x)) < 2, name
    assert flops == (2 * 64 ** 3 if "64 x 64" in name else 4 * 4 * 12 * 32 * 128)


def test_a_device_that_is_not_there_is_one_line(capsys, monkeypatch):
  def none():
    raise RuntimeError("no GPU")
  monkeypatch.setattr(jax, "devices", none)
  monkeypatch.setattr(jax.config, "update", lambda *_: None)
  with pytest.raises(SystemExit):
    train_step.main(["--device=gpu", "--size=tiny"])
  assert "--device=gpu: JAX finds none" in capsys.readouterr().err.splitlines()[-1]
