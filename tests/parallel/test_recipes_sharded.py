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
from mmjax.checkpoint import paths
from mmjax.objectives.contract import Context
from mmjax.parallel import mesh as mesh_lib
from mmjax.training.assemble import assemble
from mmjax.training.gradients import loss_and_grad
from tests.contract import toys

ROWS, PIXELS, PATCH, CLASSES, VOCAB = 16, 32, 8, 6, 64
RECIPES = ("contrastive/clip", "contrastive/siglip", "supervised/vit", "finetune/classify",
           "finetune/retrieve")
MESHES = {
    "dp": dict(data=8),
    "fsdp": dict(data=2, fsdp=4),
    "tensor": dict(data=4, tensor=2),
    "sequence": dict(data=4, sequence=2),
    "mixed": dict(fsdp=2, tensor=2, sequence=2),
    "multislice": dict(slices=2, data=2, fsdp=2, tensor=2),
    "expert": dict(data=2, expert=4),
    "wide tensor": dict(tensor=8),
    "long sequence": dict(sequence=8),
}
# Of the same float32 sums in another order, relative to the largest entry of each array.
TOLERANCE = 1e-5


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
  """The recipe's smoke variant on these arrays, with scanned layers.

  The step is so large that its rounding in the parameters is far below TOLERANCE. Adam divides by
  |g| + eps: where a gradient is little but rounding the quotient is still of order one, so eps is
  of the size of the largest gradients.
  """
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
  config["optim"] = {**config["optim"], "lr": 1.0, "eps": 0.1, "schedule": {"name": "constant"},
                     **(optimizer or {})}
  return {**config, "evals": {}, "eval_data": None, **changes}


def beginning(run):
  """A state in which nothing is zero but the optimizer's: so a gradient reaches every parameter."""
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return rng.normal(size=leaf.shape, scale=0.15).astype(leaf.dtype) + name.endswith("scale")

  state = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.abstract)
  return state.replace(params=jax.tree_util.tree_map_with_path(draw, run.abstract.params))


def one_step(config, arrays, devices=None):
  """The real jitted step: its metrics, the gradient as Adam's or Muon's first moment has it (they
  begin as zeros), and how far the parameters moved; all as NumPy."""
  run = assemble(config, devices)
  with np.load(arrays) as file:
    batch = {key: file[key][:ROWS] for key in run.abstract_batch if key in file}
  batch |= {"row": np.stack([np.zeros(ROWS), np.arange(ROWS)], 1).astype(np.uint32),
            "valid": np.arange(ROWS) != 3}
  initial = beginning(run)
  before = paths.flatten(initial.params)
  with run.use():
    state, metrics = run.step_fn()(jax.device_put(initial, run.shardings),
                                   jax.device_put(batch, run.batch_sharding))
  state = jax.device_get(state)
  named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
           for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)}
  return {
      "metrics": {name: term.mean for name, term in jax.device_get(metrics).items()},
      "gradient": {path: x for path, x in named.items() if "/mu/" in path or "/trace/" in path},
      "moved": {path: x - before[path] for path, x in paths.flatten(state.params).items()},
  }


def same(got, want, tolerance=TOLERANCE):
  """Each array to `tolerance` of its largest entry, or of a tenth of the largest of all arrays:
  where terms cancel there is little but their roundings (in the keys' biases nothing but these)."""
  for part in want:
    assert got[part].keys() == want[part].keys()
    largest = {name: np.abs(value).max() for name, value in want[part].items()}
    floor = max(largest.values()) / 10
    for name, value in want[part].items():
      np.testing.assert_allclose(got[part][name], value, rtol=0, err_msg=f"{part} {name}",
                                 atol=tolerance * max(largest[name], floor))


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
  """The programs are small and run once; twice as quick to compile as optimised ones."""
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def on_one_device(arrays):
  """(recipe, changes of `small`) -> what its step gives on one device; computed once."""

  @functools.cache
  def step(name, changes=()):
    config = small(name, arrays, mesh=dict(data=1), **{k: v for k, v in changes})
    return one_step(config, arrays, jax.devices()[:1])

  return step


# The rest takes minutes: of the towers apart and of the losses that couple rows, the meshes that have most.
QUICK = [("supervised/vit", "mixed"), ("contrastive/siglip", "sequence")]
REST = [(name, mesh) for name in RECIPES for mesh in MESHES if (name, mesh) not in QUICK]


@pytest.mark.parametrize("name, mesh", [
    *QUICK, *(pytest.param(*one, marks=pytest.mark.slow) for one in REST)])
def test_loss_gradient_and_adamw_step_are_those_of_one_device(name, mesh, arrays, on_one_device):
  got = one_step(small(name, arrays, mesh=MESHES[mesh]), arrays)
  same(got, on_one_device(name))


@pytest.mark.slow
def test_heads_that_the_mesh_does_not_divide_change_nothing(arrays, on_one_device):
  three = (("heads", 3),)
  got = one_step(small("contrastive/clip", arrays, heads=3, mesh=MESHES["mixed"]), arrays)
  same(got, on_one_device("contrastive/clip", three))


@pytest.mark.slow
def test_micro_batches_on_a_mesh_are_one_step_on_one_device(arrays, on_one_device):
  config = small("contrastive/siglip", arrays, mesh=MESHES["mixed"], micro_batches=2)
  same(one_step(config, arrays), on_one_device("contrastive/siglip"))


@pytest.mark.slow
def test_muon_orthogonalises_sharded_matrices_alike(arrays):
  muon = dict(name="muon", b2=0.95)
  got, want = (one_step(small("supervised/vit", arrays, optimizer=muon, mesh=mesh), arrays, devices)
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
