"""The benchmark that makes docs/scaling.md: its cells, its page, what an interrupted run keeps."""

import json

import pytest

from benchmarks import scaling
from configs.contrastive import siglip
from tests.conftest import needs


def fake(cell, peak=1.5):
  """A plan's JSON with the keys that the page reads."""
  chips = next(n for n, pods in scaling.PODS.items() if (cell.topology, cell.slices) in pods)
  return {"chips": chips, "fits": peak < 16, "hbm_gib": 16.0, "peak_gib": peak,
          "mesh": {"data": chips // 8, "fsdp": 8, "tensor": 1}, "model_tflops_per_chip": 10.0,
          "hardware_tflops_per_chip": 10.0 + chips / 40960, "bound": "compute",
          "step_s_lower_bound": 0.05, "mfu_upper_bound": 0.75, "chip_hours_lower_bound": 1234.4,
          "compile_s": 27.2,
          "details": {"batch_size": 32 * chips, "devices_per_chip": 2,
                      "communication": {"by_network": {"ici": 2**30, "dcn": 2**29}}}}


@pytest.fixture
def calls(monkeypatch, tmp_path):
  """The cells that were compiled, by a stand-in for the compiler; an empty cache."""
  monkeypatch.setenv("MMJAX_PLAN_CACHE", str(tmp_path / "cache"))
  made = []

  class Plan:
    def __init__(self, config, topology, slices):
      self.cell = next(cell for cell in scaling.cells()
                       if (cell.topology, cell.slices, cell.load()) == (topology, slices, config))

    def to_json(self):
      made.append(self.cell.name)
      return fake(self.cell)

  monkeypatch.setattr(scaling.plan_lib, "plan", Plan)
  return made


def test_cells_have_32_pairs_a_chip_and_names_of_their_own():
  cells = scaling.cells()
  assert len({cell.name for cell in cells}) == len(cells)
  for cell in cells:
    assert cell.load()["batch_size"] == 32 * fake(cell)["chips"], cell.name
  kinds = {cell.topology.partition(":")[0] for cell in cells}
  assert kinds == {"v5e", "v5p", "v6e", "tpu7x"}


def test_row_is_of_one_chip_and_of_both_networks():
  cell = next(cell for cell in scaling.cells() if cell.name == "siglip_l16 16 x v5e:16x16")
  values = [value.strip() for value in scaling.row(cell, fake(cell)).strip("|").split("|")]
  assert values == ["16 x v5e:16x16", "4,096", "data 512 fsdp 8", "131,072", "1.50", "16", "yes",
                    "10.00", "10.10", "2.00", "1.00", "compute", "≥ 0.050", "≤ 0.75", "≥ 1,234", "27"]
  assert len(values) == len(scaling.COLUMNS)
  assert "| **no** |" in scaling.row(cell, fake(cell, peak=20.0))
  without = {**fake(cell), "step_s_lower_bound": None, "mfu_upper_bound": None}
  assert "| ≥ – | ≤ – |" in scaling.row(cell, without)


def test_interrupted_run_goes_on_and_the_page_names_what_is_missing(calls, tmp_path):
  page = tmp_path / "page.md"
  first = ["--only=siglip_l16 v5e", f"--page={page}"]
  scaling.main(first)
  assert calls == ["siglip_l16 v5e:4x4", "siglip_l16 v5e:16x16"]
  assert "Not compiled yet: siglip v5e:16x16, siglip 16 x v5e:16x16, " in page.read_text()
  scaling.main([f"--page={page}"])
  assert sorted(calls) == sorted(cell.name for cell in scaling.cells())  # each once
  text = page.read_text()
  assert "Not compiled" not in text and "Nothing here was run on these chips" in text
  # 10 + 4096 / 40960 against 10 + 256 / 40960.
  assert "| L/16 | v5e | +0.00% | +0.00% | +0.94% |" in text


def test_what_grows_over_slices_is_planned_with_less_memory_for_the_scheduler():
  names = {cell.name for cell in scaling.cells()
           if cell.load().get("compiler_options") == siglip.SCHEDULER}
  assert names == {"siglip v5e:16x16 held", "siglip 16 x v5e:16x16 held", "siglip_l16 v6e:4x4",
                   "siglip_l16 v6e:16x16", "siglip_l16 16 x v6e:16x16"}
  free = {cell.name for cell in scaling.cells() if cell.title == scaling.FREE}
  assert free == {"siglip_l16 v6e:16x16 free", "siglip_l16 16 x v6e:16x16 free"} and not free & names


def test_unknown_cell_is_an_error(capsys):
  with pytest.raises(SystemExit):
    scaling.main(["--only=v4"])
  assert "--only=v4: no cell has that in its name" in capsys.readouterr().err


@pytest.mark.slow
def test_a_live_cell_has_all_figures(monkeypatch, tmp_path):
  needs("libtpu")
  monkeypatch.setenv("MMJAX_PLAN_CACHE", str(tmp_path))
  cell = scaling.Cell("tiny", "contrastive/siglip_so400m:smoke", (("mesh.fsdp", 4),), "v5e:2x4", 1)
  assert scaling.find(cell) is None
  plan = scaling.measure(cell)
  assert scaling.find(cell) == json.loads(json.dumps(plan))
  assert "–" not in scaling.row(cell, plan)
