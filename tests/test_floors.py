"""Imports only go down (docs/architecture.md); files are parsed, not run."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent

# What the files of a place may import of mmjax beside the place itself. The longest place wins.
FLOORS = {
    "mmjax": {"mmjax.checkpoint"},
    "mmjax.interop": {"mmjax.training", "mmjax.objectives", "mmjax.config", "mmjax.data",
                      "mmjax.checkpoint"},
    "mmjax.__main__": {"mmjax.cli"},
    "mmjax.cli_prepare": {"mmjax.prepare", "mmjax.config", "mmjax.data"},
    "mmjax.prepare": {"mmjax.interop", "mmjax.data"},
    "mmjax.cli_data": {"mmjax.training", "mmjax.config", "mmjax.data"},
    "mmjax.cli": {"mmjax.cli_data", "mmjax.cli_prepare", "mmjax.plan", "mmjax.train", "mmjax.training",
                  "mmjax.config", "mmjax.data", "mmjax.parallel",
                  "mmjax.checkpoint", "mmjax.report", "mmjax.sweep", "mmjax.interop"},
    "mmjax.plan": {"mmjax.training", "mmjax.config", "mmjax.data", "mmjax.objectives", "mmjax.parallel",
                   "mmjax.optim", "mmjax.checkpoint", "mmjax.report"},
    "mmjax.sweep": {"mmjax.training", "mmjax.config", "mmjax.data", "mmjax.report"},
    "mmjax.train": {"mmjax.training", "mmjax.config", "mmjax.data", "mmjax.optim",
                    "mmjax.parallel", "mmjax.report"},
    "mmjax.training": {"mmjax.objectives", "mmjax.config", "mmjax.data", "mmjax.optim",
                       "mmjax.parallel", "mmjax.checkpoint", "mmjax.report", "mmjax.nn.names", "mmjax.nn.resample"},
    "mmjax.evals": {"mmjax.data"},
    "mmjax.objectives": {"mmjax.models", "mmjax.nn", "mmjax.losses", "mmjax.masking",
                         "mmjax.targets", "mmjax.generate", "mmjax.optim.ema", "mmjax.parallel"},
    "mmjax.targets": {"mmjax.models", "mmjax.nn", "mmjax.losses", "mmjax.masking", "mmjax.parallel"},
    "mmjax.generate": {"mmjax.nn"},
    "mmjax.models": {"mmjax.nn", "mmjax.masking", "mmjax.parallel.mesh", "mmjax.parallel.lookup"},
    "mmjax.nn": {"mmjax.parallel.mesh", "mmjax.parallel.ring_attention"},
    "mmjax.losses": {"mmjax.parallel.mesh"},
    "mmjax.masking": set(),
    "mmjax.optim": set(),
    "mmjax.data": set(),
    "mmjax.parallel": {"mmjax.losses"},
    "mmjax.parallel.mesh": {"mmjax.parallel.devices"},
    "mmjax.parallel.devices": set(),
    "mmjax.checkpoint": {"mmjax.parallel", "mmjax.nn.resample", "mmjax.data"},
    "mmjax.checkpoint.interop": {"mmjax.checkpoint", "mmjax.models", "mmjax.nn", "mmjax.data"},
    "mmjax.report": set(),
    "mmjax.config": set(),
}
FILES = sorted((ROOT / "mmjax").rglob("*.py"))


def module_name(file):
  parts = file.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(file):
  """Full names of all that a file imports, inside functions too; `from a import b` gives a.b."""
  for node in ast.walk(ast.parse(file.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{file}: relative import"
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(name, place):
  return name == place or name.startswith(place + ".")


def floor_of(module):
  # "mmjax" is the package's own __init__, not the place of all that is in it.
  places = [place for place in FLOORS if within(module, place) and place != "mmjax"]
  return max(places, key=len) if places else module


def test_every_file_stands_on_a_floor():
  assert {floor_of(module_name(file)) for file in FILES} <= set(FLOORS)


@pytest.mark.parametrize("place", sorted(FLOORS))
def test_imports_go_down(place):
  up = [f"{module_name(file)} imports {name}" for file in FILES
        if floor_of(module_name(file)) == place for name in imports(file)
        if within(name, "mmjax") and not any(within(name, low) for low in FLOORS[place] | {place})
        and name not in ("mmjax", "mmjax.__version__")]
  assert not up


TORCH_PICKLES = "mmjax.checkpoint.interop.tensors"  # imports torch when it meets one


def test_nothing_imports_tensorflow_or_torch():
  heavy = [f"{module_name(file)} imports {name}" for file in FILES for name in imports(file)
           if name.split(".")[0] in ("tensorflow", "torch", "tensorflow_text")
           and module_name(file) != TORCH_PICKLES]
  assert not heavy


def test_configs_import_only_ml_collections_the_standard_library_and_configs():
  for file in sorted((ROOT / "configs").rglob("*.py")):
    allowed = {"ml_collections", "configs"} | set(sys.stdlib_module_names)
    assert {name.split(".")[0] for name in imports(file)} <= allowed, file


def test_the_package_loads_without_tensorflow_and_torch():
  # tensorboardX imports torch where it is installed; None makes an import fail as where it is not.
  code = ("import sys; sys.modules['torch'] = sys.modules['tensorflow'] = None; "
          "import mmjax.cli, mmjax.train, mmjax.interop, mmjax.data.sources.tfds")
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert result.returncode == 0, result.stderr


def test_every_folder_is_a_package_that_an_installation_brings_along():
  folders = {path.parent for path in (ROOT / "mmjax").rglob("*.py")}
  assert [folder for folder in folders if not (folder / "__init__.py").exists()] == []
