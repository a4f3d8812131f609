"""Frozen networks: where they come from, that nothing moves them, how they lie, what goes wrong."""

import dataclasses
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath

from mmjax import train
from mmjax.checkpoint import paths
from mmjax.checkpoint.interop import workdir as workdirs
from mmjax.checkpoint.interop.pretrained import Pretrained
from mmjax.checkpoint.interop.read import read
from mmjax.config import ConfigError
from mmjax.data.text_transforms import Tokenise
from mmjax.objectives.contract import Objective, weigh
from mmjax.training import frozen
from mmjax.training.assemble import assemble
from tests.training import tiny

STUDENT = {"name": "vit", "patch": 8, "grid": [2, 2], "width": 16, "depth": 1, "heads": 2, "pool": "mean"}
TEACHER = {**STUDENT, "width": 32, "mlp_dim": 48}
ME = "tests.training.test_frozen.Distill"


@dataclasses.dataclass(frozen=True)
class Distill(Objective):
  """A student that learns to give the first features of a frozen teacher."""

  encoder: nn.Module
  teacher: nn.Module

  def init(self, rng, batch):
    make = lambda module: module.init(rng, batch["image"])["params"]
    return {"encoder": make(self.encoder)}, {"teacher": make(self.teacher)}

  def forward(self, ctx, params, batch):
    ours, _ = self.encoder.apply({"params": params["encoder"]}, batch["image"])
    theirs, _ = self.teacher.apply({"params": ctx.state["teacher"]}, batch["image"])
    return {"image/pooled": ours, "teacher": theirs[:, :ours.shape[-1]]}, {}

  def terms(self, ctx, params, features, batch):
    error = jnp.square(features["image/pooled"] - features["teacher"]).mean(-1)
    return {"distance": weigh(error, batch["valid"])}, {}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A workdir with a dual encoder whose image tower is TEACHER with a projection, and its tensors."""
  folder = tmp_path_factory.mktemp("source") / "workdir"
  pairs = tiny.write_pairs(tmp_path_factory.mktemp("data") / "pairs.npz")
  objective = {**tiny.config(pairs)["objective"], "image": {**TEACHER, "out_dim": 16}}
  module = assemble({**tiny.config(pairs), "objective": {
      **objective, "text": {**objective["text"], "out_dim": 16}}})
  params = {name: np.random.default_rng(0).normal(size=x.shape, scale=0.1).astype(np.float32)
            for name, x in paths.flatten(module.abstract.params).items()}
  workdirs.write(Pretrained(objective, params), epath.Path(folder))
  return str(folder), params, pairs


def guided(source, text=None, **teacher):
  """Masked prediction of the source's image tower, by a mask that goes by its text tower."""
  path, _, pairs = source
  target = {"name": "features", "teacher": {"name": "pretrained", "from": path, **teacher},
            "text": {"name": "pretrained", "beside": "target.teacher", "tower": "text", **(text or {})}}
  return {**tiny.config(pairs), "total_steps": 4, "optim": {"lr": 1e-2, "weight_decay": 0.1, "ema_decay": 0.9},
          "objective": {"name": "masked", "hide": "token", "encoder": {**STUDENT, "mask_token": True},
                        "mask": {"name": "text_guided", "ratio": 0.5}, "target": target}}


def config(source, teacher=None, **changes):
  """Distillation from `source`; `teacher` are further keys of its node."""
  path, _, pairs = source
  node = {"name": "pretrained", "from": path, **(teacher or {})}
  return {**tiny.config(pairs), "total_steps": 4, "checkpoint": {"every_steps": 2},
          "objective": {"name": ME, "encoder": dict(STUDENT), "teacher": node},
          "optim": {"lr": 1e-2, "weight_decay": 0.1}, **changes}


def wanted(source):
  """The tensors of its image tower, {name: array}."""
  return {name.removeprefix("image/"): x for name, x in source[1].items() if name.startswith("image/")}


def test_the_config_says_what_the_source_is_and_takes_other_keys_over_it(source):
  resolved = frozen.resolve(config(source, {"drop_path": 0.1}))
  node = resolved["objective"]["teacher"]
  assert node == {**TEACHER, "out_dim": 16, "drop_path": 0.1, "from": source[0], "tower": "image"}
  assert frozen.resolve(resolved) == resolved


