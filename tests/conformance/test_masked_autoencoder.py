"""MAE against its own code (`tests/data/conformance/mae_norm0.npz`) and against transformers.

Both have random weights, biases and norms included. Bars: of the reference's largest entry, 1e-5
forward and 1e-4 for gradients, which is what float32 leaves after a few layers.
"""

import dataclasses
import json
import pathlib
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax import masking
from mmjax.models.masked_decoder import MaskedDecoder
from mmjax.models.vit import ViT
from mmjax.objectives.contract import Context
from mmjax.objectives.masked import Masked
from mmjax.targets.pixels import Pixels
from mmjax.training.gradients import loss_and_grad
from tests.conformance import mapping

FILE = pathlib.Path(__file__).parents[1] / "data" / "conformance" / "mae_norm0.npz"
HF = [("vit.embeddings.cls_token", "cls_token"),  # transformers' names -> those of MAE's code
      ("vit.embeddings.patch_embeddings.projection", "patch_embed.proj"),
      ("vit.layernorm.", "norm."), ("decoder.decoder_layers.", "decoder_blocks."),
      ("vit.layers.", "blocks."), ("decoder.", ""), ("layernorm_before", "norm1"),
      ("layernorm_after", "norm2"), ("attention.o_proj", "attn.proj")]


pytestmark = pytest.mark.usefixtures("quick_compilation")


@dataclasses.dataclass(frozen=True)
class Given:
  """Masks three quarters of the tokens, those of the highest noise float [B, N]."""

  noise: jax.Array
  guided: ClassVar[None] = None

  def __call__(self, keys, grid, guide=None):
    return masking.highest(self.noise, masking.dropped(self.noise.shape[1], 0.75))


def _block(par, name, heads):
  names = ("query", "key", "value")
  packed = {part: np.split(par[f"{name}.attn.qkv.{part}"], 3) for part in ("weight", "bias")}
  attention = {}
  for ours, kernel, bias in zip(names, packed["weight"], packed["bias"]):
    attention[ours] = {"kernel": kernel.T.reshape(kernel.shape[1], heads, -1),
                       "bias": bias.reshape(heads, -1)}
  out = par[f"{name}.attn.proj.weight"].T
  attention["out"] = {"kernel": out.reshape(heads, -1, out.shape[-1]),
                      "bias": par[f"{name}.attn.proj.bias"]}
  return {"attention_norm": mapping._torch_norm(par, f"{name}.norm1"), "attention": attention,
          "mlp_norm": mapping._torch_norm(par, f"{name}.norm2"),
          "mlp": mapping._torch_mlp(par, f"{name}.mlp")}


def _trunk(par, prefix, depth, heads):
  blocks = [_block(par, f"{prefix}blocks.{i}", heads) for i in range(depth)]
  return {"layers": mapping._stack(blocks)}


def tree(par, heads, decoder_heads, depth=2, decoder_depth=2):
  """Parameters or gradients under the names of MAE's code as ours."""
  patch_embed = mapping._torch_conv(par, "patch_embed.proj")
  return {
      "encoder": {"patch_embed": patch_embed, "class_token": par["cls_token"][0],
                  "trunk": _trunk(par, "", depth, heads),
                  "final_norm": mapping._torch_norm(par, "norm")},
      "decoder": {"embed": mapping._torch_linear(par, "decoder_embed"),
                  "mask_token": par["mask_token"][0, 0],
                  "trunk": _trunk(par, "decoder_", decoder_depth, decoder_heads),
                  "final_norm": mapping._torch_norm(par, "decoder_norm")},
      "head": mapping._torch_linear(par, "decoder_pred")}


