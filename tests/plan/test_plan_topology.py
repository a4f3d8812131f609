"""Names of topologies: what is accepted, what it stands for, and one line for all else."""

import importlib.util

import pytest

from mmjax.config import ConfigError
from mmjax.plan import topology
from tests.conftest import needs

needs("libtpu")


@pytest.mark.parametrize("name, slices, full_name, chips, devices", [
    ("v5e:1x1", 1, "v5e:1x1", 1, 1),
    ("v5e:16x16", 1, "v5e:16x16", 256, 256),
    ("v5e:4x4", 3, "v5e:4x4", 48, 48),
    ("v5litepod-256", 1, "v5e:16x16", 256, 256),
    ("V6e-8", 1, "v6e:2x4", 8, 8),
    ("v4-8", 1, "v4:2x2x1", 4, 4),
    ("v4:4x4x4", 1, "v4:4x4x4", 64, 64),
    ("v5p:16x20x28", 1, "v5p:16x20x28", 8960, 8960),
    ("tpu7x:2x2x1", 1, "tpu7x:2x2x1", 4, 8),
    ("tpu7x:4x4x4", 2, "tpu7x:4x4x4", 128, 256)])
def test_a_name_gives_its_chips_and_jax_devices(name, slices, full_name, chips, devices):
  found = topology.find(name, slices)
  assert (found.name, found.chips, len(found.devices)) == (full_name, chips, devices)
  assert found.devices[0].device_kind == found.chip.device_kind
  if slices > 1:
    assert {device.slice_index for device in found.devices} == set(range(slices))


@pytest.mark.parametrize("name, said", [
    ("v5e:16x17", "did you mean v5e:16x16; valid: v5e:1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
    ("v5e:3x2", "valid: v5e:1x1, 2x2"),
    ("v5e:32x16", "--slices"),
    ("v4:4x4", "slices of v4 are v4:AxBxC"),
    ("v5e:0x4", "slices of v5e are v5e:AxB"),
    ("v5e", "valid: v5e:1x1"),
    ("v5e:axb", "slices of v5e are v5e:AxB"),
    ("v5e-12", "v5e-1, v5e-4, v5e-8, v5e-16"),
    ("v9:2x2", "valid: v4:4x4x4, v5e:8x8"),
    ("", "valid: v4:4x4x4, v5e:8x8")])
def test_a_wrong_name_is_one_line_with_valid_ones(name, said):
  with pytest.raises(ConfigError) as error:
    topology.find(name)
  assert said in str(error.value) and "\n" not in str(error.value)


def test_slices_below_one_are_refused():
  with pytest.raises(ConfigError, match="--slices=0: must be at least 1"):
    topology.find("v5e:2x2", 0)


def test_every_shape_that_is_offered_is_accepted_by_the_compiler():
  for kind, one in topology.KINDS.items():
    for shape in one.shapes:
      name = f"{kind}:{'x'.join(map(str, shape))}"
      found = topology.find(name)
      assert found.name == name and found.chips <= one.pod


def test_without_libtpu_the_error_says_what_to_install(monkeypatch):
  real = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, "find_spec",
                      lambda name, *rest: None if name == "libtpu" else real(name, *rest))
  monkeypatch.delenv("TPU_LIBRARY_PATH", raising=False)
  with pytest.raises(ConfigError, match=r"pip install 'mmjax\[plan\]'"):
    topology.find("v5e:2x2")