def test_a_step_moves_the_student_and_not_the_frozen_network(source):
  run = assemble(config(source), devices=jax.devices()[:1])
  tensors, _ = frozen.initial(run.frozen, run.abstract.state)
  state = run.create_state(frozen=tensors)
  before = jax.device_get(paths.flatten(state.params))
  rng = np.random.default_rng(0)
  batch = {name: rng.normal(size=x.shape).astype(x.dtype) for name, x in run.abstract_batch.items()}
  batch["valid"] = np.ones(len(batch["valid"]), bool)
  with run.use():
    state, _ = run.step_fn()(state, jax.device_put(batch, run.batch_sharding))
  for name, x in wanted(source).items():
    np.testing.assert_array_equal(paths.flatten(state.state)[f"teacher/{name}"], x, err_msg=name)
  moved = [name for name, x in paths.flatten(state.params).items() if np.any(x != before[name])]
  assert "encoder/patch_embed/kernel" in moved and not any("teacher" in name for name in before)


def test_a_text_tower_comes_from_where_the_teacher_does_and_a_step_does_not_move_it(source):
  """With weight decay and an average of the parameters, of which it is none."""
  run = assemble(guided(source), devices=jax.devices()[:1])
  assert run.config["objective"]["target"]["text"]["from"] == source[0]
  assert not any("teacher" in name or "text" in name for name in paths.flatten(run.abstract.params))
  tensors, told = frozen.initial(run.frozen, run.abstract.state)
  assert set(told) == {"target.teacher", "target.text"}
  state = run.create_state(frozen=tensors)
  rng = np.random.default_rng(0)
  batch = {name: rng.integers(0, 12, x.shape).astype(x.dtype) for name, x in run.abstract_batch.items()}
  batch["valid"] = np.ones(len(batch["valid"]), bool)
  with run.use():
    state, metrics = run.step_fn()(state, jax.device_put(batch, run.batch_sharding))
  assert float(metrics["prediction"].mean) > 0
  after = paths.flatten(state.state)
  for tower, place in ("image", "teacher"), ("text", "text"):
    names = [name for name in source[1] if name.startswith(f"{tower}/")]
    assert names
    for name in names:
      np.testing.assert_array_equal(after[name.replace(tower, f"target/{place}", 1)], source[1][name])


@pytest.mark.parametrize("text, teacher, message", [
    ({"tower": "words"}, {}, r"objective\.target\.text\.tower: .* has no 'words'; it has image, text"),
    ({"beside": "teacher"}, {}, r"objective\.target\.text\.beside: there is no objective\.teacher$"),
    ({"from": "else/where"}, {}, r"objective\.target\.text\.from: comes from where objective\.target\.teacher"),
    ({"vocab": 20}, {}, r"objective\.target\.text\.from: .* ! target/text/embedding"),
    ({}, {"out_dim": 8}, r"text\.out_dim: texts have 16 numbers and pictures 8"),
])
def test_a_text_tower_that_does_not_fit_is_one_line_that_names_the_key(source, text, teacher, message):
  with pytest.raises(ConfigError, match=message) as caught:
    run = assemble(guided(source, text, **teacher))
    frozen.initial(run.frozen, run.abstract.state)
  assert "\n" not in str(caught.value)


def test_a_source_without_texts_is_no_source_of_a_text_tower(source, tmp_path):
  alone = read(source[0]).encoder()
  workdirs.write(alone, epath.Path(tmp_path / "alone"))
  with pytest.raises(ConfigError, match=r"objective\.target\.text\.tower: .* has no 'text'; it has model"):
    assemble(guided((str(tmp_path / "alone"), *source[1:])))


@pytest.mark.parametrize("theirs, ours, message", [
    ({"tokenizer": "bytes"}, {"tokenizer": "bytes"}, None),
    ({"tokenizer": "bytes"}, {"tokenizer": "scenes"},
     r"text\.from: its texts are tokenised by 'bytes' \(259 ids\), those of data by 'scenes' \(587 ids\)"),
    ({"tokenizer": "bytes", "bos": True}, {"tokenizer": "bytes"},
     r"text\.from: its texts are tokenised with bos=True, those of data with bos=False"),
])
def test_captions_are_tokenised_as_those_of_the_text_tower_were(
    source, theirs, ours, message, monkeypatch):
  model = read(source[0]).replace(text=({"name": "Tokenise", "length": 3, **theirs},))
  monkeypatch.setattr(frozen, "read", lambda path: model)
  run = assemble(guided(source))
  begin = lambda: frozen.initial(run.frozen, run.abstract.state, [Tokenise(length=3, **ours)])
  if message is None:
    begin()
  else:
    with pytest.raises(ConfigError, match=message):
      begin()


