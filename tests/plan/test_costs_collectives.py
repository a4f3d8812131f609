"""Collectives of compiled programs: bytes, mesh axes, networks, trip counts."""

import os
import types

import jax
from jax import lax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec as P
import numpy as np
import pytest

from mmjax import config as config_lib
from mmjax.plan import collectives
from mmjax.training.assemble import assemble
from tests.conftest import needs

MIB = 2**20


def mesh_of(devices=None, **axes):
  devices = jax.devices() if devices is None else devices
  grid = np.array(devices).reshape(list(axes.values()))
  return Mesh(grid, tuple(axes), axis_types=(AxisType.Auto,) * len(axes))


def read(fn, mesh, in_spec, out_spec, shape=(512, 512), **kwargs):
  """The collectives of `fn` in a shard_map, compiled for the mesh; the array is of float32."""
  fn = jax.shard_map(fn, mesh=mesh, in_specs=in_spec, out_specs=out_spec, check_vma=False)
  x = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, in_spec))
  return collectives.read(jax.jit(fn).lower(x).compile().as_text(), mesh, **kwargs)


def only(communication):
  row, = communication.rows
  return row


EIGHT = {"data": 2, "fsdp": 4}
BOTH = ("data", "fsdp")


@pytest.mark.parametrize("fn, in_spec, out_spec, op, axes, mib", [
    # The whole array is 1 MiB; a device holds a quarter or an eighth of it, or all.
    (lambda x: lax.all_gather(x, "fsdp", tiled=True), P("fsdp"), P(), "all-gather", ("fsdp",), 3 / 4),
    (lambda x: lax.psum_scatter(x, "fsdp", tiled=True), P(), P("fsdp"),
     "reduce-scatter", ("fsdp",), 3 / 4),
    (lambda x: lax.psum(x, "data"), P("fsdp"), P("fsdp"), "all-reduce", ("data",), 2 / 2 / 4),
    (lambda x: lax.psum(x, BOTH), P(), P(), "all-reduce", BOTH, 2 * 7 / 8),
    (lambda x: lax.all_to_all(x, "fsdp", 1, 0, tiled=True), P("fsdp"), P(None, "fsdp"),
     "all-to-all", ("fsdp",), 3 / 4 / 4),
    (lambda x: lax.ppermute(x, BOTH, [(i, (i + 1) % 8) for i in range(8)]), P(BOTH), P(BOTH),
     "collective-permute", BOTH, 1 / 8),
])
def test_bytes_and_axes_of_each_operation(fn, in_spec, out_spec, op, axes, mib):
  row = only(read(fn, mesh_of(**EIGHT), in_spec, out_spec))
  assert (row.op, row.axes, row.network, row.count) == (op, axes, "ici", 1)
  assert row.bytes == mib * MIB


def test_a_scan_sends_in_each_of_its_rounds():
  def around(x):
    return lax.scan(lambda x, _: (lax.psum(jnp.sin(x), "fsdp") / 4, None), x, length=7)[0]

  row = only(read(around, mesh_of(**EIGHT), P(), P()))
  assert (row.count, row.bytes) == (7, 7 * 2 * 3 / 4 * MIB)


def test_bytes_between_slices_are_those_that_a_slice_must_receive_shared_by_its_devices():
  """Eight devices, four in each of two slices: 2 (8 - 1) / 8 = 2 (4 - 1) / 4 + 2 (2 - 1) / 2 / 4."""
  found = read(lambda x: lax.psum(x, "fsdp"), mesh_of(fsdp=8), P(), P(), slices=2)
  assert found.by_network == {"ici": 2 * 3 / 4 * MIB, "dcn": 2 / 2 / 4 * MIB}
  assert found.bytes == 2 * 7 / 8 * MIB


def test_each_part_of_a_sum_over_all_devices_is_of_its_own_axes():
  found = read(lambda x: lax.psum(x, BOTH), mesh_of(**EIGHT), P(), P(), slices=2)
  assert {row.network: row.axes for row in found.rows} == {"ici": ("fsdp",), "dcn": ("data",)}


