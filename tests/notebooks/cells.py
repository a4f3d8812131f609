"""The cells of a notebook's file, for tests that read it without running it."""

import ast
import json


def cells(notebook):
  """The cells of the file at `notebook`, a pathlib.Path."""
  return json.loads(notebook.read_text())["cells"]


def trees(notebook):
  """Syntax trees of its code cells, without IPython's own commands."""
  for cell in cells(notebook):
    if cell["cell_type"] == "code":
      yield ast.parse("".join("  pass\n" if line.lstrip().startswith("%pip") else line
                              for line in cell["source"]))
