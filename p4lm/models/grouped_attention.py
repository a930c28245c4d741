"""Attention of grouped queries over keys that lie in several places.

A decoder-only model looks at its prompt, whose keys are kept once for all of
the prompt's responses, and at the response, whose keys each row has of its
own:

  query of row r   ->  [ keys of prompt r // G | keys of row r ]
  softmax over          both together

The two parts are never put into one array, which would copy the prompt's keys
for every response and at every step.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from p4lm.models.attention import MASKED
from p4lm.models.layers import dropout
from p4lm.models.library_attention import OWN, dot_product_attention
from p4lm.typing import Array, Bool, Float, Key


@dataclasses.dataclass(frozen=True)
class KeyPart:
  """Keys and values of one place.

  Attributes:
    keys, values: float [S,J,M,K] of J key heads; R rows of queries are a
      multiple of S, those of a set in consecutive rows.
    mask: bool [R,Q,M], True where a query may look; R may be 1.
  """

  keys: Array
  values: Array
  mask: Array


def attend_parts(
  query: Float[Array, 'R H Q K'],
  parts: Sequence[KeyPart],
  *,
  scale: float,
  soft_cap: float = 0.0,
  dropout_rate: float = 0.0,
  dropout_key: Key[Array, ''] | None = None,
  implementation: str = OWN,
) -> Float[Array, 'R H Q K']:
  """softmax(cap(scale q k^T)) v over all parts together.

  cap(s) = soft_cap tanh(s / soft_cap), or s where soft_cap is 0 (Gemma 2).
  Scores and softmax are float32 whatever the inputs' type. A query that may
  look nowhere gets the mean of the values.

  Args:
    query: of H heads, H a multiple of the key heads.
    parts: at least one.
    scale: factor of the scores.
    soft_cap: bound of the scores, 0 for none.
    dropout_rate: of the attention weights.
    dropout_key: None for no dropout.
    implementation: one of `library_attention`, for keys that lie in one place
      and a query's own; others than 'own' have neither cap nor dropout.
  """
  if implementation != OWN and _is_plain(query, parts):
    [part] = parts
    return dot_product_attention(
      query,
      part.keys,
      part.values,
      mask=part.mask[:, None],
      scale=scale,
      implementation=implementation,
    )
  scores = [
    _masked(_capped(_scores(query, part.keys) * scale, soft_cap), part.mask)
    for part in parts
  ]
  widths = [part.keys.shape[2] for part in parts]
  joined = scores[0] if len(parts) == 1 else jnp.concatenate(scores, axis=-1)
  weights = jax.nn.softmax(joined, axis=-1).astype(parts[0].values.dtype)
  weights = dropout(weights, dropout_rate, dropout_key)
  context, start = None, 0
  for part, width in zip(parts, widths):
    taken = jax.lax.slice_in_dim(weights, start, start + width, axis=-1)
    found = _mixed(taken, part.values)
    context = found if context is None else context + found
    start += width
  return context


def _is_plain(query: Array, parts: Sequence[KeyPart]) -> bool:
  """Whether each row of queries has keys of its own, all in one place."""
  return len(parts) == 1 and parts[0].keys.shape[0] == query.shape[0]


def _scores(
  query: Float[Array, 'R H Q K'], keys: Float[Array, 'S J M K']
) -> Float[Array, 'R H Q M']:
  grouped = _by_key_head(query, *keys.shape[:2])
  scores = jnp.einsum(
    'sjxk,sjmk->sjxm', grouped, keys, preferred_element_type=jnp.float32
  )
  return _by_row(scores, query.shape[:3])


def _mixed(
  weights: Float[Array, 'R H Q M'], values: Float[Array, 'S J M K']
) -> Float[Array, 'R H Q K']:
  grouped = _by_key_head(weights, *values.shape[:2])
  context = jnp.einsum('sjxm,sjmk->sjxk', grouped, values)
  return _by_row(context, weights.shape[:3])


def _by_key_head(x: Array, sets: int, key_heads: int) -> Array:
  """[R,H,Q,W] -> [S,J,X,W]: everything that asks one head of one set.

  X runs over heads before copies: where heads are split over devices and
  share one key head, X is split as they are.
  """
  rows, heads, length, width = x.shape
  copies, group = rows // sets, heads // key_heads
  x = x.reshape(sets, copies, key_heads, group, length, width)
  return jnp.moveaxis(x, 1, 3).reshape(sets, key_heads, -1, width)


def _by_row(x: Array, shape: tuple[int, int, int]) -> Array:
  """Undoes `_by_key_head`: [S,J,X,W] -> [R,H,Q,W]."""
  (rows, heads, length), (sets, key_heads, _, width) = shape, x.shape
  copies, group = rows // sets, heads // key_heads
  x = x.reshape(sets, key_heads, group, copies, length, width)
  return jnp.moveaxis(x, 3, 1).reshape(rows, heads, length, width)


def _capped(scores: Array, soft_cap: float) -> Array:
  return jnp.tanh(scores / soft_cap) * soft_cap if soft_cap else scores


def _masked(
  scores: Float[Array, 'R H Q M'], mask: Bool[Array, '#R Q M']
) -> Float[Array, 'R H Q M']:
  return jnp.where(mask[:, None], scores, MASKED)