def test_an_axis_inside_slices_sends_nothing_between_them():
  found = read(lambda x: lax.psum(x, "fsdp"), mesh_of(**EIGHT), P(), P(), slices=2)
  assert found.by_network["dcn"] == 0
  found = read(lambda x: lax.psum(x, "data"), mesh_of(**EIGHT), P(), P(), slices=2)
  assert found.by_network["ici"] == 0


def test_gradients_of_fully_sharded_parameters():
  """Weights of W bytes over `fsdp`: gathered forward and backward, gradients summed over all."""
  mesh, layers, width = mesh_of(**EIGHT), 5, 64

  def step(weights, x):
    body = lambda x, w: (jnp.tanh(x @ w), None)
    loss = lambda weights: jnp.sum(jax.lax.scan(body, x, weights)[0] ** 2)
    return weights - jax.grad(loss)(weights)

  spread = NamedSharding(mesh, P(None, "fsdp"))
  args = (jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=spread),
          jax.ShapeDtypeStruct((16, width), jnp.float32, sharding=NamedSharding(mesh, P(BOTH))))
  text = jax.jit(step, out_shardings=spread).lower(*args).compile().as_text()
  found = collectives.read(text, mesh)
  whole = layers * width * width * 4
  gathered, = (row for row in found.rows if row.op == "all-gather")
  assert (gathered.axes, gathered.bytes) == (("fsdp",), 2 * 3 / 4 * whole)
  summed = [row for row in found.rows if row.op != "all-gather"]
  # XLA:CPU sums whole gradients, 2 (n - 1) / n, and then cuts; XLA:TPU scatters them.
  assert sum(row.bytes for row in summed) == pytest.approx(2 * 7 / 8 * whole)


GROUPS = {
    "{{0,1},{2,3},{4,5},{6,7}}": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "{}": [list(range(8))],
    "[4,2]<=[8]": [[0, 1], [2, 3], [4, 5], [6, 7]],
    "[2,4]<=[4,2]T(1,0)": [[0, 2, 4, 6], [1, 3, 5, 7]],
    "mesh['a'=2,'b'=4] {'b'}": [[0, 1, 2, 3], [4, 5, 6, 7]],
    "mesh['a'=2,'b'=4] {'a'}": [[0, 4], [1, 5], [2, 6], [3, 7]],
    "mesh['a'=2,'b'=4] {'a','b':(2)2}": [[0, 1, 4, 5], [2, 3, 6, 7]],
    "mesh['b'=8] {'b':(1)2}": [[0, 4], [1, 5], [2, 6], [3, 7]],
    "mesh['a'=2,'b'=4], device_ids=({{7,6,5,4},{3,2,1,0}}) {'a'}": [[7, 3], [6, 2], [5, 1], [4, 0]],
    "mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}": [[0, 1], [2, 3], [4, 5], [6, 7]],
}


def program(line, partitions=8):
  return f"""HloModule m, num_partitions={partitions}
%add (x: f32[], y: f32[]) -> f32[] {{
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %z = f32[] add(%x, %y)
}}
ENTRY %main (p: f32[256]) -> f32[256] {{
  %p = f32[256]{{0:T(256)}} parameter(0)
{line}
}}
"""


@pytest.mark.parametrize("text", GROUPS)
def test_replica_groups_in_each_syntax(text):
  line = f"  ROOT %r = f32[256]{{0}} all-reduce(%p), replica_groups={text}, to_apply=%add"
  size = len(GROUPS[text][0])
  mesh = mesh_of(x=2, y=2, z=2)
  expected = tuple(
      name for name, place in zip("xyz", np.unravel_index(np.array(GROUPS[text]), (2, 2, 2)))
      if (place != place[:, :1]).any())
  row = only(collectives.read(program(line), mesh))
  assert row.axes == expected
  assert row.bytes == 2 * (size - 1) / size * 1024


