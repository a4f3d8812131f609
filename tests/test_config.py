"""Configs: loading, overriding, and that whatever is wrong is one line with the config path."""

import copy
import re

from ml_collections import ConfigDict
import pytest

from mmjax import config as config_lib
from mmjax.config import ConfigError
from mmjax.training.assemble import assemble
from mmjax.training.streams import make_stream
from tests.training import tiny


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  return tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz")


@pytest.fixture
def node(pairs):
  """A tiny run with every section there is, on eight devices."""
  return tiny.config(
      pairs, mesh={"data": 8, "fsdp": 1},
      data={"source": {"name": "arrays", "path": pairs},
            "transforms": [{"name": "Keep", "keys": ["image", "text", "text_mask"]},
                           {"name": "Normalise", "mean": [0.5] * 3, "std": [0.5] * 3}]},
      evals={"retrieval": {"batch_size": 16}, "loss": {}},
      optim={"name": "adamw", "lr": 3e-3, "clip_norm": None,
             "schedule": {"name": "cosine", "warmup_steps": 2},
             "groups": [{"match": ".*kernel"}, {"match": ".*", "decay": 0.0}]})


CONFIG_FILE = """
from configs import common
from ml_collections import ConfigDict

def get_config(arg=None):
  return ConfigDict({"which": arg, "sizes": (1, 2), "colours": len(common.COLOURS)})
"""


