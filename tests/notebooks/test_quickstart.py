"""The notebook runs from top to bottom, names nothing that is not there, and shows what it says."""

import ast
import importlib
import json
import operator
import pathlib

import pytest

from tests.conftest import needs
from tests.notebooks.cells import cells, trees

ROOT = pathlib.Path(__file__).parents[2]
NOTEBOOK = ROOT / "notebooks/quickstart.ipynb"
# Runs after the last cell, and tells what the others have found.
TELL = """
print(json.dumps({
    "loss": curve[-1][1], "trivial": trivial, "difference": difference,
    "top1": results["colour/top1"],
    "right_colours": [float(np.mean(colour[row] == COLOURS.index(caption.split()[1])))
                      for caption, row in zip(captions, found)],
    "read": attention.sum((1, 2)).tolist()}))
"""


def test_it_is_stored_without_outputs_and_explains_every_step():
  kinds = [cell["cell_type"] for cell in cells(NOTEBOOK)]
  assert kinds[0] == "markdown" and kinds.count("markdown") * 2 > kinds.count("code")
  for cell in cells(NOTEBOOK):
    assert cell["source"] and len(cell["source"]) <= 16, "a cell is empty or too long to take in"
    if cell["cell_type"] == "code":
      assert cell["outputs"] == [] and cell["execution_count"] is None
  assert NOTEBOOK.stat().st_size < 50_000


def test_the_names_that_it_takes_from_mmjax_exist():
  found, nodes = [], [node for tree in trees(NOTEBOOK) for node in ast.walk(tree)]
  for node in nodes:
    if isinstance(node, ast.ImportFrom) and node.module.startswith("mmjax"):
      module = importlib.import_module(node.module)
      for alias in node.names:
        assert hasattr(module, alias.name) or importlib.import_module(f"{node.module}.{alias.name}")
    elif isinstance(node, ast.Import):
      for alias in node.names:
        if alias.name.startswith("mmjax"):
          importlib.import_module(alias.name)
  for node in nodes:  # now that all modules are imported
    dotted = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
    if dotted.startswith("mmjax."):
      operator.attrgetter(dotted.removeprefix("mmjax."))(importlib.import_module("mmjax"))
      found.append(dotted)
  assert "mmjax.load" in found and "mmjax.train.train" in found


@pytest.mark.slow
def test_it_runs_from_top_to_bottom_and_learns(tmp_path, monkeypatch):
  nbclient, nbformat = needs("nbclient"), needs("nbformat")
  needs("ipykernel"), needs("matplotlib")
  monkeypatch.setenv("PYTHONPATH", str(ROOT))
  monkeypatch.setenv("MMJAX_DATA_DIR", str(tmp_path / "data"))
  monkeypatch.setenv("XLA_FLAGS", "")  # one device, as a reader has
  book = nbformat.read(NOTEBOOK, as_version=4)
  book.cells.append(nbformat.v4.new_code_cell(TELL))
  client = nbclient.NotebookClient(book, timeout=900, kernel_name="python3",
                                   resources={"metadata": {"path": str(tmp_path)}})
  client.execute()  # raises at the first cell that fails
  told = json.loads(book.cells[-1].outputs[0].text)
  assert told["loss"] < 0.8 * told["trivial"]
  assert told["top1"] > 0.5                    # of eight colours
  assert min(told["right_colours"]) > 0.5      # of the six pictures found for each caption
  assert told["read"] == pytest.approx([1] * len(told["read"]), abs=1e-4)
  assert told["difference"] < 1e-5             # of unit vectors: the copy is the same model
  pictures = [output for cell in book.cells for output in cell.get("outputs", ())
              if "image/png" in output.get("data", {})]
  assert len(pictures) == 5
