"""Options of XLA's compiler for the train step: ours, and those of the config."""

from collections.abc import Iterable, Mapping
import logging
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mmjax.config import ConfigError
from mmjax.parallel import mesh as mesh_lib

Options = dict[str, Any]

log = logging.getLogger("mmjax")


def options(mesh: Mesh, chosen: Mapping[str, Any]) -> Options:
  """What the step is compiled with for the devices of a mesh; what of `chosen` is for these wins.

  Between TPU slices a layer's gradients are summed while the layer before it is differentiated.
  XLA's pipelining would hide more of what the sums take, but keeps all gradients padded for it: 5%
  of the peak of SigLIP L/16 on 16 slices of v5e:16x16.
  """
  devices = mesh.devices.ravel()
  several = len(set(map(mesh_lib.slice_of, devices))) > 1
  on_tpu = mesh_lib.platform_of(devices) == "tpu"
  ours = {"xla_tpu_enable_collective_pipeliner": False} if on_tpu and several else {}
  return {**ours, **for_these(devices, chosen)}


def for_these(devices: Iterable[Any], chosen: Mapping[str, Any]) -> Options:
  """Those of the options that the devices' compiler is to know.

  `xla_tpu_...` is for TPUs only, so that a config for a pod runs, for a look at it, on a CPU too;
  `xla_gpu_...` and `xla_cpu_...` likewise. GPUs that CPUs stand for are compiled for by a CPU's.
  """
  platform = next(iter(devices)).platform
  known = {"cuda": "gpu", "rocm": "gpu"}.get(platform, platform)
  others = tuple(f"xla_{name}_" for name in ("cpu", "gpu", "tpu") if name != known)
  return {name: value for name, value in chosen.items() if not name.startswith(others)}


def check(mesh: Mesh, chosen: Mapping[str, Any]) -> None:
  """Compiles next to nothing with the config's options, so that what is wrong is found at the start.

  Raises:
    ConfigError: the compiler has no such option, or the option no such value.
  """
  mine = for_these(mesh.devices.flat, chosen)
  for name in chosen.keys() - mine.keys():
    log.info("compiler_options.%s: left out, since it is for another platform", name)
  if not mine:
    return
  number = jax.ShapeDtypeStruct((), jnp.float32, sharding=mesh_lib.replicated(mesh))
  lowered = jax.jit(jnp.negative).lower(number)
  for name, value in mine.items():
    try:
      lowered.compile({name: value})
    except Exception as error:  # JaxRuntimeError here, others from other backends
      raise ConfigError(f"compiler_options.{name}: the compiler for "
                        f"{mesh_lib.platform_of(mesh.devices.ravel())} does not take {value!r}: "
                        f"{str(error).partition(chr(10))[0]}") from error
