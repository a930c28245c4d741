import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.ops import masks


def test_response_mask_ends_at_the_first_eos_also_when_eos_pads():
  tokens = jnp.array([[5, 1, 1, 1], [1, 1, 1, 1], [5, 6, 7, 8], [5, 6, 7, 1]])
  expected = [
    [True, True, False, False],
    [True, False, False, False],
    [True, True, True, True],
    [True, True, True, True],
  ]
  mask = masks.response_mask_of(tokens, eos_id=1)
  np.testing.assert_array_equal(mask, expected)
  finished = masks.ends_with_eos(tokens, mask, eos_id=1)
  np.testing.assert_array_equal(finished, [True, True, False, True])


def test_last_counted_of_full_partial_and_empty_rows():
  mask = jnp.array([[True, True, True], [True, False, False], [False] * 3])
  expected = [[False, False, True], [True, False, False], [False] * 3]
  np.testing.assert_array_equal(masks.last_counted(mask), expected)


def test_an_empty_row_has_no_eos():
  tokens = jnp.array([[1, 1]])
  empty = jnp.zeros((1, 2), bool)
  assert not masks.ends_with_eos(tokens, empty, eos_id=1)[0]


def test_masked_moments_equal_those_of_the_kept_entries():
  generator = np.random.default_rng(0)
  values = generator.normal(size=(5, 7)).astype(np.float32)
  mask = generator.random((5, 7)) < 0.6
  hidden = jnp.where(mask, values, jnp.nan)
  kept = values[mask]
  np.testing.assert_allclose(
    masks.masked_mean(hidden, jnp.asarray(mask)), kept.mean(), rtol=1e-6
  )
  np.testing.assert_allclose(
    masks.masked_std(hidden, jnp.asarray(mask)), kept.std(), rtol=1e-6
  )
  rows = masks.masked_std(hidden, jnp.asarray(mask), axis=1)
  for row, kept_row, value in zip(values, mask, rows):
    np.testing.assert_allclose(value, row[kept_row].std(), rtol=1e-5)


def test_masked_mean_of_nothing_is_zero_with_a_zero_gradient():
  nothing = jnp.zeros(3, bool)
  value, slope = jax.value_and_grad(masks.masked_mean)(
    jnp.full(3, jnp.nan), nothing
  )
  assert value == 0
  np.testing.assert_array_equal(slope, np.zeros(3))


def test_sums_of_low_precision_are_float32():
  ones = jnp.ones(1000, jnp.bfloat16)
  # bfloat16 cannot count beyond 256.
  assert masks.masked_sum(ones, jnp.ones(1000, bool)) == 1000


def test_require_same_shape_names_all():
  with pytest.raises(ValueError, match=r'first \(2,\), second \(3,\)'):
    masks.require_same_shape(first=jnp.zeros(2), second=jnp.zeros(3))
