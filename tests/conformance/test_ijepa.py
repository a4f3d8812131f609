"""I-JEPA against torch: the encoder of `transformers`, and a predictor of torch's own layers.

Random weights, float32 on a CPU; the bar of the conformance cases, 1e-5 of the largest value.
"""

import jax
import numpy as np
import pytest

from mmjax.models.predictor import Predictor
from mmjax.models.vit import ViT
from tests.conformance import mapping

torch = pytest.importorskip("torch", reason="torch is the reference")
transformers = pytest.importorskip("transformers", reason="transformers has the encoder")

WIDTH, DEPTH, HEADS, PATCH, SIDE = 32, 2, 2, 8, 4
GRID = (SIDE, SIDE)


def sincos(width):
  """MAE's and I-JEPA's table: sine and cosine of the column, then of the row. [N, width]."""
  rows, columns = np.divmod(np.arange(SIDE * SIDE), SIDE)
  omega = 10000.0 ** -(np.arange(width // 4) / (width // 4))
  angles = [place[:, None] * omega for place in (columns, rows)]
  return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], 1).astype(np.float32)


def randomised(module):
  """The module with every parameter drawn anew, and its parameters as arrays."""
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():
    for name, parameter in module.named_parameters():
      parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator)
                      + name.endswith(("norm.weight", "norm1.weight", "norm2.weight")))
  return {name: x.detach().numpy() for name, x in module.named_parameters()}


def close(got, want):
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_the_encoder_is_that_of_transformers():
  config = transformers.IJepaConfig(
      hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=64,
      image_size=SIDE * PATCH, patch_size=PATCH, layer_norm_eps=1e-6)
  model = transformers.IJepaModel(config, add_pooling_layer=False).eval()
  par = randomised(model)
  image = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
  with torch.no_grad():
    model.embeddings.position_embeddings.copy_(torch.tensor(sincos(WIDTH))[None])
    want = model(torch.tensor(image.transpose(0, 3, 1, 2))).last_hidden_state.numpy()
  ours = ViT(patch=PATCH, width=WIDTH, depth=DEPTH, heads=HEADS, mlp_dim=64, pool="mean",
             position="sincos", activation="gelu", scan=False)
  params = mapping.hf_ijepa(par, DEPTH, HEADS)
  pooled, features = jax.jit(lambda params: ours.apply(
      {"params": params}, image, want=("tokens",)))(params)
  close(features["tokens"], want)
  close(pooled, want.mean(axis=1))


class Reference(torch.nn.Module):
  """The predictor of arXiv:2301.08243, sec. 3, from torch's pre-norm layers."""

  def __init__(self, width):
    super().__init__()
    self.embed = torch.nn.Linear(WIDTH, width)
    self.mask_token = torch.nn.Parameter(torch.zeros(width))
    self.trunk = torch.nn.ModuleList([torch.nn.TransformerEncoderLayer(
        width, HEADS, 4 * width, dropout=0.0, activation="gelu", layer_norm_eps=1e-6,
        batch_first=True, norm_first=True) for _ in range(DEPTH)])
    self.norm = torch.nn.LayerNorm(width, eps=1e-6)
    self.projection = torch.nn.Linear(width, WIDTH)
    self.positions = torch.tensor(sincos(width))

  def forward(self, tokens, context, block):
    """Tokens [B, K, D] at `context` [B, K] -> tokens [B, M, D] at `block` [B, M]."""
    x = torch.cat([self.embed(tokens) + self.positions[context],
                   self.mask_token + self.positions[block]], dim=1)
    for layer in self.trunk:
      x = layer(x)
    return self.projection(self.norm(x[:, tokens.shape[1]:]))


def test_the_predictor_is_that_of_torchs_layers():
  width = 24
  reference = Reference(width)
  par = randomised(reference)
  rng = np.random.default_rng(1)
  tokens = rng.normal(size=(2, 5, WIDTH)).astype(np.float32)
  places = np.stack([rng.permutation(SIDE * SIDE)[:5 + 3 * 3] for _ in range(2)])
  context, targets = places[:, :5], places[:, 5:].reshape(2, 3, 3)
  with torch.no_grad():
    want = torch.stack([reference(*map(torch.tensor, (tokens, context, targets[:, i])))
                        for i in range(3)], dim=1).numpy()
  ours = Predictor(width=width, depth=DEPTH, heads=HEADS, scan=False)
  params = mapping.torch_predictor(par, DEPTH, HEADS)
  got = jax.jit(lambda params: ours.apply({"params": params}, tokens, context, targets, GRID))(params)
  close(got, want)
