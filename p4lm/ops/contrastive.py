"""Contrastive losses over a batch of matching pairs."""

import jax
import jax.numpy as jnp

from p4lm.ops.masks import at_least_float32, hide, masked_mean
from p4lm.typing import Array, Bool, Float


def info_nce_loss(
  query_embeddings: Float[Array, 'B D'],
  key_embeddings: Float[Array, 'B D'],
  *,
  example_mask: Bool[Array, ' B'],
  temperature: float = 0.1,
) -> Float[Array, '']:
  r"""InfoNCE with in-batch negatives (van den Oord et al. 2018, eq. 4).

  Row b of the queries matches row b of the keys; every other kept key is a
  negative. With s(b, c) the cosine of query b and key c over `temperature`:

      loss = -(1/M) sum_b log [exp s(b, b) / sum_c exp s(b, c)]

  The embeddings are scaled to unit length first (an all-zero one stays zero).
  B identical embeddings give log B; LangPTune's temperature is 0.1.

  >>> loss = info_nce_loss(jnp.ones((32, 4)), jnp.ones((32, 4)),
  ...                      example_mask=jnp.ones(32, bool))
  >>> print(f'{loss:.4f}')
  3.4657

  Args:
    query_embeddings: float [B, D].
    key_embeddings: float [B, D].
    example_mask: bool [B], False on padding, which is nobody's negative.
    temperature: above 0.
  Returns:
    float32 [], nats a query; zero when none is kept.
  Raises:
    ValueError: temperature is not above 0.
  """
  if not temperature > 0:
    raise ValueError(f'temperature must be above 0, got {temperature}')
  queries = unit_rows(hide(query_embeddings, example_mask[:, None]))
  keys = unit_rows(hide(key_embeddings, example_mask[:, None]))
  scores = queries @ keys.T / temperature
  # A padded row keeps every key, so that its softmax stays finite.
  allowed = example_mask[None, :] | ~example_mask[:, None]
  scores = jnp.where(allowed, scores, -jnp.inf)
  losses = jax.nn.logsumexp(scores, axis=1) - jnp.diagonal(scores)
  return masked_mean(losses, example_mask)


def unit_rows(embeddings: Float[Array, '*B D']) -> Float[Array, '*B D']:
  """Rows divided by their Euclidean norm; zero rows and their gradient stay 0.

  >>> print(unit_rows(jnp.array([[3.0, 4.0], [0.0, 0.0]])))
  [[0.6 0.8]
   [0.  0. ]]
  """
  embeddings = at_least_float32(embeddings)
  squares = jnp.sum(jnp.square(embeddings), axis=-1, keepdims=True)
  # The root of 0 has an infinite slope: zero rows divide by 1 instead.
  return embeddings / jnp.sqrt(jnp.where(squares > 0, squares, 1.0))
