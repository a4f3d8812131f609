"""Plans for GPUs: what CPU devices in their place show, and what is corrected of it."""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import pytest

from mmjax.config import ConfigError
from mmjax.nn import attention
from mmjax.parallel import mesh as mesh_lib
from mmjax.plan import compile as compile_lib
from mmjax.plan import hlo, host, topology


ROWS = ("data", "fsdp")
LENGTH = 4096


def whole(w):
  """A sharded parameter, gathered before use as FSDP does."""
  return jax.lax.with_sharding_constraint(w, PartitionSpec())


def compiled(fn, *specs, name="h100:2x4"):
  """`fn` compiled for the GPUs `name`; specs: (shape, dtype, PartitionSpec) of its arguments."""
  where = topology.find(name)
  mesh = mesh_lib.make_mesh(data=2, fsdp=-1, devices=where.devices)
  place = lambda spec: NamedSharding(mesh, PartitionSpec(*spec))
  args = tuple(jax.ShapeDtypeStruct(shape, dtype, sharding=place(spec))
               for shape, dtype, spec in specs)
  with mesh_lib.use(mesh):
    return compile_lib.compile_jitted(jax.jit(fn), args, where)


def collectives(text):
  """(op, dtype, dims, groups) of every collective, as a program's text has them."""
  return [(i.op, i.arrays[0].dtype, i.arrays[0].dims, i.attribute("replica_groups", r"\{\{.*?\}\}"))
          for computation in hlo.parse(text).computations.values()
          for i in computation.instructions.values()
          if i.op in ("all-reduce", "all-gather", "reduce-scatter", "all-to-all")]


