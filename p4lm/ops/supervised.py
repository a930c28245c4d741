"""Supervised losses: next tokens, binary labels, real-valued targets."""

import jax
import jax.numpy as jnp

from p4lm.ops.logprobs import token_logprobs
from p4lm.ops.masks import (
  hide,
  masked_mean,
  masked_std,
  require_same_shape,
)
from p4lm.typing import Array, Bool, Float, Int


def token_cross_entropy(
  logits: Float[Array, 'B L V'],
  tokens: Int[Array, 'B L'],
  *,
  response_mask: Bool[Array, 'B L'],
  z_loss: float = 0.0,
) -> Float[Array, '']:
  r"""Mean negative log-likelihood of the counted tokens.

      loss = (1/T) sum_{b,l} [-log p(y[b, l]) + z_loss (log Z[b, l])^2]

  over the T counted tokens of the batch, Z the softmax's normaliser; T5X's
  z-loss keeps log Z near 0, which low precision needs. Uniform logits give
  log V.

  >>> loss = token_cross_entropy(jnp.zeros((1, 2, 4)), jnp.array([[3, 0]]),
  ...                            response_mask=jnp.array([[True, False]]))
  >>> print(f'{loss:.4f}')
  1.3863

  Args:
    logits: float [B, L, V]; position l scores token l.
    tokens: int [B, L], in [0, V).
    response_mask: bool [B, L], False on padding, whose logits may be NaN.
    z_loss: 0 or more; T5X uses 1e-4.
  Returns:
    float32 [], nats a token; zero when none is counted.
  """
  logits = hide(logits, response_mask[..., None])
  losses = -token_logprobs(logits, tokens)
  if z_loss:
    losses += z_loss * jnp.square(jax.nn.logsumexp(logits, axis=-1))
  return masked_mean(losses, response_mask)


def token_accuracy(
  logits: Float[Array, 'B L V'],
  tokens: Int[Array, 'B L'],
  *,
  response_mask: Bool[Array, 'B L'],
) -> Float[Array, '']:
  """Share of counted tokens whose logit is the largest; ties are hits.

  A maximum is several times as fast as an arg max over a vocabulary.
  """
  chosen = jnp.take_along_axis(logits, tokens[..., None], axis=-1)[..., 0]
  hits = chosen >= logits.max(axis=-1)
  return masked_mean(hits, response_mask)


def binary_cross_entropy(
  logits: Float[Array, '...'],
  labels: Float[Array, '...'],
  *,
  example_mask: Bool[Array, '...'],
  label_smoothing: float = 0.0,
) -> Float[Array, '']:
  r"""Mean cross-entropy of labels in [0, 1] against sigmoid(logits).

      loss = -(1/M) sum_b [y log sigmoid(z) + (1 - y) log sigmoid(-z)]

  Computed as softplus(z) - y z, exact for logits of any size. Smoothing s
  replaces y by (1 - s) y + s / 2.

  >>> loss = binary_cross_entropy(jnp.zeros(1), jnp.ones(1),
  ...                             example_mask=jnp.ones(1, bool))
  >>> print(f'{loss:.4f}')
  0.6931

  Args:
    logits: float [B].
    labels: float [B], 0, 1 or a probability.
    example_mask: bool [B], False on padding, which may hold any value.
    label_smoothing: in [0, 1).
  Returns:
    float32 [], nats an example; zero when none is kept.
  Raises:
    ValueError: shapes differ, or label_smoothing is out of its range.
  """
  require_same_shape(logits=logits, labels=labels, example_mask=example_mask)
  if not 0 <= label_smoothing < 1:
    raise ValueError(
      f'label_smoothing must be in [0, 1), got {label_smoothing}'
    )
  logits = hide(logits, example_mask)
  labels = hide(labels, example_mask)
  labels = (1 - label_smoothing) * labels + label_smoothing / 2
  return masked_mean(jax.nn.softplus(logits) - labels * logits, example_mask)


def binary_accuracy(
  logits: Float[Array, ' B'],
  labels: Float[Array, ' B'],
  *,
  example_mask: Bool[Array, ' B'],
) -> Float[Array, '']:
  """Share of kept examples where logit > 0 agrees with label > 1/2."""
  return masked_mean((logits > 0) == (labels > 0.5), example_mask)


def squared_error(
  predictions: Float[Array, '...'],
  targets: Float[Array, '...'],
  *,
  example_mask: Bool[Array, '...'],
) -> Float[Array, '']:
  """Mean of (prediction - target)^2 over the kept examples.

  >>> print(squared_error(jnp.array([1., 5.]), jnp.array([3., 5.]),
  ...                     example_mask=jnp.ones(2, bool)))
  2.0
  """
  return masked_mean(
    jnp.square(_errors(predictions, targets, example_mask)), example_mask
  )


def huber_loss(
  predictions: Float[Array, '...'],
  targets: Float[Array, '...'],
  *,
  example_mask: Bool[Array, '...'],
  delta: float = 1.0,
) -> Float[Array, '']:
  r"""Squared near the target, linear beyond `delta` (Huber 1964).

      e^2 / 2                    where |e| <= delta
      delta (|e| - delta / 2)    elsewhere

  Averaged over the kept examples; one far target then pulls no harder than
  delta.

  >>> print(huber_loss(jnp.array([0.5, 3.]), jnp.zeros(2),
  ...                  example_mask=jnp.ones(2, bool)))
  1.3125

  Raises:
    ValueError: shapes differ, or delta is not above 0.
  """
  if not delta > 0:
    raise ValueError(f'delta must be above 0, got {delta}')
  size = jnp.abs(_errors(predictions, targets, example_mask))
  near = jnp.minimum(size, delta)
  return masked_mean(near * (size - near / 2), example_mask)


def pearson_correlation(
  predictions: Float[Array, ' B'],
  targets: Float[Array, ' B'],
  *,
  example_mask: Bool[Array, ' B'],
) -> Float[Array, '']:
  """Linear correlation over the kept examples; 0 if either is constant.

  A metric: not meant to be differentiated.
  """
  predictions = hide(predictions, example_mask)
  targets = hide(targets, example_mask)
  deviations = (predictions - masked_mean(predictions, example_mask)) * (
    targets - masked_mean(targets, example_mask)
  )
  covariance = masked_mean(deviations, example_mask)
  spread = masked_std(predictions, example_mask) * masked_std(
    targets, example_mask
  )
  # Deviations of a constant from its mean are rounding, which correlates.
  defined = (
    (spread > 0)
    & _varies(predictions, example_mask)
    & _varies(targets, example_mask)
  )
  return jnp.where(defined, covariance / jnp.where(defined, spread, 1.0), 0.0)


def _varies(values, mask):
  lowest = jnp.min(values, initial=jnp.inf, where=mask)
  return lowest < jnp.max(values, initial=-jnp.inf, where=mask)


def _errors(predictions, targets, example_mask):
  require_same_shape(
    predictions=predictions, targets=targets, example_mask=example_mask
  )
  return hide(predictions, example_mask) - hide(targets, example_mask)
