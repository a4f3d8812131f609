"""The real train step of a run, taken once, and how its results on two meshes are compared."""

import jax
import numpy as np

from mmjax.checkpoint import paths

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
# The step is so large that its rounding in the parameters is far below TOLERANCE. Adam divides by
# |g| + eps: where a gradient is little but rounding the quotient is still of order one, so eps is
# of the size of the largest gradients.
LARGE_STEP = {"lr": 1.0, "eps": 0.1, "schedule": {"name": "constant"}}


def beginning(run):
  """A state in which nothing is zero but the optimizer's and the averages of a codebook, of which
  nothing has been used yet: so a gradient reaches every parameter, and teachers are others."""
  rng = np.random.default_rng(1)

  def draw(path, leaf):
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    if name.startswith("uses/"):
      return np.zeros(leaf.shape, leaf.dtype)
    return rng.normal(size=leaf.shape, scale=0.15).astype(leaf.dtype) + name.endswith("scale")

  drawn = {part: jax.tree_util.tree_map_with_path(draw, getattr(run.abstract, part))
           for part in ("params", "state", "teachers")}
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), run.abstract).replace(**drawn)


def one_step(run, batch):
  """The real jitted step: its metrics, the gradient as Adam's or Muon's first moment has it (they
  begin as zeros), how far parameters and state moved, and the teachers as they are now (they move
  by so little that much of the movement is rounding); all as NumPy."""
  initial = beginning(run)
  before = {part: paths.flatten(getattr(initial, part)) for part in ("params", "state")}
  with run.use():
    state, metrics = run.step_fn()(jax.device_put(initial, run.shardings),
                                   jax.device_put(batch, run.batch_sharding))
  state = jax.device_get(state)
  named = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf
           for path, leaf in jax.tree_util.tree_leaves_with_path(state.opt_state)}
  moved = {part: {path: x - begun[path] for path, x in paths.flatten(getattr(state, part)).items()}
           for part, begun in before.items()}
  return {
      "metrics": {name: term.mean for name, term in jax.device_get(metrics).items()},
      "gradient": {path: x for path, x in named.items() if "/mu/" in path or "/trace/" in path},
      "moved": moved["params"], "state": moved["state"], "teachers": paths.flatten(state.teachers),
  }


def same(got, want, tolerance=TOLERANCE):
  """Each array to `tolerance` of its largest entry, or of a tenth of the largest of all arrays:
  where terms cancel there is little but their roundings (in the keys' biases nothing but these)."""
  for part in want:
    assert got[part].keys() == want[part].keys()
    largest = {name: np.abs(value).max() for name, value in want[part].items()}
    floor = max(largest.values(), default=0) / 10
    for name, value in want[part].items():
      np.testing.assert_allclose(got[part][name], value, rtol=0, err_msg=f"{part} {name}",
                                 atol=tolerance * max(largest[name], floor))