def test_a_collective_that_xla_overlaps_is_counted_where_it_starts():
  """XLA:TPU repeats it in the fusions that run beside it, with one chain_id (recorded, shortened)."""
  gather = ("all-gather(%p), replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}, dimensions={0}, "
            'frontend_attributes={chain_id="7"}')
  text = f"""HloModule m, num_partitions=8
%start (p: bf16[16]) -> (bf16[16], bf16[64]) {{
  %p = bf16[16]{{0}} parameter(0)
  %g = bf16[64]{{0}} {gather}
  ROOT %c = (bf16[16]{{0}}, bf16[64]{{0:S(1)}}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}
%beside (p: bf16[16], q: bf16[64]) -> (bf16[16], bf16[64]) {{
  %p = bf16[16]{{0}} parameter(0)
  %q = bf16[64]{{0}} parameter(1)
  %g = bf16[64]{{0:S(1)}} {gather}
  ROOT %t = (bf16[16]{{0}}, bf16[64]{{0}}) tuple(%p, %g)
}}
%done (p: bf16[16], q: bf16[64]) -> bf16[64] {{
  %p = bf16[16]{{0}} parameter(0)
  %q = bf16[64]{{0}} parameter(1)
  %g = bf16[64]{{0:S(1)}} {gather}
  ROOT %d = bf16[64]{{0}} custom-call(%p, %q, %g), custom_call_target="AsyncCollectiveDone"
}}
ENTRY %main (p: bf16[16]) -> bf16[64] {{
  %p = bf16[16]{{0}} parameter(0)
  %f1 = (bf16[16]{{0}}, bf16[64]{{0:S(1)}}) fusion(%p), kind=kCustom, calls=%start
  %a = bf16[16]{{0}} get-tuple-element(%f1), index=0
  %b = bf16[64]{{0:S(1)}} get-tuple-element(%f1), index=1
  %f2 = (bf16[16]{{0}}, bf16[64]{{0}}) fusion(%a, %b), kind=kLoop, calls=%beside
  %c = bf16[16]{{0}} get-tuple-element(%f2), index=0
  %e = bf16[64]{{0}} get-tuple-element(%f2), index=1
  ROOT %f3 = bf16[64]{{0}} fusion(%c, %e), kind=kCustom, calls=%done
}}
"""
  row = only(collectives.read(text, mesh_of(**EIGHT)))
  assert (row.op, row.axes, row.count, row.bytes) == ("all-gather", ("fsdp",), 1, 3 * 32)


def test_a_tpu_fusion_of_all_reduce_and_slice_is_a_reduce_scatter():
  text = """HloModule m, num_partitions=8
%all-reduce-scatter.1 (input: f32[256]) -> f32[64] {
  %input = f32[256]{0} parameter(0)
  %r = f32[256]{0} all-reduce(%input), replica_groups=[2,4]<=[8], to_apply=%add
  %zero = s32[] constant(0)
  ROOT %s = f32[64]{0} dynamic-slice(%r, %zero), dynamic_slice_sizes={64}
}
ENTRY %main (p: f32[256]) -> f32[64] {
  %p = f32[256]{0} parameter(0)
  ROOT %f = f32[64]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
  row = only(collectives.read(text, mesh_of(**EIGHT)))
  assert (row.op, row.bytes) == ("reduce-scatter", 3 / 4 * 1024)


def test_a_collective_on_tpu7x_sparse_cores_is_found_behind_its_calls():
  """Recorded, shortened: async-start, a custom call, and the operation in what that calls."""
  text = """HloModule m, num_partitions=8
