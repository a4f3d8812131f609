"""Position tables against their formulas, rotary against the property that defines it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmjax.nn.positions import rotary_2d, rotate, sincos_2d


@pytest.mark.parametrize("endpoint", [False, True])
def test_sincos_table_is_the_published_formula(endpoint):
  """MAE's formula, and big_vision's with `endpoint`, written out entry by entry."""
  rows, columns, width = 2, 3, 16
  table = sincos_2d((rows, columns), width, endpoint)
  count = width // 4
  for y in range(rows):
    for x in range(columns):
      for i in range(count):
        omega = 10000 ** -(i / (count - 1 if endpoint else count))
        want = [math.sin(x * omega), math.cos(x * omega), math.sin(y * omega), math.cos(y * omega)]
        np.testing.assert_allclose(table[y * columns + x, i::count], want, atol=1e-6)


def test_rotary_logits_depend_on_the_offset_alone():
  q, k = jax.random.normal(jax.random.key(0), (2, 1, 1, 1, 8))
  angles = rotary_2d((5, 7), 8).reshape(5, 7, 4)

  def logit(a, b):
    return jnp.sum(rotate(q, angles[a][None]) * rotate(k, angles[b][None]))

  np.testing.assert_allclose(logit((0, 1), (2, 4)), logit((2, 3), (4, 6)), rtol=1e-5)
  assert abs(logit((0, 1), (2, 4)) - logit((0, 1), (3, 4))) > 1e-3
  assert abs(logit((0, 1), (2, 4)) - logit((0, 1), (2, 5))) > 1e-3


@pytest.mark.parametrize("make", [lambda: sincos_2d((2, 2), 6), lambda: rotary_2d((2, 2), 6),
                                  lambda: sincos_2d((2, 2), 4, endpoint=True)])
def test_a_width_that_does_not_split_is_an_error(make):
  with pytest.raises(ValueError, match="multiple of 4"):
    make()
