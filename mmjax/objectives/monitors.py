"""Collapse monitors as metrics of an objective, and the values below which a run is warned.

An objective calls `of_features` (and `of_prototypes`) in `couple`, which sees the whole batch, and
its method `collapsed_below` returns what the function of that name does.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mmjax.losses import collapse
from mmjax.objectives.contract import Context, Term, weigh

EVERY = 20  # steps between two effective ranks: an eigenvalue problem takes long on an accelerator
# Below these nothing is left to tell inputs apart; encoders with random weights are above them.
LEAST_RANK, LEAST_RANK_SHARE, LEAST_STD, LEAST_ENTROPY = 2.0, 0.02, 0.1, 0.05


def of_features(ctx: Context, features: jax.Array, valid: jax.Array) -> Mapping[str, Term]:
  """{"effective_rank", "feature_std"} of `features` [B, D] or [B, N, D], with `valid` bool [B].

  The rank is taken in every `EVERY`-th step; in the others its weight is 0.
  """
  weight = jnp.broadcast_to(valid.reshape(-1, *[1] * (features.ndim - 2)), features.shape[:-1])
  known = jnp.any(valid)
  due = known & (ctx.step % EVERY == 0)
  rank = jax.lax.cond(due, lambda: collapse.effective_rank(features, weight),
                      lambda: jnp.float32(0))
  return {"effective_rank": weigh(rank, due),
          "feature_std": weigh(collapse.feature_std(features, weight), known)}


def of_prototypes(probabilities: jax.Array, valid: jax.Array) -> Mapping[str, Term]:
  """{"prototype_entropy"} of `probabilities` [..., K] with weights `valid` [...]."""
  entropy = collapse.prototype_entropy(probabilities, valid)
  return {"prototype_entropy": weigh(entropy, jnp.any(valid > 0))}


def width_of(encoder: Any) -> int:
  """How many numbers an encoder makes of an image: a ViT's width, or that of a CNN's last stage."""
  return getattr(encoder, "width", None) or encoder.widths[-1]


def collapsed_below(batch_size: int, width: int, prototypes: tuple[str, ...] = ()) -> dict[str, float]:
  """Thresholds of the metrics above, for `batch_size` rows of `width` numbers.

  Args:
    prototypes: names of metrics that are made as "prototype_entropy" is.
  """
  rank = max(LEAST_RANK, LEAST_RANK_SHARE * min(batch_size, width))
  least = {"effective_rank": rank, "feature_std": LEAST_STD}
  return least | dict.fromkeys(prototypes, LEAST_ENTROPY)
