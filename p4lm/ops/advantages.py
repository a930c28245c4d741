"""Advantages: rewards less a baseline, spread over the response tokens.

Rows are ordered as a sampler gives them: row b * G + g is sample g of prompt
b, so that [M * G] reshapes to [M, G] groups.
"""

import jax
import jax.numpy as jnp

from p4lm.ops.masks import (
  hide,
  masked_mean,
  masked_std,
  require_same_shape,
)
from p4lm.typing import Array, Bool, Float

# Keeps a division finite when all rewards of a group are equal.
_SPREAD_FLOOR = 1e-6


def baselines(
  returns: Float[Array, ' B'],
  *,
  valid: Bool[Array, ' B'],
  group_size: int,
  baseline: str,
) -> Float[Array, ' B']:
  r"""What to subtract from each return to lower the gradient's variance.

      none            0
      batch_mean      mean of the valid returns of the batch
      group_mean      mean of the valid returns of the row's group
      leave_one_out   mean of the *other* valid returns of the row's group

  Leave-one-out (Kool et al. 2019; Ahmadian et al. 2024) does not depend on the
  row's own sample, so the policy gradient stays unbiased. A mean that includes
  it shrinks the expected gradient by (n - 1) / n for n valid rows. A row that
  is alone in its group takes the mean of the other valid rows of the batch,
  which does not depend on it either, and 0 if there is none.

  >>> print(baselines(jnp.array([1., 2., 6.]), valid=jnp.ones(3, bool),
  ...                 group_size=3, baseline='leave_one_out'))
  [4.  3.5 1.5]

  Args:
    returns: float [B], any value where not valid.
    valid: bool [B], rows whose return means something.
    group_size: G, divides B.
    baseline: one of the four names above.
  Returns:
    float32 [B], of no meaning where not valid.
  Raises:
    ValueError: G does not divide B, leave-one-out of groups of one, or an
      unknown baseline.
  """
  groups, valid_groups = _grouped(returns, valid, group_size)
  if baseline == 'none':
    return jnp.zeros(returns.shape, groups.dtype)
  if baseline == 'batch_mean':
    return jnp.broadcast_to(masked_mean(returns, valid), returns.shape)
  if baseline == 'group_mean':
    means = masked_mean(groups, valid_groups, axis=1)
    return jnp.repeat(means, group_size)
  if baseline == 'leave_one_out':
    if group_size < 2:
      raise ValueError(
        'a leave_one_out baseline needs 2 or more samples a prompt, got '
        f'group_size {group_size}'
      )
    in_group = _mean_of_others(groups, valid_groups, axes=(1,))
    in_batch = _mean_of_others(groups, valid_groups, axes=(0, 1))
    others = jnp.sum(valid_groups, axis=1, keepdims=True) - valid_groups
    return jnp.where(others > 0, in_group, in_batch).reshape(returns.shape)
  raise ValueError(
    'baseline must be none, batch_mean, group_mean or leave_one_out, got '
    f'{baseline!r}'
  )


def location_and_scale(
  advantages: Float[Array, ' B'],
  *,
  valid: Bool[Array, ' B'],
  group_size: int,
  over: str,
) -> tuple[Float[Array, ' B'], Float[Array, ' B']]:
  """Mean and standard deviation by which advantages are standardised.

  Both are those of the valid rows of the whole batch (`over='batch'`) or of
  the row's group (`'group'`, Shao et al. 2024); `'none'` gives 0 and 1. The
  deviation divides by M and has 1e-6 added, so that equal advantages become
  zeros. A standardised gradient no longer follows the scale of the rewards, so
  its balance with a KL penalty in the loss shifts from batch to batch.

  >>> mean, deviation = location_and_scale(jnp.array([1., 3.]), over='batch',
  ...   valid=jnp.ones(2, bool), group_size=2)
  >>> print(mean, deviation.round(3))
  [2. 2.] [1. 1.]

  Returns:
    two float32 [B].
  Raises:
    ValueError: an unknown `over`, or G does not divide B.
  """
  groups, valid_groups = _grouped(advantages, valid, group_size)
  if over == 'none':
    zeros = jnp.zeros(advantages.shape, groups.dtype)
    return zeros, zeros + 1
  if over not in ('batch', 'group'):
    raise ValueError(f'over must be none, batch or group, got {over!r}')
  axis = 1 if over == 'group' else None
  mean, deviation = (
    jnp.broadcast_to(
      moment(groups, valid_groups, axis=axis).reshape(-1, 1), groups.shape
    ).reshape(-1)
    for moment in (masked_mean, masked_std)
  )
  return mean, deviation + _SPREAD_FLOOR


