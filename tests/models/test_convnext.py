"""ConvNeXt against transformers, and its masked computation against sparse convolutions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from mmjax.masking.random import Random
from mmjax.models import convnext
from mmjax.models.convnext import ConvNeXt
from mmjax.models.unet_decoder import UNetDecoder
from mmjax.parallel.mesh import unbox
from tests.conftest import needs

TINY = dict(widths=(6, 8, 12), depths=(1, 2, 1), stem=2, layer_scale=0.5)  # cells of 8 pixels


def jittered(params, seed=0):
  """Every parameter random, so that a missing one shows."""
  leaves, tree = jax.tree.flatten(unbox(params))
  rng = np.random.default_rng(seed)
  return tree.unflatten([np.asarray(x) + 0.3 * rng.normal(size=x.shape).astype(np.float32)
                         for x in leaves])


@pytest.fixture(scope="module")
def case():
  model = ConvNeXt(**TINY)
  image = np.random.default_rng(1).normal(size=(2, 32, 24, 3)).astype(np.float32)
  params = jittered(jax.jit(model.init)(jax.random.key(0), image)["params"])
  mask = Random(0.5)(jax.random.split(jax.random.key(2), 2), model.grid_of(image.shape))
  return model, params, image, mask


def test_values_are_those_of_transformers():
  torch = needs("torch")
  transformers = needs("transformers")
  torch.manual_seed(0)
  config = transformers.ConvNextConfig(
      patch_size=2, hidden_sizes=list(TINY["widths"]), depths=list(TINY["depths"]), num_stages=3,
      layer_norm_eps=1e-6)
  theirs = transformers.ConvNextModel(config).eval()
  with torch.no_grad():
    for value in theirs.parameters():
      value.copy_(torch.randn_like(value) * 0.4)
  weights = {name: value.numpy() for name, value in theirs.state_dict().items()}
  image = np.random.default_rng(0).normal(size=(2, 24, 16, 3)).astype(np.float32)
  pooled, features = ConvNeXt(**TINY).apply({"params": from_transformers(weights)}, image,
                                            want=("tokens",))
  with torch.no_grad():
    want = theirs(torch.tensor(image.transpose(0, 3, 1, 2)))
  tokens = want.last_hidden_state.numpy().transpose(0, 2, 3, 1).reshape(2, -1, 12)
  for got, expected in ((pooled, want.pooler_output.numpy()), (features["tokens"], tokens)):
    np.testing.assert_allclose(got, expected, atol=1e-5 * np.abs(expected).max())


def from_transformers(weights):
  """Names and layouts of transformers' ConvNextModel as ours."""
  conv = lambda name: {"kernel": weights[f"{name}.weight"].transpose(2, 3, 1, 0),
                       "bias": weights[f"{name}.bias"]}
  dense = lambda name: {"kernel": weights[f"{name}.weight"].T, "bias": weights[f"{name}.bias"]}
  norm = lambda name: {"scale": weights[f"{name}.weight"], "bias": weights[f"{name}.bias"]}
  params = {"patch_embed": conv("embeddings.patch_embeddings"),
            "patch_norm": norm("embeddings.layernorm"), "final_norm": norm("layernorm")}
  for i, depth in enumerate(TINY["depths"]):
    stage = f"encoder.stages.{i}"
    if i:
      params[f"down_{i}_norm"] = norm(f"{stage}.downsampling_layer.0")
      params[f"down_{i}"] = conv(f"{stage}.downsampling_layer.1")
    blocks = [{"depthwise": conv(f"{stage}.layers.{j}.dwconv"),
               "norm": norm(f"{stage}.layers.{j}.layernorm"),
               "mlp": {"up": dense(f"{stage}.layers.{j}.pwconv1"),
                       "down": dense(f"{stage}.layers.{j}.pwconv2")},
               "scale": weights[f"{stage}.layers.{j}.layer_scale_parameter"]}
              for j in range(depth)]
    params[f"stage_{i}"] = jax.tree.map(lambda *x: np.stack(x), *blocks)
  return params


def test_masked_computation_is_that_of_sparse_convolutions(case):
  """By hand: every layer visits the seen sites only, and a convolution sums over seen neighbours."""
  model, params, image, mask = case
  _, features = model.apply({"params": params}, image, keep=mask.keep, want=("tokens", "stage/0"))
  for row in range(2):
    sites, first = sparse_forward(params, image[row], np.asarray(mask.masked[row]), (4, 3))
    want = np.stack([sites[divmod(int(cell), 3)] for cell in mask.keep[row]])
    np.testing.assert_allclose(features["tokens"][row], want, atol=1e-5 * np.abs(want).max())
    dense = np.zeros_like(features["stage/0"][row])
    for site, value in first.items():
      dense[site] = value
    np.testing.assert_allclose(features["stage/0"][row], dense, atol=1e-5 * np.abs(dense).max())


