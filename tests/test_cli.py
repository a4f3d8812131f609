"""The command line: help, overrides, exit statuses, and one line for an error of the user's."""

import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image
import pytest

from mmjax import cli
from tests.training import tiny

ROOT = pathlib.Path(__file__).resolve().parent.parent

OWN_CONFIG = """
from configs import common

def get_config(arg=None):
  c = common.base(batch_size=16, total_steps=2)
  c.data = {"source": {"name": "arrays", "path": "PAIRS"}}
  return c
"""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  return tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz", count=20)


@pytest.fixture
def own_config(tmp_path, pairs):
  file = tmp_path / "mine.py"
  file.write_text(OWN_CONFIG.replace("PAIRS", pairs))
  return str(file)


def program(*argv, cwd=ROOT):
  """`python -m mmjax` in a process of its own, from any directory."""
  env = {**os.environ, "PYTHONPATH": str(ROOT)}
  return subprocess.run([sys.executable, "-m", "mmjax", *argv], cwd=cwd, env=env,
                        capture_output=True, text=True)


@pytest.mark.parametrize("verb, example", [
    ("train", "mmjax train --config=contrastive/siglip:smoke --workdir=runs/siglip"),
    ("eval", "mmjax eval --workdir=runs/siglip"),
    ("data", "mmjax data --config=contrastive/siglip:smoke")])
def test_help_of_a_verb_shows_a_command_to_copy(verb, example, capsys):
  with pytest.raises(SystemExit) as end:
    cli.main([verb, "--help"])
  assert end.value.code == 0 and example in capsys.readouterr().out


def test_help_names_the_verbs(capsys):
  with pytest.raises(SystemExit) as end:
    cli.main(["--help"])
  out = capsys.readouterr().out
  assert end.value.code == 0 and all(f"\n    {verb}" in out for verb in ("train", "eval", "data"))


def test_help_does_not_wait_for_jax():
  code = ("import sys; from mmjax import cli\n"
          "try: cli.main(['train', '--help'])\n"
          "except SystemExit: print('jax' in sys.modules, file=sys.stderr)")
  result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
  assert result.stderr.strip() == "False"


def test_overrides_are_read_with_equals_sign_or_space_in_order():
  args, overrides = cli.parse(
      ["train", "--config=a.py:b", "--config.optim.lr=3e-4", "--workdir", "w", "--config.seed",
       "-3", "--config.data.source.path=x=y", "--config.seed=4"])
  assert (args.verb, args.config, args.workdir) == ("train", "a.py:b", "w")
  assert overrides == {"optim.lr": "3e-4", "seed": "4", "data.source.path": "x=y"}
  assert cli.parse(["eval", "--workdir=w", "--config.seed", "-3"])[1] == {"seed": "-3"}


@pytest.mark.parametrize("argv, message", [
    ([], "required: train | plan | eval"),
    (["trian"], "invalid choice: 'trian'"),
    (["train", "--config=a"], "required: --workdir"),
    (["train", "--config=a", "--workdir=b", "--setps=3"], "unknown argument '--setps'"),
    (["train", "--config=a", "--workdir=b", "extra"], "unknown argument 'extra'"),
    (["train", "--config=a", "--workdir=b", "--config.seed"], "--config.seed needs a value"),
    (["eval", "--workdir=b", "--step=last"], "invalid int value: 'last'"),
    (["data"], "give inspect SPEC, build SPEC, --config or --build=scenes"),
    (["data", "--build=scens"], "invalid choice: 'scens'"),
    (["data", "--build=scenes", "--config.seed=3"], "unknown argument '--config.seed'"),
    (["data", "--config=a", "--rows=0"], "--rows=0: must be at least 1"),
])
def test_wrong_command_line_ends_with_status_2_and_says_why(argv, message, capsys):
  with pytest.raises(SystemExit) as end:
    cli.main(argv)
  assert end.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("argv, message", [
    (["train", "--config=contrastive/siglp:smoke", "--workdir={tmp}/w"],
     "mmjax train: --config=contrastive/siglp: no such file or shipped config; did you mean"),
    (["train", "--config=contrastive/siglip:smoke", "--workdir={tmp}/w", "--config.batchsize=8"],
     "mmjax train: batchsize: unknown key; did you mean 'batch_size'?"),
    (["train", "--config=supervised/vit:smoke", "--workdir={tmp}/w",
      "--config.data.transforms.9.size=8"], "mmjax train: data.transforms.9: no such item"),
    (["eval", "--workdir={tmp}/empty"], "mmjax eval: --workdir={tmp}/empty: holds no run"),
    (["data", "--config={tmp}/mine.py", "--config.data.source.pth=x"],
     "mmjax data: data.source.pth: unknown key; did you mean 'path'?"),
    (["data", "--config={tmp}/mine.py", "--config.data=None"],
     "mmjax data: data: expected dict, not None"),
    (["data", "--build=scenes", "--count=0", "--data_dir={tmp}"], "mmjax data: "),
])
def test_error_of_the_users_is_one_line_and_status_2(argv, message, capsys, tmp_path, own_config):
  status = cli.main([arg.format(tmp=tmp_path) for arg in argv])
  err = capsys.readouterr().err
  assert status == 2
  assert err.startswith(message.format(tmp=tmp_path)) and err.count("\n") == 1, err
  assert not (tmp_path / "w").exists()