def test_load_from_a_path_with_and_without_argument(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text(CONFIG_FILE)
  assert config_lib.load(str(file)) == {"which": None, "sizes": [1, 2], "colours": 8}
  assert config_lib.load(f"{file}:big")["which"] == "big"


@pytest.mark.parametrize("name", ["contrastive/siglip", "configs/contrastive/siglip.py"])
def test_shipped_config_loads_by_name_from_any_directory(name, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert config_lib.load(f"{name}:smoke")["objective"]["name"] == "contrastive"


@pytest.mark.parametrize("spec, message", [
    ("contrastive/sigklip", r"no such file or shipped config; did you mean 'contrastive/siglip'"),
    ("configs/contrastive/sigklip.py", r"did you mean 'contrastive/siglip'"),
    ("nowhere.py", r"--config=nowhere.py: no such file"),
    ("contrastive/siglip:smok", r"unknown variant 'smok'; did you mean 'smoke'"),
    ("{tmp}/empty.py", r"defines no get_config"),
    ("{tmp}/wrong.py", r"wrong.py: SyntaxError"),
    ("{tmp}/lacks.py", r"ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    ("{tmp}/number.py", r"get_config gave 3, which is no ConfigDict"),
])
def test_config_that_cannot_be_loaded_is_one_line(spec, message, tmp_path):
  (tmp_path / "empty.py").write_text("x = 1\n")
  (tmp_path / "wrong.py").write_text("def get_config(:\n")
  (tmp_path / "lacks.py").write_text("import nowhere_to_be_found\n")
  (tmp_path / "number.py").write_text("def get_config(arg=None):\n  return 3\n")
  _assert_one_line(lambda: config_lib.load(spec.format(tmp=tmp_path)), message)


@pytest.mark.parametrize("old, text, new", [
    (1e-3, "3e-4", 3e-4), (1e-3, "1", 1.0), (5, "7", 7), (None, "7", 7), (None, "-0.5", -0.5),
    (False, "true", True), (True, "False", False), (1.0, "None", None), (1.0, "null", None),
    ("adamw", "lion", "lion"), ("7", "8", "8"), ("full", "none", "none"), ("full", "None", None),
    (None, "none", "none"), ([8, 8], "(4, 4)", [4, 4]), ([8, 8], "[4,4]", [4, 4]),
    (None, "{'softmax': 1.0}", {"softmax": 1.0}), (None, "a b", "a b"), (None, "gs://x", "gs://x"),
])
def test_override_reads_text_as_the_value_it_stands_for(old, text, new):
  value = config_lib.parse(text, old)
  assert value == new and type(value) is type(new)


def test_override_reaches_nested_keys_list_items_and_nodes_that_are_not_there_yet():
  node = {"optim": {"lr": 1e-3}, "data": {"transforms": [{"name": "Decode"}, {"size": 64}]},
          "eval_data": None, "grid": [2, 2]}
  for path, text in {"optim.lr": "1", "data.transforms.1.size": "96", "grid.0": "4",
                     "rules.embed": "None", "eval_data.shuffle": "False"}.items():
    config_lib.override(node, path, text)
  assert node == {"optim": {"lr": 1.0}, "grid": [4, 2], "rules": {"embed": None},
                  "data": {"transforms": [{"name": "Decode"}, {"size": 96}]},
                  "eval_data": {"shuffle": False}}
  assert isinstance(node["optim"]["lr"], float)


def test_override_in_one_unit_replaces_the_other_units():
  node = {"total_epochs": 3, "warmup_percent": 10}
  config_lib.override(node, "total_steps", "5")
  assert node == {"total_steps": 5, "warmup_percent": 10}


@pytest.mark.parametrize("path, message", [
    ("data.transforms.2.size", r"^data.transforms.2: no such item; the list has 2"),
    ("data.transforms.x.size", r"^data.transforms.x: no such item"),
    ("data.transforms.-1", r"^data.transforms.-1: no such item"),
    ("seed.x", r"^seed: is the value 1, so it has no key 'x'"),
])
def test_override_through_what_is_not_there_is_refused(path, message, node):
  _assert_one_line(lambda: config_lib.override(node, path, "1"), message)


def test_plain_gives_what_json_can_hold():
  assert config_lib.plain(ConfigDict({"a": {"b": (1, (2,))}})) == {"a": {"b": [1, [2]]}}


def test_the_config_used_for_these_errors_is_itself_right(node):
  assert assemble(node).settings.total_steps == 8


@pytest.mark.parametrize("change, message", [
    # Unknown keys, level by level, with the nearest valid one.
    ("batchsize=16", r"^batchsize: unknown key; did you mean 'batch_size'"),
    ("optm.lr=1", r"^optm: unknown key; did you mean 'optim'"),
    ("optim.b3=1", r"^optim.b3: unknown key; did you mean 'b2'"),
    ("optim.nam=adamw", r"^optim.nam: unknown key; did you mean 'name'"),
    ("optim.ema_deca=0.9", r"^optim.ema_deca: unknown key; did you mean 'ema_decay'"),
    ("optim.schedule.warmup=1", r"^optim.schedule.warmup: .* did you mean 'warmup_steps'"),
    ("optim.groups.0.mach=x", r"^optim.groups.0.mach: unknown key; did you mean 'match'"),
    ("objective.nam=x", r"^objective.nam: unknown key; did you mean 'name'"),
    ("objective.image.widht=3", r"^objective.image.widht: unknown key; did you mean 'width'"),
    ("objective.losses.sigmod=1.0", r"^objective: losses: \['sigmod'\]; valid names: .*sigmoid"),
    ("mesh.datas=8", r"^mesh.datas: unknown key; did you mean 'data'"),
    ("rules.bach=data", r"^rules.bach: unknown key; did you mean 'batch'"),
    ("checkpoint.every=5", r"^checkpoint.every: unknown key; did you mean 'every_steps'"),
    ("data.sorce=x", r"^data.sorce: unknown key; did you mean 'source'"),
    ("data.transform.0.size=3", r"^data.transform: unknown key; did you mean 'transforms'"),
    ("data.source.pth=x", r"^data.source.pth: unknown key; did you mean 'path'"),
    ("data.transforms.0.kys=x", r"^data.transforms.0.kys: unknown key; did you mean 'keys'"),
    ("eval_data.sufle=True", r"^eval_data.sufle: unknown key; did you mean 'shuffle'"),
    ("evals.retrieval.batchsize=4", r"^evals.retrieval.batchsize: .* did you mean 'batch_size'"),
    ("evals.loss.evry_steps=4", r"^evals.loss.evry_steps: .* did you mean 'every_steps'"),
    ("evals.loss.data.sorce=4", r"^evals.loss.data.sorce: .* did you mean 'source'"),
    ("evals.zero_shot={'classes': ['a', 'b'], 'tokenise': {'name': 'Tokenise', 'lenth': 8}}",
     r"^evals.zero_shot.tokenise.lenth: unknown key; did you mean 'length'"),
    # Unknown names.
    ("data.source={'name': 'scenes', 'split': 'trian'}", r"^data.source: .* nearest is 'train'"),
    ("data.source={'name': 'tfds', 'split': 'train'}", r"^data.source.dataset: is missing"),
    ("data.transforms.1={'name': 'Tokenise', 'tokenizer': 'scens', 'length': 8}",
     r"^data.transforms.1: no tokenizer 'scens'; expected 'bytes', 'scenes'"),
    ("objective.name=contrastiv", r"^objective.name: no 'contrastiv' .* mean 'contrastive'"),
    ("objective.name=contract", r"^objective.name: no 'contract' .*valid: classification, contr"),
    ("objective.name=my_lab.thing", r"^objective.name: cannot import 'my_lab.thing'"),
    ("objective.image.name=vitt", r"^objective.image.name: no 'vitt' .* did you mean 'vit'"),
    ("data.source.name=arays", r"^data.source.name: no 'arays' .* did you mean 'arrays'"),
    ("data.transforms.0.name=Kep", r"^data.transforms.0.name: no 'Kep' .* did you mean 'Keep'"),
    ("evals.retreival.batch_size=4", r"^evals.retreival.name: .* did you mean 'retrieval'"),
    ("evals.loss.name=los", r"^evals.loss.name: no 'los' .* did you mean 'loss'"),
    ("optim.name=adam", r"^optim.name: no 'adam' .* did you mean 'adamw'"),
    ("optim.schedule.name=cosin", r"^optim.schedule.name: no 'cosin' .* did you mean 'cosine'"),
    # Values of the wrong kind.
    ("optim.lr=abc", r"^optim.lr: expected float, not 'abc'"),
    ("optim.lr=None", r"^optim.lr: expected float, not None"),
    ("optim.b2=high", r"^optim.b2: expected float, not 'high'"),
    ("optim.ema_decay=x", r"^optim.ema_decay: expected float or None, not 'x'"),
    ("optim.schedule=cosine", r"^optim.schedule: expected dict or None, not 'cosine'"),
    ("optim.schedule.warmup_steps=a", r"^optim.schedule.warmup_steps: expected int, not 'a'"),
    ("optim.groups=3", r"^optim.groups: expected list, not 3"),
    ("optim.groups.0=3", r"^optim.groups.0: expected dict, not 3"),
    ("optim.groups.0.lr=x", r"^optim.groups.0.lr: expected float, not 'x'"),
    ("optim=3", r"^optim: expected dict, not 3"),
    ("objective.image=3", r"^objective.image: expected Module, not 3"),
    ("objective.image={'patch': 8}", r"^objective.image.name: is missing"),
    ("objective.image.depth=2.5", r"^objective.image.depth: expected int, not 2.5"),
    ("objective.image.scan=1", r"^objective.image.scan: expected bool, not 1"),
    ("objective.losses=3", r"^objective.losses: expected dict, not 3"),
    ("mesh.data=x", r"^mesh"),
    ("rules.embed=3", r"^rules: "),
    ("data.transforms=3", r"^data.transforms: expected list, not 3"),
    ("data.transforms.0=Decode", r"^data.transforms.0: expected dict, not 'Decode'"),
    ("data.source=arrays", r"^data.source.name: is missing; it says which of mmjax.data.sources"),
    ("data.shuffle=3", r"^data.shuffle: expected bool, not 3"),
    ("data.workers=x", r"^data.workers: expected int, not 'x'"),
    ("data.mixture=3", r"^data.mixture: expected dict, not 3"),
    ("evals.retrieval=3", r"^evals.retrieval: expected dict, not 3"),
    ("evals.loss.every_steps=x", r"^evals.loss.every_steps: expected int or None, not 'x'"),
    ("evals.loss.name=3", r"^evals.loss.name: expected a name in mmjax.evals, not 3"),
    ("checkpoint.keep_best=loss", r"^checkpoint.keep_best: expected list or None, not 'loss'"),
    ("batch_size=3.5", r"^batch_size: expected int, not 3.5"),
    ("batch_size=True", r"^batch_size: expected int, not True"),
    ("total_steps=abc", r"^total_steps: expected int, not 'abc'"),
    ("total_examples=abc", r"^total_examples: expected a number, not 'abc'"),
    ("log_every_epochs=x", r"^log_every_epochs: expected a number, not 'x'"),
    # Values out of range, and values that do not fit together.
    ("batch_size=0", r"^batch_size: must be at least 1, not 0"),
    ("batch_size=12", r"^batch_size: 12 rows cannot be cut into 1 micro-batches over 8 devices"),
    ("micro_batches=0", r"^micro_batches: must be at least 1"),
    ("micro_batches=4", r"^batch_size: 16 rows .* take a multiple of 32"),
    ("total_steps=-1", r"^total_steps: must be at least 1, not -1"),
    ("log_every_steps=0", r"^log_every_steps: must be at least 1"),
    ("watchdog_seconds=-1", r"^watchdog_seconds: must be positive"),
    ("mesh.data=3", r"^mesh: .* is not the 8 devices there are"),
    ("rules.batch=dat", r"^rules: .*the mesh has no axis 'dat'; did you mean 'data'.*valid: data, fsdp"),
    ("checkpoint.every_steps=0", r"^checkpoint: every_steps: must be at least 1"),
    ("checkpoint.keep_last=0", r"^checkpoint: keep_last must be at least 1"),
    ("checkpoint.keep_best=[1, 2]", r"^checkpoint: keep_best must be"),
    ("checkpoint.keep_best=['los/x', 'min', 1]", r"^checkpoint.keep_best: 'los/x' .* mean 'loss'"),
    ("data.workers=-1", r"^data: workers: must be at least 0"),
    ("data.source.path=/no.npz", r"^data.source: there is no file /no.npz"),
    ("evals.retrieval.batch_size=0", r"^evals.retrieval.batch_size: must be at least 1"),
    ("optim.lr=-1", r"^optim: lr=-1.0"),
    ("optim.ema_decay=2", r"^optim: ema_decay: must be at least 0 and below 1"),
    ("optim.groups.0.match=(", r"^optim.groups\[0\]: .* is no regular expression"),
    ("optim.groups.0.match=nothing", r"^optim.groups\[0\]: .*matches no parameter"),
    ("optim.schedule.warmup_steps=100", r"^optim: cosine: warmup_steps=100 .* exceed"),
    ("objective.image.width=33", r"^objective.image: .* 33 does not divide into 2 heads"),
    ("objective.image.grid=[3,3]", r"^objective: The image has 2x2 patches"),
    ("objective.image.out_dim=8", r"^objective: .*same out_dim"),
    # What must be there.
    ("total_steps=None", r"^total_steps: give the run's length as one of total_steps, total_ex"),
    ("objective=None", r"^objective: expected dict, not None"),
    ("objective.name=None", r"^objective.name: expected a name in mmjax.objectives, not None"),
    ("data=None", r"^data: expected dict, not None"),
    ("data.source=None", r"^data.source.name: is missing"),
    ("eval_data=None", r"^evals.retrieval.data: is missing, and there is no eval_data"),
])
def test_wrong_config_is_one_line_with_the_path_and_the_nearest_name(change, message, node):
  path, _, text = change.partition("=")

  def run():
    config_lib.override(node, path, text)
    assemble(node)

  _assert_one_line(run, message)


@pytest.mark.parametrize("path, message", [
    ("objective", r"^objective: is missing and has no default"),
    ("data", r"^data: is missing and has no default"),
    ("total_steps", r"^total_steps: give the run's length"),
    ("batch_size", r"^batch_size: is missing"),
    ("objective.image", r"^objective.image: is missing"),
    ("objective.name", r"^objective.name: is missing"),
    ("data.source", r"^data.source.name: is missing"),
    ("data.source.path", r"^data.source.path: is missing"),
])
def test_what_is_missing_is_named(path, message, node):
  *parents, last = path.split(".")
  parent = node
  for key in parents:
    parent = parent[key]
  del parent[last]
  _assert_one_line(lambda: assemble(node), message)


def test_a_batch_that_lacks_what_the_model_needs_is_named(node):
  node["data"]["transforms"] = [{"name": "Keep", "keys": ["text", "text_mask"]}]
  _assert_one_line(lambda: assemble(node), r"^objective: the batch has no 'image'; data gives text")


def test_mixture_parts_are_checked_like_streams(pairs):
  part = {"source": {"name": "arrays", "path": pairs}, "weight": 1.0}
  mixture = lambda **b: {"mixture": {"a": part, "b": b}}
  stream, _ = make_stream(mixture(**part, seed=3), "data")
  assert [one.seed for one in stream.streams] == [0, 3]
  for wrong, message in [
      ({**part, "shufle": True}, r"^data.mixture.b.shufle: unknown key; did you mean 'shuffle'"),
      ({"source": part["source"]}, r"^data.mixture.b.weight: is missing"),
      ({**part, "weight": "x"}, r"^data.mixture.b.weight: expected float, not 'x'"),
      ({**part, "weight": -1.0}, r"^data: mixture weight 1 is -1.0"),
      ({"weight": 1.0}, r"^data.mixture.b.source.name: is missing")]:
    _assert_one_line(lambda: make_stream(mixture(**wrong), "data"), message)


def test_misspelt_top_level_key_is_found_before_data_is_built(node, monkeypatch):
  from mmjax.data.sources import arrays
  monkeypatch.setattr(arrays, "build", lambda path: pytest.fail("data was built"))
  _assert_one_line(lambda: assemble({**node, "batchsize": 3}), "^batchsize: unknown key")


def test_durations_in_any_unit_become_steps(node):
  """64 records in batches of 16: an epoch is 4 steps."""
  node["total_epochs"] = 5
  del node["total_steps"], node["log_every_steps"]
  node["log_every_percent"] = 10
  node["checkpoint"] = {"every_epochs": 1.5}
  node["optim"]["schedule"] = {"name": "constant", "warmup_examples": 80, "cooldown_percent": 25}
  node["evals"] = {"loss": {"every_percent": 50}, "retrieval": {"every_percent": None}}
  run = assemble(node)
  assert run.settings.total_steps == 20 and run.settings.log_every_steps == 2
  assert run.checkpoint.every_steps == 6
  assert [e.every_steps for e in run.evaluations] == [10, None]
  assert run.config["optim"]["schedule"] == {
      "name": "constant", "warmup_steps": 5, "cooldown_steps": 5}


@pytest.mark.parametrize("length, steps", [
    ({"total_steps": 7}, 7), ({"total_examples": 160}, 10), ({"total_epochs": 0.5}, 2),
    ({"total_examples": 1}, 1), ({"total_steps": 7, "total_epochs": None}, 7)])
def test_length_of_a_run(length, steps, node):
  del node["total_steps"]
  node["optim"]["schedule"] = {"name": "cosine"}
  assert assemble({**node, **length}).settings.total_steps == steps


def test_two_units_for_one_duration_are_refused(node):
  _assert_one_line(lambda: assemble({**node, "total_epochs": 3}),
                   "^total_steps: .*not as total_steps and total_epochs")
  node["optim"]["schedule"]["warmup_percent"] = 5
  _assert_one_line(lambda: assemble(node),
                   "^optim.schedule.warmup_percent: warmup_steps is given twice, in two units")


def test_resolved_config_assembles_to_itself_and_survives_json(node):
  run = assemble({**node, "checkpoint": {"every_percent": 25, "keep_every_epochs": None}})
  assert run.config["checkpoint"] == {"every_steps": 2}
  again = assemble(config_lib.plain(run.config))
  assert config_lib.to_json(again.config) == config_lib.to_json(run.config)


def test_assembling_leaves_the_config_as_it_was(node):
  before = copy.deepcopy(node)
  assemble(node)
  assert node == before


def test_users_own_objective_is_found_beside_the_user(node, tmp_path, monkeypatch):
  (tmp_path / "my_lab_objective.py").write_text(
      "from mmjax.objectives.contrastive import Contrastive\n"
      "class Mine(Contrastive):\n  pass\n"
      "build = Mine\n")
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  node["objective"]["name"] = "my_lab_objective.Mine"
  assert type(assemble(node).objective).__name__ == "Mine"
  node["objective"]["scal_init"] = 1.0
  _assert_one_line(lambda: assemble(node), "^objective.scal_init: .* did you mean 'scale_init'")


def _assert_one_line(run, message):
  with pytest.raises(ConfigError) as error:
    run()
  text = str(error.value)
  assert "\n" not in text and re.search(message, text), text