%called_computation.1 (p: f32[256]) -> f32[1024] {
  %p = f32[256]{0} parameter(0)
  ROOT %g = f32[1024]{0} all-gather(%p), replica_groups=[2,4]<=[8], dimensions={0}
}, execution_thread="sparsecore"
%async_computation.1 (p: f32[256]) -> f32[1024] {
  %p = f32[256]{0} parameter(0)
  ROOT %c = f32[1024]{0} custom-call(%p), custom_call_target="x", called_computations={%called_computation.1}
}, execution_thread="sparsecore"
ENTRY %main (p: f32[256]) -> f32[1024] {
  %p = f32[256]{0} parameter(0)
  %s = ((), (), (s32[8]{0:T(1024)})) async-start(), async_execution_thread="sparsecore", calls=%async_computation.1
  %u = ((f32[256]{0}), f32[1024]{0}, (s32[8]{0})) async-update(%s, %p)
  ROOT %d = f32[1024]{0} async-done(%u)
}
"""
  row = only(collectives.read(text, mesh_of(**EIGHT)))
  assert (row.op, row.axes, row.count, row.bytes) == ("all-gather", ("fsdp",), 1, 3 * 1024)


class Device(types.SimpleNamespace):
  """A stand-in for a TPU that is not here."""
  __hash__ = object.__hash__


def two_slices():
  device = lambda s, x: Device(
      id=100_000 * (s + 1) + x, slice_index=s, coords=(x, 0, 0), platform="tpu")
  devices = [device(s, x) for s in range(2) for x in range(4)]
  grid = np.array(devices, object).reshape(2, 4)
  return types.SimpleNamespace(devices=grid, axis_names=BOTH, size=8, shape=dict(zip(BOTH, (2, 4))))


@pytest.mark.parametrize("kind, target, op, sent, average", [
    ("ALL_REDUCE", '"{1,2}x{0:3}"', "all-reduce", 2 / 2 * 1024, 1024),
    ("ALL_GATHER", '"{1,2}x{0:3}"', "all-gather", 1024, 1024),
    ("REDUCE_SCATTER", "{{100000,200000},{100001,200001},{100002,200002},{100003,200003}}",
     "reduce-scatter", 512, 512),
    # Two of eight devices send.
    ("ONE_TO_ONE", "{{100003->200000},{200003->100000}}", "collective-permute", 1024, 256),
])
def test_transfers_between_tpu_slices(kind, target, op, sent, average):
  """XLA:TPU writes the program of one slice, and what leaves it as send and recv (recorded)."""
  line = f"""  %t = token[] after-all()
  %send = (f32[256]{{0}}, u32[], token[]) send(%p, %t), channel_id=2, is_host_transfer=true, \
frontend_attributes={{_xla_host_transfer_handler_name="xla_megascale_runtime",\
_xla_megascale_target={target},_xla_megascale_transfer_type="{kind}"}}
  ROOT %r = f32[256]{{0}} all-reduce(%p), replica_groups={{{{0,1,2,3}}}}, to_apply=%add"""
  found = collectives.read(program(line, partitions=4), two_slices())
  between, = (row for row in found.rows if row.network == "dcn")
  inside, = (row for row in found.rows if row.network == "ici")
  assert (between.op, between.bytes, between.off_chip) == (op, sent, average)
  assert "data" in between.axes
  assert (inside.axes, inside.bytes, inside.torus) == (("fsdp",), 2 * 3 / 4 * 1024, (0,))


def test_two_devices_of_a_chip_share_what_arrives():
  """tpu7x: of what four devices on two chips gather, one device of each chip must receive half."""
  device = lambda x, core: Device(
      id=2 * x + core, slice_index=0, coords=(x, 0, 0), core_on_chip=core, platform="tpu")
  devices = [device(x, core) for x in range(2) for core in range(2)]
  mesh = types.SimpleNamespace(devices=np.array(devices, object), axis_names=("fsdp",), size=4)
  line = "  ROOT %r = f32[1024]{0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}"
  row = only(collectives.read(program(line, partitions=4), mesh))
  assert row.bytes == 3 * 1024
  assert row.off_chip == 2 * 1024 / 2     # a chip receives the other's two parts, for both devices


def loop(condition, body, first):
  state = "(s32[], f32[256])"
  return f"""HloModule m, num_partitions=8
