"""Surrogate losses whose gradient is a policy gradient."""

import jax
import jax.numpy as jnp

from p4lm.ops.masks import (
  aggregate,
  hide,
  masked_mean,
  require_same_shape,
)
from p4lm.typing import Array, Bool, Float


def reinforce_loss(
  policy_logps: Float[Array, '...'],
  advantages: Float[Array, '...'],
  *,
  response_mask: Bool[Array, '...'],
  aggregation: str = 'response',
) -> Float[Array, '']:
  r"""Surrogate of REINFORCE: its gradient, not its value, has a meaning.

      loss = -(1/M) sum_b sum_l A[b, l] log policy(y_l | y_<l, x)

  with A held constant and M the number of rows with a counted token
  (aggregation 'response'): for samples of the policy, minus its gradient is an
  unbiased estimate of grad E[return] (Williams 1992). Aggregation 'token'
  divides by the number of counted tokens of the batch instead, which keeps
  the direction but lets the step size follow the inverse of the length;
  'response_mean' divides each response by its own length, which changes the
  direction where lengths differ (see `masks.aggregate`).

  >>> loss = reinforce_loss(jnp.array([[-1., -2.]]), jnp.array([[3., 3.]]),
  ...                       response_mask=jnp.array([[True, True]]))
  >>> print(loss)
  9.0

  Args:
    policy_logps: float [B, L], differentiable.
    advantages: float [B, L]; no gradient flows into them.
    response_mask: bool [B, L]; where False anything may stand in the others.
    aggregation: one of `masks.AGGREGATIONS`.
  Returns:
    float32 []; zero when nothing is counted.
  Raises:
    ValueError: shapes differ, or an unknown aggregation.
  """
  require_same_shape(
    policy_logps=policy_logps,
    advantages=advantages,
    response_mask=response_mask,
  )
  gains = hide(policy_logps, response_mask) * hide(
    jax.lax.stop_gradient(advantages), response_mask
  )
  return -aggregate(gains, response_mask, aggregation)


def ppo_clip_loss(
  policy_logps: Float[Array, '...'],
  behavior_logps: Float[Array, '...'],
  advantages: Float[Array, '...'],
  *,
  response_mask: Bool[Array, '...'],
  clip_low: float = 0.2,
  clip_high: float = 0.2,
  aggregation: str = 'response',
) -> Float[Array, '']:
  r"""PPO's clipped surrogate over tokens (Schulman et al. 2017, eq. 7).

      ratio = exp(policy_logps - behavior_logps)
      loss  = -(1/M) sum_b sum_l min(ratio A, clip(ratio, 1 - low, 1 + high) A)

  M as in `reinforce_loss`. While the policy is still the behavior policy the
  gradient is that of REINFORCE; a token whose ratio has left the clip range in
  the direction that its advantage pushes has none.

  >>> one = jnp.ones((1, 1))
  >>> loss = ppo_clip_loss(jnp.log(2 * one), 0 * one, one,
  ...                      response_mask=one > 0)
  >>> print(f'{loss:.1f}')
  -1.2

  Args:
    policy_logps: float [B, L], differentiable.
    behavior_logps: float [B, L], of the policy that sampled.
    advantages: float [B, L], constants.
    response_mask: bool [B, L].
    clip_low: in [0, 1), how far below 1 the ratio counts.
    clip_high: 0 or more, how far above 1.
    aggregation: one of `masks.AGGREGATIONS`.
  Returns:
    float32 []; zero when nothing is counted.
  Raises:
    ValueError: shapes differ, or an option is out of its range.
  """
  require_same_shape(
    policy_logps=policy_logps,
    behavior_logps=behavior_logps,
    advantages=advantages,
    response_mask=response_mask,
  )
  if not 0 <= clip_low < 1 or clip_high < 0:
    raise ValueError(
      'clip_low must be in [0, 1) and clip_high 0 or more, got '
      f'{clip_low} and {clip_high}'
    )
  ratio = importance_ratios(
    policy_logps, behavior_logps, response_mask=response_mask
  )
  advantages = hide(jax.lax.stop_gradient(advantages), response_mask)
  clipped = jnp.clip(ratio, 1 - clip_low, 1 + clip_high)
  gains = jnp.minimum(ratio * advantages, clipped * advantages)
  return -aggregate(gains, response_mask, aggregation)


def importance_ratios(
  policy_logps: Float[Array, 'B L'],
  behavior_logps: Float[Array, 'B L'],
  *,
  response_mask: Bool[Array, 'B L'],
) -> Float[Array, 'B L']:
  """policy / behavior of each token, 1 where masked. Differentiable."""
  behavior_logps = jax.lax.stop_gradient(behavior_logps)
  return jnp.exp(
    hide(policy_logps, response_mask) - hide(behavior_logps, response_mask)
  )


def clipped_share(
  policy_logps: Float[Array, '...'],
  behavior_logps: Float[Array, '...'],
  advantages: Float[Array, '...'],
  *,
  response_mask: Bool[Array, '...'],
  clip_low: float,
  clip_high: float,
) -> Float[Array, '']:
  """Share of counted tokens that `ppo_clip_loss` gives no gradient."""
  ratio = importance_ratios(
    policy_logps, behavior_logps, response_mask=response_mask
  )
  advantages = hide(advantages, response_mask)
  too_high = (ratio > 1 + clip_high) & (advantages > 0)
  too_low = (ratio < 1 - clip_low) & (advantages < 0)
  return masked_mean(too_high | too_low, response_mask)
