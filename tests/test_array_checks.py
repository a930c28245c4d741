"""The checks that every other test runs under do catch wrong arrays."""

import jax
import jax.numpy as jnp
import pytest
from jaxtyping import TypeCheckError

from p4lm.ops.kl import kl_loss


@pytest.mark.parametrize(
  'reference_shape, mask_dtype, named',
  [
    ((2, 3, 1), bool, 'reference_logps'),
    ((3, 2), bool, 'reference_logps'),
    ((2, 3), float, 'mask'),
  ],
)
def test_wrong_rank_axis_or_dtype_is_caught(reference_shape, mask_dtype, named):
  with pytest.raises(TypeCheckError, match=f"parameter '{named}'"):
    kl_loss(
      jnp.zeros((2, 3)),
      jnp.zeros(reference_shape),
      mask=jnp.ones((2, 3), mask_dtype),
      estimator='k1',
    )


def test_other_annotations_are_left_to_the_function_itself():
  with pytest.raises(ValueError, match="'k1', 'k2' or 'k3'"):
    kl_loss(
      jnp.zeros((2, 3)),
      jnp.zeros((2, 3)),
      mask=jnp.ones((2, 3), bool),
      estimator=4,
    )


def test_rank_promotion_raises_inside_compiled_functions():
  with pytest.raises(ValueError, match='rank_promotion'):
    jax.jit(jnp.add)(jnp.zeros(2), jnp.zeros((2, 2)))
