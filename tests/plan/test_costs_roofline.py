"""The table of chips, bytes to and from memory, and the bounds that follow."""

import pytest

from mmjax.parallel import chips
from mmjax.parallel.chips import CHIPS
from mmjax.plan import traffic
from mmjax.plan.collectives import Communication, Row
from mmjax.plan.flops import Flops
from mmjax.plan.roofline import bounds
from mmjax.training import flops

GB = 10**9


def row(network="ici", sent=GB, off_chip=None, torus=(), axes=("fsdp",)):
  return Row("all-gather", axes, network, 1, sent, sent if off_chip is None else off_chip, torus)


def seconds(chip, *rows):
  found = bounds(CHIPS[chip], Flops(1.0, 1.0), 0, Communication(rows, ""), 1, 1)
  return found.ici_s, found.dcn_s


# Of a whole chip, as the makers write them: TFLOP/s, GB/s of memory, GB/s out of the chip one way.
PUBLISHED = {
    "v4": (275, 1200, 300), "v5e": (197, 819, 200), "v5p": (459, 2765, 600),
    "v6e": (918, 1638, 400), "tpu7x": (2307, 7380, 600),
    "h100": (989, 3350, 450), "h200": (989, 4800, 450), "b200": (2250, 8000, 900),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_of_a_chip(name):
  chip, (tflops, memory, links) = CHIPS[name], PUBLISHED[name]
  assert chip.flops * chip.devices == pytest.approx(tflops * 1e12)
  assert chip.hbm_bytes_per_s * chip.devices == pytest.approx(memory * GB)
  assert chip.ici_bytes_per_s * chip.devices == pytest.approx(links * GB)
  assert chip.source


def test_every_kind_of_device_is_found_once():
  kinds = [kind for chip in CHIPS.values() for kind in (chip.device_kind, *chip.aliases)]
  assert len(kinds) == len(set(kinds))
  assert all(chips.of_kind(kind) for kind in kinds)
  assert chips.of_kind("cpu") is None


def test_the_peak_of_mfu_is_that_of_the_table():
  class Device:
    device_kind = "TPU7x"
  assert flops.mfu(2307e12, 1.0, [Device()] * 2) == pytest.approx(1.0)


def test_the_slowest_resource_binds():
  chip = CHIPS["v5e"]
  found = bounds(chip, Flops(model=0.5 * chip.flops, hardware=chip.flops), chip.hbm_bytes_per_s / 2,
                 Communication((row(sent=GB, torus=(0,)),), ""), steps=3600, devices=256)
  assert (found.bound, found.compute_s, found.memory_s) == ("compute", 1.0, 0.5)
  assert found.step_s == 1.0
  assert found.mfu == 0.5
  assert found.chip_hours == 256


def test_memory_binds_where_it_is_slower_and_mfu_falls():
  chip = CHIPS["h100"]
  found = bounds(chip, Flops(chip.flops, chip.flops), 4 * chip.hbm_bytes_per_s,
                 Communication((), ""), 1, 8)
  assert (found.bound, found.step_s, found.mfu) == ("memory", 4.0, 0.25)


def test_a_mesh_that_does_not_divide_costs_what_every_device_repeats():
  chip = CHIPS["v5p"]
  found = bounds(chip, Flops(chip.flops, chip.flops, (), executed=3 * chip.flops), 0,
                 Communication((), ""), 1, 8)
  assert (found.compute_s, found.mfu) == (3.0, pytest.approx(1 / 3))


def test_mfu_is_unknown_where_the_model_flops_are():
  assert bounds(CHIPS["v4"], Flops(None, 1e12), 0, Communication((), ""), 1, 1).mfu is None


def test_chip_hours_of_tpu7x_count_two_devices_as_one_chip():
  chip = CHIPS["tpu7x"]
  found = bounds(chip, Flops(chip.flops, chip.flops), 0, Communication((), ""), 3600, devices=8)
  assert found.chip_hours == pytest.approx(4)


def test_a_collective_uses_the_links_of_its_dimensions_both_ways():
  assert seconds("v5e", row(torus=(0,)))[0] == pytest.approx(1 / 100)
  assert seconds("v5e", row(torus=(0, 1)))[0] == pytest.approx(1 / 200)


def test_different_dimensions_work_at_the_same_time_and_the_same_one_after_another():
  assert seconds("v5e", row(torus=(0,)), row(torus=(1,)))[0] == pytest.approx(1 / 100)
  assert seconds("v5e", row(torus=(0,)), row(torus=(0,)))[0] == pytest.approx(2 / 100)
  # All links together carry at least all bytes.
  assert seconds("v5e", row(torus=(0,)), row(torus=(0, 1), sent=3 * GB))[0] == pytest.approx(4 / 200)


def test_two_devices_share_the_links_of_their_chip():
  assert seconds("tpu7x", row(torus=(0,)))[0] == pytest.approx(2 / 200)
  assert seconds("tpu7x", row(torus=(), off_chip=0))[0] == 0


def test_nvlink_is_a_switch():
  assert seconds("h100", row(), row())[0] == pytest.approx(2 / 450)


def test_what_crosses_slices_goes_over_the_data_centre_network():
  ici, dcn = seconds("v5e", row("dcn"))
  assert (ici, dcn) == (0, pytest.approx(8 / 25))


def test_without_a_program_arguments_are_read_and_results_written_once():
  assert traffic.at_least(100, 50).bytes == 150
  assert traffic.at_least(None, None).bytes == 0


PROGRAM = """HloModule m
%slice_of_a_stack (p: f32[6,256], i: s32[]) -> f32[1,256] {
  %p = f32[6,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %z = s32[] constant(0)
  ROOT %s = f32[1,256]{1,0} dynamic-slice(%p, %i, %z), dynamic_slice_sizes={1,256}
}
%update (p: f32[6,256], u: f32[1,256], i: s32[]) -> f32[6,256] {
  %p = f32[6,256]{1,0} parameter(0)
  %u = f32[1,256]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %z = s32[] constant(0)
  ROOT %d = f32[6,256]{1,0} dynamic-update-slice(%p, %u, %i, %z)
}
%body (s: (s32[], f32[6,256])) -> (s32[], f32[6,256]) {
  %s = (s32[], f32[6,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[6,256]{1,0} get-tuple-element(%s), index=1
  %part = f32[1,256]{1,0} fusion(%x, %i), kind=kLoop, calls=%slice_of_a_stack
  %near = f32[1,256]{1,0:S(1)} negate(%part)
  %y = f32[6,256]{1,0} fusion(%x, %near, %i), kind=kLoop, calls=%update
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  ROOT %t = (s32[], f32[6,256]{1,0}) tuple(%next, %y)
}
%condition (s: (s32[], f32[6,256])) -> pred[] {
  %s = (s32[], f32[6,256]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %limit = s32[] constant(6)
  ROOT %c = pred[] compare(%i, %limit), direction=LT
}
ENTRY %main (p: f32[6,256]) -> (s32[], f32[6,256]) {
  %p = f32[6,256]{1,0} parameter(0)
  %zero = s32[] constant(0)
  %t = (s32[], f32[6,256]{1,0}) tuple(%zero, %p)
  ROOT %w = (s32[], f32[6,256]{1,0}) while(%t), condition=%condition, body=%body
}
"""


def test_a_loop_over_a_stack_of_layers_moves_a_slice_in_each_round():
  """A round reads a slice, writes it, reads it again and writes the update; `near` is on chip."""
  scalars = 6 * 6 * 4      # the counter: at most read and written by six instructions of a round
  moved = traffic.at_least(0, 0, PROGRAM).bytes
  assert 6 * 4 * 1024 <= moved <= 6 * 4 * 1024 + scalars


FETCHED = {
    "slice-start": """HloModule m
ENTRY %main (p: f32[6,256]) -> f32[1,256] {
  %p = f32[6,256]{1,0} parameter(0)
  %s = (f32[6,256]{1,0}, f32[1,256]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%p), slice={[0:1], [0:256]}
  ROOT %d = f32[1,256]{1,0:S(1)} slice-done(%s)
}
""",
    "async-start": """HloModule m
%fetch (p: f32[6,256]) -> f32[1,256] {
  %p = f32[6,256]{1,0} parameter(0)
  ROOT %s = f32[1,256]{1,0:S(1)} slice(%p), slice={[0:1], [0:256]}
}
ENTRY %main (p: f32[6,256]) -> f32[1,256] {
  %p = f32[6,256]{1,0} parameter(0)
  %s = ((f32[6,256]{1,0}), f32[1,256]{1,0:S(1)}, s32[]{:S(2)}) async-start(%p), calls=%fetch
  ROOT %d = f32[1,256]{1,0:S(1)} async-done(%s)
}
"""}


@pytest.mark.parametrize("form", FETCHED)
def test_a_slice_fetched_to_fast_memory_reads_no_more_than_the_slice(form):
  assert traffic.at_least(0, 0, FETCHED[form]).bytes == 1024


def test_traffic_is_never_less_than_arguments_and_results():
  assert traffic.at_least(10**9, 10**9, PROGRAM).bytes == 2 * 10**9
