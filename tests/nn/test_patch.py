"""Patches and the matrix multiplication over them."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.nn.linear import Linear, matmul
from mmjax.nn.patch import patchify

IMAGE = jax.random.normal(jax.random.key(0), (2, 16, 12, 3))  # 2 x 3 patches of 8 x 4


def test_patch_embedding_is_the_strided_convolution():
  patches = patchify(IMAGE, (8, 4))
  embed = Linear((5,), ("patch_height", "patch_width", "channels", "embed"))
  params = embed.init(jax.random.key(1), patches)
  want = jax.lax.conv_general_dilated(
      IMAGE, params["params"]["kernel"].unbox(), (8, 4), "VALID",
      dimension_numbers=("NHWC", "HWIO", "NHWC"))
  np.testing.assert_allclose(embed.apply(params, patches), want.reshape(2, 6, 5), atol=1e-5)


def test_matmul_has_the_gradients_of_the_plain_product():
  x, kernel = IMAGE[:, 0], jax.random.normal(jax.random.key(1), (3, 4))
  got, want = (jax.grad(lambda a, b: jnp.sum(jnp.sin(product(a, b))), (0, 1))(x, kernel)
               for product in (matmul, jnp.matmul))
  for g, w in zip(got, want):
    np.testing.assert_allclose(g, w, atol=1e-5)
