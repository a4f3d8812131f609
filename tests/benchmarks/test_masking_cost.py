"""The benchmark of masking: what it counts and prints. No test asserts a time."""

import json

import numpy as np
import pytest

from benchmarks import masking
from mmjax.training import assemble


def by_hand(case, seen, masked, decoder):
  """FLOPs, forward and backward (6 a multiply-add): 12 D^2 a token and layer, and attention's."""
  d, pixels = case.width, 3 * case.patch ** 2
  layer = lambda width, tokens: 12 * width ** 2 * tokens + 2 * tokens ** 2 * width
  embedding = 2 / 3 * case.tokens * pixels * d  # of all patches; images need no gradient
  if not decoder:
    return 6 * case.batch * (embedding + case.depth * layer(d, seen) + masked * d * pixels)
  half = d // 2
  return 6 * case.batch * (embedding + case.depth * layer(d, seen) + seen * d * half
                           + case.depth // 3 * layer(half, case.tokens) + masked * half * pixels)


def test_a_step_of_mae_at_75_percent_has_at_most_half_the_flops(monkeypatch):
  monkeypatch.setattr(assemble.Run, "create_state", lambda run: None)  # counting needs none
  case = masking.CASES["s16"]
  whole, mae = (masking.make_step(case, ratio)[2] for ratio in (None, 0.75))
  assert whole == pytest.approx(by_hand(case, seen=196, masked=147, decoder=False), rel=1e-9)
  assert mae == pytest.approx(by_hand(case, seen=49, masked=147, decoder=True), rel=1e-9)
  assert mae < 0.5 * whole


def test_shares_are_of_the_quickest_repeats(capsys):
  measured = {"all tokens": (8e9, [(0.4, 0.9), (0.5, 0.8)]), 0.75: (2e9, [(0.3, 0.2), (0.1, 0.6)])}
  assert masking.report(masking.CASES["tiny"], measured, "cpu") == {
      "share_of_flops": {"all tokens": 1.0, "0.75": 0.25},
      "share_of_time": {"all tokens": 1.0, "0.75": 0.25}}
  assert masking.report(masking.CASES["tiny"], measured, "gpu")["share_of_time"]["0.75"] == 0.25
  rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("0.75")]
  assert rows[0][1:3] == ["16", "64"]  # tokens of the encoder and of the decoder
  assert rows[0][3:] == ["2.00", "25.0%", "100.0", "(", "200.0)", "0.200", "25.0%"]


@pytest.mark.slow
def test_the_last_line_is_json_with_a_share_for_each_ratio(capsys, monkeypatch):
  monkeypatch.setattr(masking, "RATIOS", (0.75,))
  masking.main(["--size=tiny", "--repeats=1"])
  last = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
  assert set(last) == {"share_of_flops", "share_of_time"}
  for shares in last.values():
    assert list(shares) == ["all tokens", "0.75"] and shares["all tokens"] == 1
    assert all(np.isfinite(share) and share > 0 for share in shares.values())


def test_bad_options_are_one_line(capsys):
  with pytest.raises(SystemExit):
    masking.main(["--repeats=0"])
  assert "--steps and --repeats must be at least 1" in capsys.readouterr().err
