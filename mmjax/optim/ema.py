"""Exponential moving averages of parameters: for teachers and for evaluation.

    ema <- d(t) * ema + (1 - d(t)) * params        after the t-th update, in float32
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def init(params: Tree) -> Tree:
  """A float32 copy of `params`; shares no buffer with them, so that both can be donated."""
  return jax.tree.map(lambda p: jnp.array(p, jnp.float32, copy=True), params)


def update(ema: Tree, params: Tree, decay: jax.Array | float) -> Tree:
  """One step towards `params`: float32; exactly `params` at decay 0, exactly `ema` at 1."""
  decay = jnp.asarray(decay, jnp.float32)
  return jax.tree.map(lambda e, p: decay * e + (1 - decay) * p.astype(jnp.float32), ema, params)


def schedule(decay: float, final: float | None = None, total_steps: int | None = None,
             warmup: bool = False) -> Callable[[jax.Array | int], jax.Array]:
  """The decay d(t): int32 step -> float32 [].

  Args:
    decay: the decay, or where it starts if `final` is given.
    final: where a cosine ramp over `total_steps` ends, usually 1 (BYOL, arXiv:2006.07733, appendix;
      DINO, arXiv:2104.14294): final - (final - decay) * (1 + cos(pi t / total_steps)) / 2.
    warmup: at most (1 + t) / (10 + t), so that a short run forgets where it started
      (`num_updates` of TensorFlow's ExponentialMovingAverage).

  Raises:
    ValueError: a decay outside [0, 1], or `final` without `total_steps`.
  """
  if not 0 <= decay <= 1 or (final is not None and not 0 <= final <= 1):
    raise ValueError(f"ema: decay={decay} and final={final} must lie in [0, 1]")
  if final is not None and not total_steps:
    raise ValueError(f"ema: a ramp to final={final} needs total_steps")

  def at(step):
    step = jnp.asarray(step).astype(jnp.float32)
    value = jnp.float32(decay)
    if final is not None:
      progress = jnp.clip(step / total_steps, 0, 1)
      value = final - (final - decay) * 0.5 * (1 + jnp.cos(jnp.pi * progress))
    if warmup:
      value = jnp.minimum(value, (1 + step) / (10 + step))
    return value

  return at


def from_config(node: Mapping[str, Any],
                path: str = "momentum") -> Callable[[jax.Array | int], jax.Array]:
  """The decay that a teacher's config describes: {"start": 0.996, "final": 1.0, "ramp_steps": n}.

  Args:
    node: `start` alone is a constant decay; `final` and `ramp_steps` come together (`schedule`).
    path: of the node in the config, for errors.

  Raises:
    ValueError: a key is unknown or missing, or a number out of range.
  """
  unknown = sorted(set(node) - {"start", "final", "ramp_steps"})
  if unknown:
    raise ValueError(f"{path}.{unknown[0]}: unknown key (valid: start, final, ramp_steps)")
  if "start" not in node:
    raise ValueError(f"{path}.start: is missing; it is the decay of the first step")
  if ("final" in node) != ("ramp_steps" in node):
    raise ValueError(f"{path}: final and ramp_steps come together, as where the ramp ends and when")
  for name in ("start", "final"):
    if not 0 <= node.get(name, 1) <= 1:
      raise ValueError(f"{path}.{name}: must be from 0 to 1, not {node[name]}")
  if node.get("ramp_steps", 1) < 1:
    raise ValueError(f"{path}.ramp_steps: must be at least 1, not {node['ramp_steps']}")
  return schedule(node["start"], node.get("final"), node.get("ramp_steps"))