%body (s: {state}) -> {state} {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[256]{{0}} get-tuple-element(%s), index=1
  %r = f32[256]{{0}} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
  {body}
  ROOT %t = {state} tuple(%next, %r)
}}
%condition (s: {state}) -> pred[] {{
  %s = {state} parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(6)
  ROOT %c = pred[] {condition}
}}
ENTRY %main (p: f32[256]) -> {state} {{
  %p = f32[256]{{0}} parameter(0)
  %zero = s32[] constant({first})
  %start = s32[] copy(%zero)
  %tuple = {state} tuple(%start, %p)
  ROOT %w = {state} while(%tuple), condition=%condition, body=%body
}}
"""


LESS = "compare(%i, %limit), direction=LT"
ONE = "%one = s32[] constant(1)\n  %next = s32[] add(%i, %one)"


@pytest.mark.parametrize("condition, body, first, rounds", [
    (LESS, ONE, 0, 6),
    (LESS, ONE, 1, 5),                            # the first round was peeled off
    ("compare(%limit, %i), direction=GT", ONE, 0, 6),
    ("compare(%i, %limit), direction=LE", ONE, 0, 7),
    (LESS, ONE.replace("constant(1)", "constant(4)"), 0, 2),
])
def test_rounds_of_a_loop_without_a_known_trip_count(condition, body, first, rounds):
  row = only(collectives.read(loop(condition, body, first), mesh_of(fsdp=8)))
  assert row.count == rounds


def test_a_loop_of_unknown_length_counts_once_and_the_source_says_so():
  found = collectives.read(loop(LESS, "%next = s32[] multiply(%i, %i)", 2), mesh_of(fsdp=8))
  assert only(found).count == 1
  assert "at least" in found.source


@pytest.fixture(scope="module")
def siglip():
  run = assemble(config_lib.load("contrastive/siglip:smoke", {"mesh.fsdp": "4"}))
  with run.use():
    jaxpr = run.step_fn().trace(run.abstract, run.abstract_batch).jaxpr
  return run, jaxpr


def test_shardings_give_parameters_by_their_size(siglip):
  run, _ = siglip
  found = collectives.from_shardings(run)
  itemsize = 2 if "bfloat16" in repr(run.config["objective"]) else 4
  split = itemsize * sum(x.size for x, s in zip(jax.tree.leaves(run.abstract.params),
                                                jax.tree.leaves(run.shardings.params))
                         if "fsdp" in jax.tree.leaves(tuple(s.spec)))
  by_op = {(row.op, row.axes): row.bytes for row in found.rows}
  assert by_op["all-gather", ("fsdp",)] == 2 * 3 / 4 * split
  assert by_op["reduce-scatter", ("fsdp",)] == 3 / 4 * split
  assert by_op["all-reduce", ("data",)] == 2 * 1 / 2 * split / 4
  assert "estimated" in found.source


def test_rings_are_read_from_the_jaxpr(siglip):
  """The sigmoid loss sends [b, D] texts in each of eight hops forward, and with gradients back."""
  run, jaxpr = siglip
  found = collectives.from_shardings(run, jaxpr)
  row, = (row for row in found.rows if row.op == "collective-permute")
  rows, width = run.settings.batch_size // 8, 64
  texts = rows * width * 4
  assert row.axes == BOTH
  assert row.bytes == pytest.approx(8 * 3 * texts, rel=0.1)     # beside them: places and `valid`


@pytest.mark.slow
def test_a_program_for_absent_tpus():
  """v5e:2x2 twice: the same sums, inside and between slices, as the hierarchical rule gives."""
  needs("libtpu")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  from jax.experimental import topologies
  devices = topologies.get_topology_desc("v5e:2x2", platform="tpu", num_slices=2).devices
  mesh = mesh_of(sorted(devices, key=lambda d: (d.slice_index, d.id)), **EIGHT)
  found = read(lambda x: lax.psum(x, BOTH), mesh, P(), P())
  assert found.by_network == {"ici": 2 * 3 / 4 * MIB, "dcn": MIB / 4}
  assert {row.axes for row in found.rows if row.network == "dcn"} == {("data",)}
  assert {row.torus for row in found.rows if row.network == "ici"} == {(0, 1)}
