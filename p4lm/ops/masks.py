"""Masks and sums that never look at what a mask hides.

A masked entry may hold anything, NaN and infinity too: each function replaces
it *before* any arithmetic, because `where` after the fact still multiplies the
gradient's zero by the hidden NaN.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from p4lm.typing import Array, Bool, Float, Int

AGGREGATIONS = ('response', 'response_mean', 'token')

Axis = int | Sequence[int] | None


def at_least_float32(values: Array) -> Array:
  """Raises low-precision and integer values to float32; keeps float64."""
  return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def require_same_shape(**arrays: Array) -> None:
  """Checks that arrays given by keyword have one shape.

  Raises:
    ValueError: they differ; the message names each with its shape.
  """
  if len({array.shape for array in arrays.values()}) > 1:
    shapes = ', '.join(f'{name} {a.shape}' for name, a in arrays.items())
    raise ValueError(f'these must have the same shape, got {shapes}')


def hide(values: Array, mask: Bool[Array, '...']) -> Array:
  """`values` (float32 at least) with zero wherever `mask` is False."""
  values = at_least_float32(values)
  return jnp.where(mask, values, jnp.zeros((), values.dtype))


def masked_sum(
  values: Array, mask: Bool[Array, '...'], axis: Axis = None
) -> Array:
  """Sum of the entries kept by `mask`; zero when none is kept."""
  return jnp.sum(hide(values, mask), axis=axis)


def masked_mean(
  values: Array, mask: Bool[Array, '...'], axis: Axis = None
) -> Array:
  """Mean of the entries kept by `mask`; zero when none is kept.

  >>> mask = jnp.array([True, True, False])
  >>> print(masked_mean(jnp.array([1., 3., jnp.nan]), mask))
  2.0
  """
  kept = jnp.maximum(jnp.sum(mask, axis=axis), 1)
  total = masked_sum(values, mask, axis=axis)
  return total / kept.astype(total.dtype)


def masked_std(
  values: Array, mask: Bool[Array, '...'], axis: Axis = None
) -> Array:
  """Population standard deviation (divides by M, not M - 1) of kept entries.

  Zero when none is kept. Not meant to be differentiated: the gradient of a
  square root is infinite at zero spread.
  """
  mean = jnp.expand_dims(
    masked_mean(values, mask, axis=axis),
    tuple(range(values.ndim)) if axis is None else axis,
  )
  squares = jnp.square(hide(values, mask) - mean)
  return jnp.sqrt(masked_mean(squares, mask, axis=axis))


def aggregate(
  values: Float[Array, 'B L'],
  response_mask: Bool[Array, 'B L'],
  aggregation: str,
) -> Float[Array, '']:
  """One number from values of tokens; zero when nothing is counted.

      response       sums over a row's tokens, mean over the rows with any
      response_mean  means over a row's tokens, mean over the rows with any
      token          mean over all counted tokens

  Sums give every token the same say and long responses the larger one;
  `response_mean` gives every response the same say.

  >>> mask = jnp.array([[True, True], [True, False]])
  >>> for name in AGGREGATIONS:
  ...   print(name, aggregate(jnp.array([[1., 3.], [6., 9.]]), mask, name))
  response 5.0
  response_mean 4.0
  token 3.3333333

  Raises:
    ValueError: an unknown aggregation.
  """
  counted = jnp.any(response_mask, axis=1)
  if aggregation == 'response':
    return masked_mean(masked_sum(values, response_mask, axis=1), counted)
  if aggregation == 'response_mean':
    return masked_mean(masked_mean(values, response_mask, axis=1), counted)
  if aggregation == 'token':
    return masked_mean(values, response_mask)
  raise ValueError(
    f'aggregation must be one of {", ".join(AGGREGATIONS)}, got {aggregation!r}'
  )


def response_mask_of(
  response_tokens: Int[Array, 'B L'],
  eos_id: int,
  stop_ids: Sequence[int] = (),
) -> Bool[Array, 'B L']:
  """True up to and including each row's first end-of-sequence token.

  `stop_ids` end a row too.

  What follows the first EOS is padding whatever its value, so the mask is the
  same when a tokenizer pads with its EOS. A row without EOS counts in full.

  >>> print(response_mask_of(jnp.array([[7, 1, 0], [7, 8, 9]]), eos_id=1))
  [[ True  True False]
   [ True  True  True]]
  """
  is_eos = response_tokens == eos_id
  for stop_id in stop_ids:
    is_eos |= response_tokens == stop_id
  before = jnp.cumsum(is_eos, axis=1) - is_eos
  return before == 0


def last_counted(
  response_mask: Bool[Array, 'B L'],
) -> Bool[Array, 'B L']:
  """True at the last counted position of each row, nowhere in empty rows.

  >>> print(last_counted(jnp.array([[True, True, False]])))
  [[False  True False]]
  """
  after = jnp.cumsum(response_mask[:, ::-1], axis=1)[:, ::-1]
  return response_mask & (after == 1)


def ends_with_eos(
  response_tokens: Int[Array, 'B L'],
  response_mask: Bool[Array, 'B L'],
  eos_id: int,
) -> Bool[Array, ' B']:
  """Whether each row's last counted token is EOS; False for empty rows."""
  return jnp.any(
    last_counted(response_mask) & (response_tokens == eos_id), axis=1
  )