def test_data_that_cannot_be_read_is_one_line_and_status_1(capsys, own_config, tmp_path):
  arrays = {"image": np.zeros((4, 8, 8, 3), np.float32), "name": np.array(["a", "b", "c", "d"])}
  np.savez(tmp_path / "names.npz", **arrays)
  status = cli.main(["data", f"--config={own_config}",
                     f"--config.data.source.path={tmp_path}/names.npz"])
  err = capsys.readouterr().err
  assert status == 1 and err.count("\n") == 1
  assert "names.npz record" in err and "'name' is not numeric" in err


def test_data_shows_records_shapes_and_pictures(capsys, own_config, tmp_path):
  save = tmp_path / "pictures.png"
  assert cli.main(["data", f"--config={own_config}", "--rows=10", f"--save={save}"]) == 0
  out = capsys.readouterr().out
  assert "pairs.npz: 20 records" in out and "float32 [16, 16, 3]" in out and "0 bad" in out
  assert "the first 10 pictures" in out
  assert Image.open(save).size == (8 * 18, 2 * 18)  # a line around each


def test_data_without_pictures_cannot_save_them(capsys, own_config, tmp_path):
  argv = ["data", f"--config={own_config}", f"--save={tmp_path}/pictures.png",
          "--config.data.transforms=[{'name': 'Keep', 'keys': ['label']}]"]
  assert cli.main(argv) == 2
  assert "no picture among the first 256 rows" in capsys.readouterr().err


def test_program_ends_with_one_line_and_status_2(tmp_path):
  """From another directory, with a shipped name, on a key that does not exist."""
  result = program("train", "--config=supervised/vit:smoke", "--workdir=w", "--config.optm.lr=1",
                   cwd=tmp_path)
  assert result.returncode == 2
  assert result.stderr.startswith("mmjax train: optm: unknown key; did you mean 'optim'?")
  assert result.stderr.count("\n") == 1 and not (tmp_path / "w").exists()


def test_program_reads_a_users_own_config_from_another_directory(own_config, tmp_path):
  result = program("data", "--config=mine.py", "--rows=4", cwd=tmp_path)
  assert result.returncode == 0, result.stderr
  assert "4 rows at" in result.stdout and not result.stderr


def test_a_workdir_that_is_a_file_is_one_line(pairs, tmp_path, capsys):
  (tmp_path / "file").write_text("")
  config = tmp_path / "tiny.py"
  config.write_text(f"from tests.training import tiny\n\ndef get_config(arg):\n  return tiny.config({pairs!r})\n")
  assert cli.main(["train", f"--config={config}", f"--workdir={tmp_path / 'file'}"]) == 1
  error = capsys.readouterr().err.strip().splitlines()[-1]
  assert error.startswith("mmjax train: ") and str(tmp_path / "file") in error
