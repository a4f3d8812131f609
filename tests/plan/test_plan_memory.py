"""The compiler's complaints about memory, as recorded from several versions, and its figures."""

import types

import pytest

from mmjax.plan import memory

GIB = 2**30
# As libtpu 0.0.51 says it (2026).
TODAY = """RESOURCE_EXHAUSTED: E1000: CompileTimeHbmOom: Ran out of memory on HBM, the total \
memory required for HLO temporaries (160.00G) exceeds available HBM (15.75G). HLO module: jit_f.
See https://openxla.org/xla/errors/error_1000 for more details."""
# The form of earlier ones.
LISTED = """RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space \
hbm. Used 17.25G of 15.75G hbm. Exceeded hbm capacity by 1.50G.

Total hbm usage >= 17.75G:
    reserved        530.00M
    program          16.00G
    arguments         1.25G

  Largest program allocations in hbm:

  1. Size: 2.25G
     Operator: op_name="jit(train_step)/jvp(ViT)/layers/mlp/mul" source_file="a.py"
     Shape: bf16[24,32,197,4096]{3,2,1,0:T(8,128)(2,1)}
     Unpadded size: 2.22G
     XLA label: fusion.1 = fusion(...)
     Allocation type: HLO temp
     ==========================

  2. Size: 512.50M
     Shape: f32[1024,131072]{1,0}
     ==========================
"""
EARLY = """RESOURCE_EXHAUSTED: Compilation failure: Aborting compilation early because it's \
unlikely to have enough device memory. Requires 60.18G, has 15.48G available."""


@pytest.mark.parametrize("text, peak, limit", [
    (TODAY, 160 * GIB, 15.75 * GIB), (LISTED, 17.25 * GIB, 15.75 * GIB),
    (EARLY, 60.18 * GIB, 15.48 * GIB)])
def test_what_a_program_would_need_is_read_from_each_form(text, peak, limit):
  oom = memory.parse_oom(text)
  assert oom.peak == pytest.approx(peak) and oom.limit == pytest.approx(limit)
  assert "\n" not in oom.text and "15." in oom.text


def test_the_largest_allocations_are_read_where_they_are_listed():
  assert memory.parse_oom(LISTED).largest == (
      (round(2.25 * GIB), "bf16[24,32,197,4096] jit(train_step)/jvp(ViT)/layers/mlp/mul"),
      (round(512.5 * 2**20), "f32[1024,131072]"))


@pytest.mark.parametrize("text", ["", "INTERNAL: Mosaic failed", "RESOURCE_EXHAUSTED: vmem"])
def test_other_failures_are_not_taken_for_too_little_memory(text):
  assert memory.parse_oom(text) is None


def test_the_peak_is_what_is_reserved_and_a_donated_state_counts_once():
  stats = types.SimpleNamespace(argument_size_in_bytes=100, temp_size_in_bytes=40,
                                output_size_in_bytes=90, alias_size_in_bytes=80,
                                peak_memory_in_bytes=500)
  found = memory.of_executable(stats, 1000)
  assert (found.peak, found.live, found.limit) == (150, 500, 1000)


def test_a_program_that_does_not_fit_keeps_its_arguments_and_the_complaint():
  found = memory.of_complaint(memory.parse_oom(TODAY), args=64 * GIB)
  assert (found.args, found.temp, found.peak) == (64 * GIB, 96 * GIB, 160 * GIB)
  assert not found.fits and "exceeds available HBM (15.75G)" in found.source
