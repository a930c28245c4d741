"""Regression of relative rewards: REBEL's loss on pairs of responses."""

import jax
import jax.numpy as jnp

from p4lm.ops.masks import hide, masked_mean, require_same_shape
from p4lm.typing import Array, Bool, Float

PAIRS = ('neighbours', 'all')


def rebel_loss(
  policy_logps: Float[Array, ' B'],
  previous_logps: Float[Array, ' B'],
  rewards: Float[Array, ' B'],
  *,
  valid: Bool[Array, ' B'],
  group_size: int,
  eta: float,
  pairs: str = 'all',
) -> Float[Array, '']:
  r"""Squared error of log-ratio differences against reward differences.

  For two responses y, y' to one prompt, with d(y) = log pi(y) - log pi_t(y)
  (Gao et al. 2024, REBEL):

      loss = mean over pairs of ((d(y) - d(y')) - eta (r(y) - r(y')))^2

  This is eta^2 times the paper's Eq. 6, as in its published code, so that a
  learning rate means the same for every eta. The loss is zero at
  pi proportional to pi_t exp(eta r), whatever constant a prompt's rewards are
  shifted by. At pi = pi_t, for independent samples of it, the expected
  gradient is -4 eta grad E[r].

  >>> logps, previous = jnp.log(jnp.array([0.5, 0.25])), jnp.zeros(2)
  >>> loss = rebel_loss(logps, previous, jnp.array([3., 1.]),
  ...   valid=jnp.ones(2, bool), group_size=2, eta=0.5)
  >>> print(f'{loss:.4f}')  # (log 2 - 1)^2
  0.0942

  Args:
    policy_logps: float [B] of whole responses, differentiable.
    previous_logps: float [B], under pi_t; constants.
    rewards: float [B], constants.
    valid: bool [B]; a pair counts if both of its rows are valid.
    group_size: G; row b * G + g is sample g of prompt b.
    eta: above 0, how far one update goes.
    pairs: 'neighbours' (samples 0 and 1, 2 and 3, ... of a prompt; G even) or
      'all' pairs of a prompt.
  Returns:
    float32 []; zero when no pair is valid.
  Raises:
    ValueError: shapes differ, or an option is out of its range.
  """
  require_same_shape(
    policy_logps=policy_logps,
    previous_logps=previous_logps,
    rewards=rewards,
    valid=valid,
  )
  if not eta > 0:
    raise ValueError(f'eta must be above 0, got {eta}')
  log_ratios = hide(policy_logps, valid) - hide(
    jax.lax.stop_gradient(previous_logps), valid
  )
  residuals = log_ratios - eta * hide(jax.lax.stop_gradient(rewards), valid)
  first, second = _pairs(residuals, group_size, pairs)
  valid_first, valid_second = _pairs(valid, group_size, pairs)
  return masked_mean(jnp.square(first - second), valid_first & valid_second)


def pair_count(
  valid: Bool[Array, ' B'], *, group_size: int, pairs: str = 'all'
) -> Float[Array, '']:
  """How many pairs `rebel_loss` is the mean of."""
  first, second = _pairs(valid, group_size, pairs)
  return jnp.sum(first & second, dtype=jnp.float32)


def _pairs(values, group_size, pairs):
  if group_size < 2 or values.shape[0] % group_size:
    raise ValueError(
      'pairs need 2 or more samples a prompt, and group_size must divide the '
      f'{values.shape[0]} rows: got {group_size}'
    )
  groups = values.reshape(-1, group_size)
  if pairs == 'all':
    rows, columns = jnp.triu_indices(group_size, k=1)
    return groups[:, rows], groups[:, columns]
  if pairs != 'neighbours':
    raise ValueError(f"pairs must be 'neighbours' or 'all', got {pairs!r}")
  if group_size % 2:
    raise ValueError(f'neighbours need an even group_size, got {group_size}')
  return groups[:, ::2], groups[:, 1::2]
