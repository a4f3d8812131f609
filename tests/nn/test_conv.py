"""Convolutions on meshes."""

import jax
import jax.numpy as jnp
import numpy as np

from mmjax.models.conv_encoder import ConvEncoder
from mmjax.parallel import mesh as mesh_lib


def test_gradients_on_a_mesh_of_three_axes_are_those_of_one_device():
  encoder = ConvEncoder(width=16, multipliers=(1, 2), blocks=1)
  rng = np.random.default_rng(0)
  image = rng.normal(size=(8, 16, 16, 3)).astype(np.float32)
  boxed = jax.eval_shape(encoder.init, jax.random.key(0), image)["params"]
  params = jax.tree.map(lambda x: rng.normal(size=x.shape, scale=0.15).astype(np.float32),
                        mesh_lib.unbox(boxed))

  @jax.jit
  def gradient(params, image):
    def loss(params):
      tokens = encoder.apply({"params": params}, image, want=("tokens",))[1]["tokens"]
      return jnp.mean(jnp.sin(3 * tokens))
    return jax.grad(loss)(params)

  want = jax.device_get(gradient(params, image))
  mesh = mesh_lib.make_mesh(fsdp=2, tensor=2, sequence=2)
  with mesh_lib.use(mesh):
    shardings, _ = mesh_lib.tree_shardings(mesh, None, boxed)
    got = jax.device_get(jax.jit(gradient.__wrapped__, out_shardings=shardings)(
        jax.device_put(params, shardings),
        jax.device_put(image, mesh_lib.batch_sharding(mesh))))
  largest = max(np.abs(x).max() for x in jax.tree.leaves(want))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * largest), got, want)
