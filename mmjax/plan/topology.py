"""Accelerators that are not here: `v5e:16x16` as a list of devices for which XLA can compile.

TPUs come from libtpu, whose compiler runs on any machine; GPUs are stood in for, see `host.py`.
"""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import topologies

from mmjax.config import ConfigError
from mmjax.parallel.chips import CHIPS, Chip

FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
CUBES = ((1, 1, 1), (2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4), (4, 4, 4), (4, 4, 8), (4, 8, 8),
         (8, 8, 8), (8, 8, 16), (8, 16, 16))


@dataclasses.dataclass(frozen=True)
class Kind:
  """The slices that there are of one kind of TPU (cloud.google.com/tpu/docs).

  Attributes:
    shapes: those commonly offered, smallest first; more may be possible.
    pod: chips of the largest slice.
    side: the longest side of a slice; None where optical switches join blocks into any shape.
    cores: what an accelerator type counts a chip (v4-8 is four chips, v5litepod-8 eight).
  """

  shapes: tuple[tuple[int, ...], ...]
  pod: int
  side: int | None = None
  cores: int = 1


KINDS = {
    "v4": Kind((*CUBES, (16, 16, 16)), pod=4096, cores=2),
    "v5e": Kind(FLAT, pod=256, side=16),
    "v5p": Kind((*CUBES, (16, 16, 16), (16, 16, 24), (16, 20, 28)), pod=8960, cores=2),
    "v6e": Kind(FLAT, pod=256, side=16),
    "tpu7x": Kind((*CUBES, (16, 16, 16), (16, 16, 24), (16, 24, 24)), pod=9216),
}
ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6": "v6e", "v7x": "tpu7x", "7x": "tpu7x"}
GPUS = tuple(name for name in CHIPS if name not in KINDS)


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices to plan for.

  Attributes:
    name: of one slice, such as "v5e:16x16"; of GPUs, such as "h100:4x8", all nodes.
    slices: joined over the data-centre network.
    chip: what is known about one of its devices.
    devices: of all slices; only good for compiling.
    platform: "tpu" or "gpu".
  """

  name: str
  slices: int
  chip: Chip
  devices: list = dataclasses.field(repr=False)
  platform: str

  @property
  def chips(self) -> int:
    """Chips in all slices; a chip of TPU7x is two devices."""
    return len(self.devices) // self.chip.devices

  @property
  def title(self) -> str:
    """The name, with the number of slices; a GPU's nodes are in the name."""
    many = self.platform == "tpu" and self.slices > 1
    return f"{self.slices} x {self.name}" if many else self.name


def find(name: str, slices: int = 1) -> Topology:
  """The topology `name`.

  Args:
    name: of TPUs kind and shape ("v5e:16x16", "v5p:16x20x28") or Google's accelerator type
      ("v5litepod-256", "v4-512"); of GPUs nodes and GPUs of each ("h100:4x8").
    slices: how many of them.

  Raises:
    ConfigError: there is no such topology, or libtpu is not installed.
  """
  if slices < 1:
    raise ConfigError(f"--slices={slices}: must be at least 1")
  kind, separator, rest = _parts(name)
  if kind in GPUS:
    from mmjax.plan import host
    return host.find(name, slices)
  if kind not in KINDS:
    raise ConfigError(f"--topology={name}: no such accelerator; valid: {_examples()}")
  shape = _of_type(name, kind, rest) if separator == "-" else _shape(name, kind, rest)
  name = f"{kind}:{_text(shape)}"
  return Topology(name, slices, CHIPS[kind], _devices(name, slices), "tpu")


def _parts(name):
  """("v5e", ":", "16x16") of "v5e:16x16", and likewise of "v5litepod-256"."""
  found = re.fullmatch(r"([^:-]*)(?:([:-])(.*))?", name.strip().lower())
  kind, separator, rest = found.groups() if found else (name, None, None)
  return ALIASES.get(kind, kind), separator, rest or ""


def _shape(name, kind, text):
  """(16, 16) of "16x16", if a slice can be so."""
  dimensions = len(KINDS[kind].shapes[0])
  found = re.fullmatch(r"\d+(x\d+)*", text)
  shape = tuple(int(size) for size in text.split("x")) if found else ()
  if len(shape) != dimensions or 0 in shape:
    what = "x".join("ABC"[:dimensions])
    raise ConfigError(f"--topology={name}: slices of {kind} are {kind}:{what}; "
                      f"{_nearest(kind, math.prod(shape) if shape else 0)}")
  chips = math.prod(shape)
  limit = KINDS[kind]
  if chips > limit.pod or limit.side and max(shape) > limit.side:
    raise ConfigError(f"--topology={name}: the largest slice of {kind} is {limit.pod} chips, "
                      f"{kind}:{_text(limit.shapes[-1])}; join several with --slices; "
                      f"{_nearest(kind, chips)}")
  return shape


def _of_type(name, kind, text):
  """The usual shape of an accelerator type, which counts cores or chips."""
  shapes = {math.prod(shape) * KINDS[kind].cores: shape for shape in KINDS[kind].shapes}
  if not text.isdecimal() or int(text) not in shapes or kind == "tpu7x":
    types = ", ".join(f"{kind}-{count}" for count in shapes) if kind != "tpu7x" else "no such names"
    raise ConfigError(f"--topology={name}: no such accelerator type (valid: {types}); or name the "
                      f"shape, such as {kind}:{_text(KINDS[kind].shapes[5])}")
  return shapes[int(text)]


def _text(shape: Sequence[int]) -> str:
  return "x".join(str(size) for size in shape)


def _nearest(kind: str, chips: int) -> str:
  """The tail of an error message: the usual shape nearest in chips, and all of them."""
  shapes = KINDS[kind].shapes
  best = min(shapes, key=lambda shape: abs(math.prod(shape) - chips))
  hint = f"did you mean {kind}:{_text(best)}; " if chips else ""
  return f"{hint}valid: {kind}:{', '.join(_text(shape) for shape in shapes)}"


def _examples() -> str:
  tpus = ", ".join(f"{kind}:{_text(KINDS[kind].shapes[5])}" for kind in KINDS)
  return f"{tpus}, {', '.join(f'{gpu}:4x8' for gpu in GPUS)}"


def _devices(name: str, slices: int) -> list:
  """All devices of the slices, from libtpu."""
  if importlib.util.find_spec("libtpu") is None and not os.environ.get("TPU_LIBRARY_PATH"):
    raise ConfigError(f"--topology={name}: the compiler for TPUs is not installed: "
                      "pip install 'mmjax[plan]'")
  kind = name.partition(":")[0]
  options = {}
  if kind == "v4":
    options["chip_config_name"] = "megacore"  # a chip's two cores as one device, as JAX runs it
  if slices > 1:
    options["num_slices"] = slices
  try:
    with _quiet():
      return list(topologies.get_topology_desc(name, "tpu", **options).devices)
  except jax.errors.JaxRuntimeError as error:
    chips = math.prod(int(size) for size in name.partition(":")[2].split("x"))
    raise ConfigError(f"--topology={name}: the TPU compiler does not accept it ({error}); "
                      f"{_nearest(kind, chips)}") from error


# What libtpu asks of a TPU's machine when it is loaded; on others it would complain.
_ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # or the second plan at a time fails over a lock file
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Sets `_ENVIRONMENT` while libtpu is loaded, except what the user has set."""
  added = {key: value for key, value in _ENVIRONMENT.items() if key not in os.environ}
  os.environ.update(added)
  try:
    yield
  finally:
    for key in added:
      os.environ.pop(key, None)