def token_location_and_scale(
  advantages: Float[Array, 'B L'], response_mask: Bool[Array, 'B L']
) -> tuple[Float[Array, ''], Float[Array, '']]:
  """As `location_and_scale` over the batch, where tokens have their own."""
  deviation = masked_std(advantages, response_mask)
  return masked_mean(advantages, response_mask), deviation + _SPREAD_FLOOR


def token_advantages(
  returns: Float[Array, ' B'],
  baseline: Float[Array, ' B'],
  token_penalties: Float[Array, 'B L'],
  *,
  response_mask: Bool[Array, 'B L'],
  credit: str = 'response',
) -> Float[Array, 'B L']:
  r"""Spreads each response's return over its tokens.

  The reward is earned at the end, so every token before it gets all of it.
  Penalties c (a KL estimate times its coefficient) are paid token by token:

      response   A[b, l] = R[b] - baseline[b] - sum_k c[b, k]
      to_go      A[b, l] = R[b] - baseline[b] - sum_{k >= l} c[b, k]

  Both give the same expected policy gradient: a token cannot change what was
  paid before it. `to_go` leaves that noise out.

  Args:
    returns: float [B], rewards at EOS.
    baseline: float [B].
    token_penalties: float [B, L], zero or anything where masked.
    response_mask: bool [B, L].
    credit: 'response' or 'to_go'.
  Returns:
    float32 [B, L], zero where masked.
  Raises:
    ValueError: an unknown credit.
  """
  penalties = hide(token_penalties, response_mask)
  if credit == 'response':
    paid = jnp.sum(penalties, axis=1, keepdims=True)
  elif credit == 'to_go':
    paid = jnp.cumsum(penalties[:, ::-1], axis=1)[:, ::-1]
  else:
    raise ValueError(f"credit must be 'response' or 'to_go', got {credit!r}")
  earned = (returns - baseline)[:, None]
  return hide(jnp.broadcast_to(earned, penalties.shape) - paid, response_mask)


def generalised_advantages(
  token_rewards: Float[Array, 'B L'],
  values: Float[Array, 'B L'],
  *,
  response_mask: Bool[Array, 'B L'],
  decay: float = 1.0,
) -> Float[Array, 'B L']:
  r"""Generalised advantage estimates (Schulman et al. 2016), undiscounted.

      delta[b, l] = r[b, l] + V[b, l + 1] - V[b, l]
      A[b, l]     = sum_{k >= 0} decay^k delta[b, l + k]

  with V = 0 after the last counted token, where the response is over. With
  decay 1 this is the return to go less V, unbiased whatever V is; smaller
  decays trade variance for the bias of V. `A + V` are the returns that V is
  regressed on.

  >>> ones = jnp.ones((1, 2), bool)
  >>> print(generalised_advantages(jnp.array([[0., 4.]]), jnp.array([[1., 2.]]),
  ...                              response_mask=ones, decay=0.5))
  [[2. 2.]]

  Args:
    token_rewards: float [B, L], what each token earned.
    values: float [B, L], of the state before each token; constants.
    response_mask: bool [B, L], counted tokens first.
    decay: lambda, in [0, 1].
  Returns:
    float32 [B, L], zero where masked.
  Raises:
    ValueError: shapes differ, or decay is out of its range.
  """
  require_same_shape(
    token_rewards=token_rewards, values=values, response_mask=response_mask
  )
  if not 0 <= decay <= 1:
    raise ValueError(f'decay must be in [0, 1], got {decay}')
  values = hide(jax.lax.stop_gradient(values), response_mask)
  following = jnp.pad(values[:, 1:], ((0, 0), (0, 1)))
  deltas = hide(token_rewards, response_mask) + following - values

  def before(later, delta):
    advantage = delta + decay * later
    return advantage, advantage

  start = jnp.zeros(deltas.shape[0], deltas.dtype)
  _, advantages = jax.lax.scan(before, start, deltas.T, reverse=True)
  return hide(advantages.T, response_mask)


def _grouped(values, valid, group_size):
  if group_size < 1 or values.shape[0] % group_size:
    raise ValueError(
      f'group_size must divide the {values.shape[0]} rows, got {group_size}'
    )
  shape = (-1, group_size)
  return hide(values, valid).reshape(shape), valid.reshape(shape)


def _mean_of_others(groups, valid_groups, *, axes):
  """Mean over `axes` of the valid entries other than each entry itself."""
  kept = hide(groups, valid_groups)
  total = jnp.sum(kept, axis=axes, keepdims=True) - kept
  count = jnp.sum(valid_groups, axis=axes, keepdims=True) - valid_groups
  return total / jnp.maximum(count, 1).astype(kept.dtype)