def from_hf(tensors):
  """Tensors of transformers under the names of MAE's code, with query, key and value in one."""
  par = {}
  for name, value in tensors.items():
    for theirs, ours in HF:
      name = name.replace(theirs, ours)
    par[name] = value
  for name in [name for name in par if ".attention.q_proj." in name]:
    parts = [par.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
    par[name.replace("attention.q_proj", "attn.qkv")] = np.concatenate(parts)
  return par


def objective(noise, normalise, heads=4, decoder_heads=3, width=32, decoder_width=24):
  fields = dict(activation="gelu", depth=2, scan=True)
  return Masked(
      ViT(patch=8, width=width, heads=heads, mlp_dim=2 * width, pool="mean", class_token=True,
          position="sincos", **fields),
      Given(jnp.asarray(noise)), Pixels(normalise=normalise),
      MaskedDecoder(decoder_width, heads=decoder_heads, mlp_dim=2 * decoder_width, **fields))


def step(ours, params, image):
  """(loss, gradients) and what the objective predicts."""
  rows = len(image)
  batch = {"image": jnp.asarray(image), "valid": jnp.ones(rows, bool),
           "row": jnp.zeros((rows, 2), jnp.uint32)}
  ctx = Context(jnp.int32(0), {"target": {}}, {})

  @jax.jit
  def run(params):
    grads, outcome = loss_and_grad(ours, ctx, params, batch)
    return outcome.loss, grads, ours.forward(ctx, params, batch)[0]

  return run(params)


def close(got, want, bar):
  """Each leaf to `bar` of its largest entry; the keys' biases have no gradient but rounding."""
  def check(path, g, w):
    assert g.shape == w.shape, jax.tree_util.keystr(path)
    np.testing.assert_allclose(g, w, rtol=0, atol=max(bar * np.abs(w).max(), 1e-6),
                               err_msg=jax.tree_util.keystr(path))
  jax.tree_util.tree_map_with_path(check, got, want)


def test_masked_autoencoder_is_that_of_its_authors():
  with np.load(FILE) as data:
    case = {key: data[key] for key in data}
  meta = json.loads(str(case["meta"]))["config"]
  assert (meta["mask_ratio"], meta["patch"], meta["norm_pix"]) == (0.75, 8, False)
  heads = dict(heads=meta["heads"], decoder_heads=meta["dec_heads"])
  params = tree(mapping.under(case, "par/"), **heads)
  loss, grads, features = step(objective(case["in/noise"], normalise=False, **heads), params,
                               case["in/imgs"].transpose(0, 2, 3, 1))
  np.testing.assert_array_equal(features["masked"], case["out/mask"] == 1)
  rows = np.arange(3)[:, None]
  close(features["predictions"]["prediction"], case["out/pred"][rows, features["places"]], 1e-5)
  np.testing.assert_array_equal(features["target"], case["out/patches"][rows, features["places"]])
  close(loss, case["out/loss"], 1e-5)
  close(grads, tree(mapping.under(case, "grad/"), **heads), 1e-4)
  close(_latent(params["encoder"], case), case["out/latent"], 1e-5)


def _latent(params, case):
  """What our encoder gives, in the order of the reference: by noise, the class token first."""
  order = np.argsort(case["in/noise"], axis=1)[:, :4].astype(np.int32)
  encoder = objective(case["in/noise"], False).encoder
  image = case["in/imgs"].transpose(0, 2, 3, 1)
  _, found = encoder.apply({"params": params}, image, keep=order, want=("prefix", "tokens"))
  return np.concatenate([found["prefix"], found["tokens"]], axis=1)


@pytest.mark.slow
def test_masked_autoencoder_with_normalised_targets_is_that_of_transformers():
  torch = pytest.importorskip("torch", reason="the reference is a torch model")
  transformers = pytest.importorskip("transformers", reason="the reference is its ViTMAE")
  torch.manual_seed(0)
  config = transformers.ViTMAEConfig(
      hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
      image_size=32, patch_size=8, decoder_hidden_size=24, decoder_num_hidden_layers=2,
      decoder_num_attention_heads=3, decoder_intermediate_size=48, layer_norm_eps=1e-6,
      norm_pix_loss=True)
  model = transformers.ViTMAEForPreTraining(config).eval()
  learned = {name: p for name, p in model.named_parameters() if p.requires_grad}
  with torch.no_grad(), np.load(FILE) as data:
    for p in learned.values():
      p.add_(0.1 * torch.randn(p.shape))
    # Some versions leave their fixed positions at zero; these are those of MAE's code.
    model.vit.embeddings.position_embeddings.copy_(torch.from_numpy(data["par/pos_embed"]))
    model.decoder.decoder_pos_embed.copy_(torch.from_numpy(data["par/decoder_pos_embed"]))
  image, noise = torch.randn(3, 3, 32, 32), torch.rand(3, 16)
  out = model(image, noise=noise)
  out.loss.backward()
  numpy = lambda tensors: from_hf({name: p.detach().numpy() for name, p in tensors.items()})
  loss, grads, features = step(objective(noise.numpy(), normalise=True), tree(numpy(learned), 4, 3),
                               image.numpy().transpose(0, 2, 3, 1))
  places = np.arange(3)[:, None], np.asarray(features["places"])
  close(loss, out.loss.detach().numpy(), 1e-5)
  close(features["predictions"]["prediction"], out.logits.detach().numpy()[places], 1e-5)
  close(grads, tree(numpy({name: p.grad for name, p in learned.items()}), 4, 3), 1e-4)
