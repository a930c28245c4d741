"""Products and softmax of attention, with gradients arranged for speed.

What JAX derives by itself divides all weights by their sum, reads and writes
them four times more on the way back, and takes products of transposed factors
that XLA has no fast routine for on a CPU.
"""

import functools

import jax
import jax.numpy as jnp

from p4lm.models.layers import dropout
from p4lm.typing import Array, Bool, Float, Key

# Added to masked scores: finite, so that a row with nothing to attend to gives
# the mean of its values instead of NaN.
MASKED = -1e30


def kept_weights(
  shape: tuple[int, ...], rate: float, key: Key[Array, ''] | None
) -> Float[Array, '...'] | None:
  """What dropout multiplies weights of this shape by; None for no dropout."""
  if key is None or rate == 0.0:
    return None
  return dropout(jnp.ones(shape, jnp.float32), rate, key)


@jax.custom_vjp
def products(
  query: Float[Array, '... Q K'], key: Float[Array, '... M K']
) -> Float[Array, '... Q M']:
  """query key^T in float32.

  The keys' gradient is computed as its transpose: a product whose small factor
  is the transposed one takes half the time on a CPU.
  """
  return jnp.einsum(
    '...qk,...mk->...qm', query, key, preferred_element_type=jnp.float32
  )


def _products_backward(residuals, gradient):
  query, key = residuals
  gradient = gradient.astype(query.dtype)
  by_key = jnp.einsum('...qk,...qm->...km', query, gradient)
  return (
    jnp.einsum('...qm,...mk->...qk', gradient, key),
    jnp.swapaxes(by_key, -1, -2),
  )


products.defvjp(lambda q, k: (products(q, k), (q, k)), _products_backward)


@jax.custom_vjp
def mix(
  scores: tuple[Float[Array, '... Q M'], ...],
  values: tuple[Float[Array, '... M K'], ...],
  masks: tuple[Bool[Array, '...'] | None, ...],
  kept: tuple[Float[Array, '...'] | None, ...],
) -> Float[Array, '... Q K']:
  r"""Values weighted by one softmax over all parts' scores together.

      context = (1/l) sum_m e_m v_m,  e_m = exp(s_m - max s),  l = sum_m e_m

  The weights e / l themselves are never made: dividing K numbers a query is
  cheaper than dividing M. Nor are parts put into one array. A query that may
  look nowhere gets the mean of its values, and its scores no gradient.

  Args:
    scores: a float32 array for each part.
    values: of each part; they may have fewer leading axes than the scores, all
      of whose further rows then share them.
    masks: of each part, True where a query may look, to be broadcast against
      the scores; None for everywhere.
    kept: factors of the weights (dropout), which are not normalised again.
  """
  return _mix_forward(scores, values, masks, kept)[0]


def _mix_forward(scores, values, masks, kept):
  scores = [
    part if mask is None else jnp.where(mask, part, MASKED)
    for part, mask in zip(scores, masks)
  ]
  top = functools.reduce(
    jnp.maximum, [part.max(axis=-1, keepdims=True) for part in scores]
  )
  weights = [jnp.exp(part - top) for part in scores]
  total = sum(part.sum(axis=-1, keepdims=True) for part in weights)
  weights = tuple(w.astype(v.dtype) for w, v in zip(weights, values))
  mixed = sum(
    _folded(_weighed, _times(part, factor), value)
    for part, factor, value in zip(weights, kept, values)
  )
  context = (mixed / total).astype(values[0].dtype)
  return context, (weights, values, kept, total, _looks(masks))


def _mix_backward(residuals, gradient):
  weights, values, kept, total, looks = residuals
  gradient = gradient.astype(jnp.float32) / total
  of_values = gradient.astype(values[0].dtype)
  # Zero where a query looks nowhere, and with it all that its scores get.
  of_scores = gradient
  if looks is not None:
    of_scores = jnp.where(looks, gradient, 0.0)
  of_scores = of_scores.astype(values[0].dtype)
  of_weights = [
    _times(_folded(products, of_scores, value), factor)
    for value, factor in zip(values, kept)
  ]
  # As a sum over keys and not as gradient times context, which is the same on
  # paper: a query that sees one key then has a gradient of exactly zero.
  mean = sum(
    (part * found).sum(axis=-1, keepdims=True)
    for part, found in zip(weights, of_weights)
  )
  mean /= total
  score_gradients = [
    part * (found - mean) for part, found in zip(weights, of_weights)
  ]
  value_gradients = []
  for part, value, factor in zip(weights, values, kept):
    rows = (*value.shape[:-2], -1)
    by_key = jnp.einsum(
      '...qk,...qm->...km',
      of_values.reshape(*rows, value.shape[-1]),
      _times(part, factor).reshape(*rows, value.shape[-2]),
    )
    value_gradients.append(jnp.swapaxes(by_key, -1, -2))
  return tuple(score_gradients), tuple(value_gradients), None, None


mix.defvjp(_mix_forward, _mix_backward)


def _weighed(weights, values):
  return jnp.einsum(
    '...qm,...mk->...qk', weights, values, preferred_element_type=jnp.float32
  )


def _folded(product, left, right):
  """The product of [..., X, A] and what the last of its axes `...` share."""
  folded = left.reshape(*right.shape[:-2], -1, left.shape[-1])
  result = product(folded, right)
  return result.reshape(*left.shape[:-1], result.shape[-1])


def _looks(masks):
  """Where a query may look at anything at all; None for everywhere.

  From the masks and not from the greatest score: one use more of that, and XLA
  computes masks and bias a second time for the exponentials.
  """
  if any(mask is None for mask in masks):
    return None
  return functools.reduce(
    jnp.logical_or, [mask.any(axis=-1, keepdims=True) for mask in masks]
  )


def _times(weights: Array, factor: Array | None) -> Array:
  return weights if factor is None else (weights * factor).astype(weights.dtype)