def test_a_tokenizer_of_more_ids_than_the_text_tower_has_is_refused(source, tmp_path):
  settings = guided(source)
  np.savez(tmp_path / "data.npz", image=np.zeros((64, 16, 16, 3), np.float32), caption=np.array(["a"] * 64))
  settings["data"] = {"source": {"name": "arrays", "path": str(tmp_path / "data.npz")},
                      "transforms": [{"name": "Tokenise", "tokenizer": "bytes", "length": 3},
                                     {"name": "Keep", "keys": ["image", "text", "text_mask"]}]}
  with pytest.raises(ConfigError, match=r"objective\.target\.text\.vocab: 12 is too small .* 259 ids"):
    assemble(settings)


def test_a_random_teacher_has_a_random_text_tower_and_a_run_recalls_both(source):
  node = {"teacher": dict(TEACHER), "text": {"name": "text", "beside": "teacher", "tower": "text"}}
  assert frozen.split(node) == ({"teacher": TEACHER, "text": {"name": "text"}}, {})
  config = guided(source)
  assert frozen.recall(config, frozen.resolve(config))["objective"] == frozen.resolve(config)["objective"]


@pytest.mark.slow
def test_a_run_goes_on_when_the_source_is_gone_and_its_encoder_comes_out_plain(source, tmp_path):
  gone = tmp_path / "source"
  shutil.copytree(source[0], gone)
  settings = config((str(gone), *source[1:]))
  train.train({**settings, "total_steps": 2}, str(tmp_path / "run"))
  shutil.rmtree(gone)
  train.train(settings, str(tmp_path / "run"))
  told = json.loads((tmp_path / "run/provenance.json").read_text())[0]["frozen"]
  assert told["teacher"]["path"] == str(gone) and len(told["teacher"]["params"]) == 64
  found = workdirs.read_state(epath.Path(tmp_path / "run"), "teacher")
  assert found.keys() == wanted(source).keys()
  for name, x in wanted(source).items():
    np.testing.assert_array_equal(found[name], x, err_msg=name)
  encoder = read(str(tmp_path / "run")).encoder()
  assert encoder.objective["model"] == STUDENT
  assert not any("teacher" in name for name in encoder.params)


def test_a_frozen_network_of_any_shape_is_spread_as_parameters_are(source):
  """On 2 x 2 devices no kernel of the teacher is whole on any device, though the student has no such shape."""
  run = assemble(config(source, mesh={"fsdp": 2, "tensor": 2, "data": 1}, batch_size=16),
                 devices=jax.devices()[:4])
  up = run.shardings.state["teacher"]["trunk"]["layers"]["mlp"]["up"]["kernel"]
  assert up.spec == run.shardings.params["encoder"]["trunk"]["layers"]["mlp"]["up"]["kernel"].spec
  assert up.shard_shape((1, 32, 48)) == (1, 16, 24)


def test_a_network_may_be_described_by_the_config_and_its_path_given_later(source):
  """Then shapes need no checkpoint (`mmjax plan`), and heads that the node has not are left out."""
  run = assemble(config(source, {**TEACHER, "from": ""}))
  with pytest.raises(ConfigError, match=r"^objective\.teacher\.from: is empty; give"):
    frozen.initial(run.frozen, run.abstract.state)
  run = assemble(config(source, dict(TEACHER)))
  tensors, _ = frozen.initial(run.frozen, run.abstract.state)
  assert "teacher/patch_embed/kernel" in tensors
  assert not any(name.startswith("teacher/projection") for name in tensors)


@pytest.mark.parametrize("teacher, message", [
    ({"from": "no/where"}, r"objective\.teacher\.from: no/where: there is nothing here"),
    ({"from": ""}, r"objective\.teacher\.from: is empty"),
    ({"tower": "audio"}, r"objective\.teacher\.tower: .* has no 'audio'; it has image, text"),
    ({**TEACHER, "patch": 4, "grid": [4, 4]}, r"objective\.teacher\.from: .* ! teacher/patch_embed/kernel "
     r"have \[8, 8, 3, 32\], want \[4, 4, 3, 32\]"),
    ({**TEACHER, "width": 16}, r"objective\.teacher\.from: .* is not the one that objective\.teacher describes"),
    ({**TEACHER, "depth": 2}, r"objective\.teacher\.from: .* \(and \d+ more\)"),
])
def test_a_wrong_source_is_one_line_that_names_the_key(source, teacher, message):
  with pytest.raises(ConfigError, match=message) as caught:
    run = assemble(config(source, teacher))
    frozen.initial(run.frozen, run.abstract.state)
  assert "\n" not in str(caught.value)


def test_a_source_for_what_is_trained_is_refused(source):
  settings = config(source)
  settings["objective"]["encoder"]["from"] = source[0]
  with pytest.raises(ConfigError, match=r"objective\.encoder\.from: .* init_from"):
    assemble(settings)
