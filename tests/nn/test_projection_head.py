"""Projection heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn.prototypes import ProjectionHead, prototypes_of, unit
from mmjax.parallel import mesh as mesh_lib


@pytest.mark.parametrize("layers", [1, 2, 3])
def test_the_head_is_an_mlp_with_a_result_of_unit_norm(layers):
  head = ProjectionHead(prototypes=11, hidden=16, layers=layers, bottleneck=6)
  x = jax.random.normal(jax.random.key(0), (2, 3, 8))
  params = mesh_lib.unbox(head.init(jax.random.key(1), x)["params"])
  y = x
  for i in range(layers - 1):
    layer = params[f"layer_{i}"]
    y = jax.nn.gelu(y @ layer["kernel"] + layer["bias"], approximate=False)
  y = y @ params["bottleneck_layer"]["kernel"] + params["bottleneck_layer"]["bias"]
  got = head.apply({"params": params}, x)
  want = y / np.linalg.norm(y, axis=-1, keepdims=True)
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)
  assert got.shape == (2, 3, 6) and len(params) == layers + 1


def test_prototypes_have_length_one_whatever_the_parameter_has():
  kernel = jax.random.normal(jax.random.key(0), (6, 11)) * jnp.arange(1, 12)
  got = prototypes_of({"prototypes": {"kernel": kernel}})
  np.testing.assert_allclose(got, kernel / np.linalg.norm(kernel, axis=0), rtol=1e-6)


def test_zeros_have_a_finite_gradient():
  assert np.isfinite(jax.grad(lambda x: unit(x).sum())(jnp.zeros(4))).all()
