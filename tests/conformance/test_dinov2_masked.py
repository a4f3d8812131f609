"""DINOv2's student with masked patches, against Hugging Face `transformers` with the same mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.models.vit import ViT
from tests.conformance import mapping

torch = pytest.importorskip("torch", reason="the reference is PyTorch's")
transformers = pytest.importorskip("transformers", reason="the reference is Hugging Face's")


def test_masked_dinov2_equals_hugging_face_in_values_and_gradients():
  config = transformers.Dinov2WithRegistersConfig(
      hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=32,
      patch_size=8, num_register_tokens=2)
  theirs = transformers.Dinov2WithRegistersModel(config).eval()
  generator = torch.Generator().manual_seed(0)
  with torch.no_grad():  # no parameter stays zero or one, the mask token least of all
    for parameter in theirs.parameters():
      parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
  image = torch.randn(3, 3, 32, 32, generator=generator)
  masked = torch.rand(3, 16, generator=generator) < 0.4
  hidden = theirs(image, bool_masked_pos=masked).last_hidden_state
  (hidden ** 2).mean().backward()

  def tree(read):
    par = {name: read(x).numpy() for name, x in theirs.named_parameters() if read(x) is not None}
    return mapping.hf_dinov2(par, 2, 4) | {"mask_token": par["embeddings.mask_token"][0]}

  ours = ViT(patch=8, width=32, depth=2, heads=4, mlp_dim=64, registers=2, grid=(4, 4),
             activation="gelu", class_token=True, class_position=True, pool="cls", layer_scale=1.0,
             mask_token=True)

  def loss(params):
    _, features = ours.apply({"params": params}, image.permute(0, 2, 3, 1).numpy(),
                             masked=masked.numpy(), want=("prefix", "tokens"))
    got = jnp.concatenate([features["prefix"], features["tokens"]], axis=1)
    return jnp.mean(jnp.square(got)), got

  (_, got), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(tree(lambda x: x.detach()))
  want = hidden.detach().numpy()
  # The bars of shared/conformance, of float32 on a CPU.
  assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()
  largest = max(np.abs(g).max() for g in jax.tree.leaves(tree(lambda x: x.grad)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4 * max(
      np.abs(b).max(), largest / 10)), grads, tree(lambda x: x.grad))
  assert np.abs(grads["mask_token"]).max() > 1e-4  # it was seen
