"""The notebook about planning runs from top to bottom, and its pictures show what it says."""

import ast
import importlib
import json
import operator
import pathlib

import pytest

from tests.conftest import needs
from tests.notebooks.cells import cells, trees

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/plan_a_pod.ipynb"
FIGURES = 7
# Runs after the last cell, and tells what the others have found.
TELL = """
print(json.dumps({
    "chips": p.topology.chips, "fits": p.fits, "peak": p.memory.peak,
    "parts": [sum(memory_parts(q).values()) - q.memory.peak for q in plans.values()],
    "bounds": [min(bounds.values()), max(bounds.values()), p.roofline.step_s],
    "held": {name: len(set(part_of_each_chip(arrays[name]).values())) for name in shown},
    "peaks": [q.memory.peak for q in plans.values()]}))
"""


def test_it_is_stored_without_outputs_and_its_cells_are_short():
  kinds = [cell["cell_type"] for cell in cells(NOTEBOOK)]
  assert kinds[0] == "markdown" and kinds.count("markdown") * 2 > kinds.count("code")
  for cell in cells(NOTEBOOK):
    assert cell["source"] and len(cell["source"]) <= 16, "a cell is empty or too long to take in"
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None


def test_the_names_that_it_takes_from_mmjax_exist():
  for node in (node for tree in trees(NOTEBOOK) for node in ast.walk(tree)):
    if isinstance(node, ast.ImportFrom) and node.module.startswith("mmjax"):
      module = importlib.import_module(node.module)
      for alias in node.names:
        assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
  modules = {"plan": "mmjax.plan", "tensors": "mmjax.plan.tensors",
             "mesh_lib": "mmjax.parallel.mesh"}
  for node in (node for tree in trees(NOTEBOOK) for node in ast.walk(tree)):
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
      if node.value.id in modules:
        operator.attrgetter(node.attr)(importlib.import_module(modules[node.value.id]))


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_and_draws_what_it_says(tmp_path, monkeypatch):
  nbclient, nbformat = needs("nbclient"), needs("nbformat")
  needs("ipykernel"), needs("matplotlib"), needs("libtpu")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("XLA_FLAGS", "")  # one device, as a reader has
  book = nbformat.read(NOTEBOOK, as_version=4)
  book.cells.append(nbformat.v4.new_code_cell("import json\n" + TELL))
  client = nbclient.NotebookClient(book, timeout=900, kernel_name="python3",
                                   resources={"metadata": {"path": str(tmp_path)}})
  client.execute()  # raises at the first cell that fails
  told = json.loads(book.cells[-1].outputs[0].text)
  assert told["chips"] == 256 and told["fits"]
  assert told["parts"] == [0] * 4                        # the parts of memory add up to the peak
  assert told["bounds"][1] == told["bounds"][2]          # the longest bar is the step's bound
  assert list(told["held"].values()) == [16, 16, 1, 256]
  fsdp16, fsdp4, fsdp1, batch4 = told["peaks"]
  assert fsdp16 < fsdp4 < fsdp1 and fsdp16 < batch4
  pictures = [output for cell in book.cells for output in cell.get("outputs", ())
              if "image/png" in output.get("data", {})]
  assert len(pictures) == FIGURES