def test_nodes_are_slices_and_devices_pass_for_gpus_beside_a_backend_that_is_there():
  jax.devices()
  where = topology.find("h100:4x8")
  assert (where.chips, where.slices, where.platform, where.chip.name) == (32, 4, "gpu", "h100")
  assert mesh_lib.slices_of(where.devices) == [i // 8 for i in range(32)]
  assert len(topology.find("b200:8").devices) == 8
  mesh = mesh_lib.make_mesh(data=4, fsdp=8, devices=where.devices)
  assert {mesh_lib.slice_of(d) for d in mesh.devices[2].flat} == {2}  # fsdp stays inside a node
  assert mesh_lib.platform_of(jax.devices()) == "cpu" and not mesh_lib.stands_in()
  with mesh_lib.use(mesh):
    assert mesh_lib.platform() == "gpu" and mesh_lib.stands_in()


@pytest.mark.parametrize("name, slices, says", [
    ("h100", 1, "h100:4x8"), ("h100:4x8x2", 1, "h100:4x8"), ("h100-8", 1, "h100:4x8"),
    ("h100:2x16", 1, "h100:4x8"), ("h100:0x8", 1, "at least one node"),
    ("h200:512x8", 1, "h200:256x8"), ("b200:4x8", 2, "b200:2x8"),
])
def test_a_topology_that_cannot_be_is_one_line_with_one_that_can(name, slices, says):
  with pytest.raises(ConfigError, match=says) as error:
    topology.find(name, slices)
  assert "\n" not in str(error.value)


def test_bfloat16_stays_two_bytes_in_collectives_and_in_what_is_gathered():
  def fn(x, w):
    return jnp.sum(jnp.dot(x, whole(w)).astype(jnp.float32))

  def plan(dtype):
    return compiled(fn, ((64, 256), dtype, (ROWS,)), ((256, 512), dtype, (None, "fsdp")))

  half, full = plan(jnp.bfloat16), plan(jnp.float32)
  gathers = [(dtype, dims) for op, dtype, dims, _ in collectives(half.text) if op == "all-gather"]
  assert gathers == [("bf16", (256, 512))]
  assert half.memory.args * 2 == full.memory.args
  # Less by the half of what is gathered; XLA:CPU still widens what goes into a product.
  assert full.memory.temp - half.memory.temp >= 256 * 512 * 2 * 0.9


def test_infinite_constants_stay_infinite_when_bfloat16_is_narrowed():
  def fn(x):
    return jnp.max(x, axis=1, initial=-jnp.inf) + jnp.bfloat16(jnp.inf)

  spec = jax.ShapeDtypeStruct((8, 8), jnp.bfloat16)
  lowered = jax.jit(fn).lower(spec)
  host._narrow(lowered.compiler_ir("stablehlo"))
  text = lowered.as_text()
  assert "bf16" not in text and "0xFC00" in text and "0x7C00" in text and "0xFF80" not in text


def test_the_gradient_of_a_sharded_parameter_is_reduce_scattered_inside_a_node():
  def fn(w, x, y):
    grad = jnp.einsum("bi,bo->io", x, y)
    return w - jax.lax.with_sharding_constraint(grad, PartitionSpec("fsdp"))

  text = compiled(fn, ((256, 512), jnp.float32, ("fsdp",)), ((64, 256), jnp.float32, (ROWS,)),
                  ((64, 512), jnp.float32, (ROWS,))).text
  found = {(op, dims): groups for op, _, dims, groups in collectives(text)}
  assert found[("reduce-scatter", (64, 512))] == "{{0,1,2,3},{4,5,6,7}}"
  assert found[("all-reduce", (64, 512))] == "{{0,4},{1,5},{2,6},{3,7}}"  # between the nodes
  assert ("all-reduce", (256, 512)) not in found


def test_an_all_reduce_that_is_read_whole_stays_one():
  text = compiled(lambda x: jnp.sum(x, axis=0), ((64, 256), jnp.float32, (ROWS,))).text
  assert [found[0] for found in collectives(text)] == ["all-reduce"]


@pytest.mark.parametrize("form, groups", [
    ("mesh['a'=2,'b'=4] {'b'}", "{{0,1,2,3},{4,5,6,7}}"),
    ("mesh['a'=2,'b'=4] {'a'}", "{{0,4},{1,5},{2,6},{3,7}}"),
    ("mesh['a'=2,'b'=4] {'a','b'}", "{{0,1,2,3,4,5,6,7}}"),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", "{{0,1,2,3},{4,5,6,7}}"),
    ("mesh['a'=8] {'a':(2)4}", "{{0,1,2,3},{4,5,6,7}}"),
    ("mesh['a'=8] {'a':(1)2}", "{{0,4},{1,5},{2,6},{3,7}}"),
    ("mesh['a'=8] {'a':(2)2}", "{{0,2},{1,3},{4,6},{5,7}}"),
])
def test_groups_by_mesh_axes_are_written_as_devices(form, groups):
  line = "  %r = f32[8]{0} all-reduce(%p), channel_id=1, replica_groups=%s, to_apply=%%add"
  assert host._with_plain_groups(line.replace("%s", form)) == line.replace("%s", groups)


class FakeRun:
  """A run of which the step is one self-attention."""

  def __init__(self, mesh, head_dim, backend, dtype=jnp.bfloat16):
    self.mesh, self.backend = mesh, backend
    self.batch_sharding = NamedSharding(mesh, PartitionSpec(ROWS))
    shape = (8, LENGTH, 2, head_dim)
    self.placed = jax.ShapeDtypeStruct(shape, dtype, sharding=self.batch_sharding)
    self.abstract_batch = jax.ShapeDtypeStruct(shape, dtype)

  def use(self):
    return mesh_lib.use(self.mesh)

  def step_fn(self):
    def loss(q, k):
      return jnp.sum(attention.attention(q, k, k, backend=self.backend).astype(jnp.float32))
    return jax.jit(jax.grad(loss))


def test_cudnn_attention_is_lowered_for_cuda_and_compiled_as_blockwise():
  mesh = mesh_lib.make_mesh(devices=topology.find("h100:2x4").devices)
  run = FakeRun(mesh, head_dim=64, backend="auto")
  assert host.calls_cudnn(run)
  assert any("cuDNN's on the GPU" in line for line in host.notes(run))
  with run.use():
    lowered = run.step_fn().lower(run.placed, run.placed)
  assert "cudnn" not in lowered.as_text()
  assert f"x{LENGTH}x{LENGTH}x" not in lowered.as_text()  # as linear in length as the kernel


def test_what_cudnn_refuses_is_found_before_a_gpu_is_paid():
  mesh = mesh_lib.make_mesh(devices=topology.find("h100:2x4").devices)
  with pytest.raises(ConfigError, match="head"):
    host.calls_cudnn(FakeRun(mesh, head_dim=60, backend="cudnn"))
  with pytest.raises(ConfigError, match="float32"):
    host.calls_cudnn(FakeRun(mesh, head_dim=64, backend="cudnn", dtype=jnp.float32))
  assert not host.calls_cudnn(FakeRun(mesh, head_dim=60, backend="auto"))
