"""Every recipe on eight devices, however they are arranged, takes the step that one device takes.

The recipes are the shipped ones, smaller than their smoke variants, in float32, with sizes that the
meshes divide (width 32, 4 heads of 8) and sizes that they do not (3 heads; 15 tokens of text; 17 of
an image with a class token).
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax.objectives.contract import Context
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.assemble import assemble
from mmjax.training.gradients import loss_and_grad
from tests.contract import toys
from tests.parallel.one_step import LARGE_STEP, MESHES, TOLERANCE, one_step, same

ROWS, PIXELS, PATCH, CLASSES, VOCAB = 16, 32, 8, 6, 64
RECIPES = ("contrastive/clip", "contrastive/siglip", "supervised/vit", "finetune/classify",
           "finetune/retrieve")


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
  """A file with every key that a recipe reads, as the recipe's transforms would leave it."""
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp("recipes") / "rows.npz"
  label = rng.integers(0, CLASSES, 64).astype(np.int32)
  label[:CLASSES] = np.arange(CLASSES)
  length = rng.integers(2, 16, (64, 1))
  np.savez(path, image=rng.normal(size=(64, PIXELS, PIXELS, 3)).astype(np.float32), shape=label,
           text=rng.integers(1, VOCAB, (64, 15)).astype(np.int32), text_mask=np.arange(15) < length)
  return str(path)


def small(name, arrays, heads=4, optimizer=None, **changes):
  """The recipe's smoke variant on these arrays, with scanned layers."""
  config = config_lib.load(f"{name}:smoke")
  towers = [config["objective"][key] for key in ("model", "image", "text")
            if key in config["objective"]]
  width = 8 * heads
  for tower in towers:
    tower.update(width=width, heads=heads, depth=2, scan=True)
    sizes = (dict(patch=PATCH, grid=[PIXELS // PATCH] * 2) if tower["name"] == "vit" else
             dict(vocab=VOCAB, length=15))
    tower.update({key: value for key, value in sizes.items() if key in tower})
    if tower.get("out_dim"):
      tower["out_dim"] = 32
    if tower.get("classes"):
      tower["classes"] = CLASSES
  if name == "contrastive/siglip":
    towers[1]["out_dim"] = width  # the image tower ends without a projection
  config["data"] = {"source": {"name": "arrays", "path": arrays}}
  config["batch_size"] = ROWS
  config["optim"] = {**config["optim"], **LARGE_STEP, **(optimizer or {})}
  return {**config, "evals": {}, "eval_data": None, **changes}


def step_of(config, arrays, devices=None):
  """`one_step` of a config with the rows of the file, one of which is not valid."""
  run = assemble(config, devices)
  with np.load(arrays) as file:
    batch = {key: file[key][:ROWS] for key in run.abstract_batch if key in file}
  batch |= {"row": np.stack([np.zeros(ROWS), np.arange(ROWS)], 1).astype(np.uint32),
            "valid": np.arange(ROWS) != 3}
  return one_step(run, batch)


pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def on_one_device(arrays):
  """(recipe, changes of `small`) -> what its step gives on one device; computed once."""

  @functools.cache
  def step(name, changes=()):
    config = small(name, arrays, mesh=dict(data=1), **{k: v for k, v in changes})
    return step_of(config, arrays, jax.devices()[:1])

  return step


# The rest takes minutes: of the towers apart and of the losses that couple rows, the meshes that have most.
QUICK = [("supervised/vit", "mixed"), ("contrastive/siglip", "sequence")]
REST = [(name, mesh) for name in RECIPES for mesh in MESHES if (name, mesh) not in QUICK]


@pytest.mark.parametrize("name, mesh", [
    *QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in REST)])
def test_loss_gradient_and_adamw_step_are_those_of_one_device(name, mesh, arrays, on_one_device):
  got = step_of(small(name, arrays, mesh=MESHES[mesh]), arrays)
  same(got, on_one_device(name))


@pytest.mark.slow
def test_heads_that_the_mesh_does_not_divide_change_nothing(arrays, on_one_device):
  three = (("heads", 3),)
  got = step_of(small("contrastive/clip", arrays, heads=3, mesh=MESHES["mixed"]), arrays)
  same(got, on_one_device("contrastive/clip", three))


@pytest.mark.slow
def test_micro_batches_on_a_mesh_are_one_step_on_one_device(arrays, on_one_device):
  config = small("contrastive/siglip", arrays, mesh=MESHES["mixed"], micro_batches=2)
  same(step_of(config, arrays), on_one_device("contrastive/siglip"))


@pytest.mark.slow
def test_muon_orthogonalises_sharded_matrices_alike(arrays):
  muon = dict(name="muon", b2=0.95)
  got, want = (step_of(small("supervised/vit", arrays, optimizer=muon, mesh=mesh), arrays, devices)
               for mesh, devices in ((MESHES["mixed"], None), (dict(data=1), jax.devices()[:1])))
  # Newton-Schulz enlarges small singular values and the roundings with them, 3.4445^5 = 485 times.
  same({"moved": got.pop("moved")}, {"moved": want.pop("moved")}, tolerance=10 * TOLERANCE)
  same(got, want)


@pytest.mark.parametrize("mesh", [dict(data=2, expert=4), dict(fsdp=2, expert=2, tensor=2)])
def test_experts_on_devices_of_their_own_are_those_of_one_device(mesh):
  objective, batch = toys.MixtureOfExperts(), toys.make_batch()
  params, _ = objective.init(jax.random.key(0), batch)
  names = {"router": ("embed", None), "experts": ("expert", "embed", "mlp")}
  boxed = {key: nn.LogicallyPartitioned(value, names[key]) for key, value in params.items()}

  @jax.jit
  def gradient(params, batch):
    ctx = Context(step=jnp.int32(0), state={}, teachers={}, seed=0)
    return loss_and_grad(objective, ctx, params, batch)

  grads, outcome = gradient(params, batch)
  mesh = mesh_lib.make_mesh(**mesh)
  with mesh_lib.use(mesh):
    shardings, _ = mesh_lib.tree_shardings(mesh, None, boxed)
    assert shardings["experts"].spec[0] == "expert"
    got, got_outcome = gradient(jax.device_put(params, shardings), jax.device_put(
        batch, mesh_lib.batch_sharding(mesh)))
  same({"gradient": got, "loss": {"": got_outcome.loss}}, {
      "gradient": grads, "loss": {"": outcome.loss}})
