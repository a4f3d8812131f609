"""Optimizers by name: each turns gradients into a direction; `build.py` does all the rest.

A function here takes its hyper-parameters as keyword arguments and returns the optax transformation
from (clipped) gradients to an ascent direction of unit learning rate. Clipping, weight decay,
learning rate, groups and sign are the same for all and not its business. Parameters of a stack of
layers come as `[depth, ...]`, and each layer must be treated as if it stood alone.
"""

import optax


def adamw(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8,
          mu_dtype: str | None = None) -> optax.GradientTransformation:
  """Adam's direction m / (sqrt(v) + eps), bias-corrected (Kingma & Ba, arXiv:1412.6980, alg. 1).

  The weight decay that makes it AdamW (Loshchilov & Hutter, arXiv:1711.05101) is `build.py`'s.

  Args:
    b1, b2: decay of the first and second moment.
    mu_dtype: dtype in which the first moment is kept, "bfloat16" to halve it; default the
      gradient's. The direction is computed before rounding.
  """
  return optax.scale_by_adam(b1=b1, b2=b2, eps=eps, mu_dtype=mu_dtype)