def sparse_forward(params, image, masked, grid):
  """{site: features} of the last stage and of the first, of one image; float64."""
  params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  seen = ~masked.reshape(grid)

  def norm(p, x):
    return (x - x.mean()) / np.sqrt(x.var() + 1e-6) * p["scale"] + p["bias"]

  def shrink(p, sites, side):
    """Each coarse site from all its side x side fine ones."""
    coarse = {(y // side, x // side) for y, x in sites}
    return {(y, x): sum(sites[y * side + a, x * side + b] @ p["kernel"][a, b] for a in range(side)
                        for b in range(side)) + p["bias"] for y, x in coarse}

  def block(p, sites):
    out = {}
    for (y, x), value in sites.items():
      total = p["depthwise"]["bias"].copy()
      for a in range(-3, 4):
        for b in range(-3, 4):
          if (y + a, x + b) in sites:
            total += sites[y + a, x + b] * p["depthwise"]["kernel"][a + 3, b + 3, 0]
      h = norm(p["norm"], total) @ p["mlp"]["up"]["kernel"] + p["mlp"]["up"]["bias"]
      h = h * 0.5 * (1 + scipy.special.erf(h / np.sqrt(2)))
      out[y, x] = value + p["scale"] * (h @ p["mlp"]["down"]["kernel"] + p["mlp"]["down"]["bias"])
    return out

  sites = {(y, x): image[y, x].astype(np.float64) for y in range(image.shape[0])
           for x in range(image.shape[1]) if seen[y // 8, x // 8]}
  first = None
  for i, depth in enumerate(TINY["depths"]):
    if i:
      sites = {site: norm(params[f"down_{i}_norm"], x) for site, x in sites.items()}
    sites = shrink(params[f"down_{i}" if i else "patch_embed"], sites, 2)
    if not i:
      sites = {site: norm(params["patch_norm"], x) for site, x in sites.items()}
    for j in range(depth):
      sites = block(jax.tree.map(lambda x: x[j], params[f"stage_{i}"]), sites)
    first = sites if first is None else first
  return sites, first


def test_a_masked_cell_never_influences_what_is_seen(case):
  model, params, image, mask = case
  decoder = UNetDecoder(stages=3, patch=8, width=16)
  names = ("tokens", *decoder.want)

  def total(image):
    pooled, features = model.apply({"params": params}, image, keep=mask.keep, want=names)
    return sum(jnp.sum(jnp.square(x)) for x in (pooled, *features.values()))

  grad = np.abs(jax.jit(jax.grad(total))(image)).sum(-1)                     # [B, H, W]
  cells = grad.reshape(2, 4, 8, 3, 8).sum((2, 4)).reshape(2, 12)
  masked = np.asarray(mask.masked)
  assert (cells[masked] == 0).all() and (cells[~masked] > 0).all()


@pytest.mark.slow
def test_decoder_predicts_every_cell_and_fills_holes_with_its_tokens(case):
  model, params, image, mask = case
  decoder = UNetDecoder(stages=3, patch=8, width=16)
  grid = model.grid_of(image.shape)
  _, features = model.apply({"params": params}, image, keep=mask.keep, want=decoder.want)
  init = jax.jit(lambda key: decoder.init(key, features, mask, grid)["params"])
  weights = jittered(init(jax.random.key(0)))
  predict = jax.jit(lambda features: decoder.apply({"params": weights}, features, mask, grid))
  got = predict(features)
  assert got.shape == (2, 12, 8 * 8 * 3) and got.dtype == jnp.float32
  # What stands in the holes of the maps is of no account.
  seen = convnext.seen_cells(mask.keep, grid)
  noisy = {}
  for i, name in enumerate(decoder.want):
    fine = seen.repeat(4 >> i, 1).repeat(4 >> i, 2)
    noisy[name] = jnp.where(fine, features[name], 7.0)
  np.testing.assert_array_equal(predict(noisy), got)


@pytest.mark.parametrize("change, line", [
    (dict(depths=(1, 2)), "ConvNeXt.depths: 2 stages, but widths has 3"),
    (dict(remat="some"), "ConvNeXt.remat"),
])
def test_bad_numbers_are_named(change, line):
  with pytest.raises(ValueError, match=line):
    ConvNeXt(**{**TINY, **change})


def test_an_image_of_broken_cells_is_refused(case):
  model, params, *_ = case
  with pytest.raises(ValueError, match="not a whole number of patches"):
    model.apply({"params": params}, np.zeros((1, 20, 24, 3), np.float32))


@pytest.mark.parametrize("numbers, line", [
    (dict(patch=12), "UNetDecoder.patch: 12 is not a power of two"),
    (dict(patch=8, stages=5), "UNetDecoder.patch: 8"),
    (dict(patch=8, stages=3, width=12), "UNetDecoder.width: 12"),
])
def test_bad_numbers_of_the_decoder_are_named(numbers, line):
  with pytest.raises(ValueError, match=line):
    UNetDecoder(**numbers)


@pytest.mark.parametrize("shape, dtype, atol", [
    ((3, 8, 6, 5), "float32", 1e-4), ((2, 4, 4, 3), "bfloat16", 0.3), ((1, 1, 2, 4), "float32", 1e-4)])
def test_depthwise_gradients_are_those_of_the_definition(shape, dtype, atol):
  rng = np.random.default_rng(0)
  x, dy = (jnp.asarray(rng.normal(size=shape), dtype) for _ in range(2))
  kernel = jnp.asarray(rng.normal(size=(7, 7, 1, shape[-1])), dtype)
  y, backward = jax.vjp(convnext.depthwise, x, kernel)

  wide = [np.asarray(v, np.float64) for v in (x, kernel, dy)]
  padded = np.pad(wide[0], ((0, 0), (3, 3), (3, 3), (0, 0)))
  want_y, want_dk = np.zeros(shape), np.zeros(kernel.shape)
  want_padded = np.zeros(padded.shape)
  for i in range(7):
    for j in range(7):
      part = np.s_[:, i:i + shape[1], j:j + shape[2]]
      want_y += padded[part] * wide[1][i, j, 0]
      want_dk[i, j, 0] = np.sum(padded[part] * wide[2], (0, 1, 2))
      want_padded[part] += wide[1][i, j, 0] * wide[2]
  dx, dk = backward(dy)
  assert dx.dtype == dk.dtype == jnp.dtype(dtype)
  for got, want in ((y, want_y), (dx, want_padded[:, 3:-3, 3:-3]), (dk, want_dk)):
    np.testing.assert_allclose(np.asarray(got, np.float64), want, atol=atol, rtol=0.02)
