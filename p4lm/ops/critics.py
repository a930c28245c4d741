r"""Soft values: what actions and states are worth when KL to a prior costs.

With prior p, KL coefficient alpha and a reward at the end, the best policy has
(P4LM, Eqs. 6-8; a state is a prompt and the tokens so far, an action a token)

    Q(s, a)  = r(s, a) + V(s')                       V = 0 after the last token
    V(s)     = alpha log sum_a p(a|s) exp(Q(s, a) / alpha)
    mu*(a|s) = p(a|s) exp((Q(s, a) - V(s)) / alpha)

and V(s_0) is its objective, E[r] - alpha KL. An action that the prior never
takes (log-probability -inf) counts nowhere, whatever its Q.
"""

import jax
import jax.numpy as jnp

from p4lm.ops.masks import aggregate, at_least_float32, hide, masked_mean
from p4lm.typing import Array, Bool, Float, Int


def optimal_logits(
  q_values: Float[Array, '*B V'],
  prior_logps: Float[Array, '*B V'],
  *,
  alpha: float,
  support: Bool[Array, '*B V'] | None = None,
) -> Float[Array, '*B V']:
  """log p + Q / alpha: unnormalised log-probabilities of mu*.

  Args:
    q_values: float [..., V]; where the prior is -inf or the support False,
      anything.
    prior_logps: float [..., V], -inf for what is never taken.
    alpha: above 0.
    support: bool [..., V], the actions that count; None for all. That is the
      in-sample softmax (Xiao et al. 2023): an action without data has a Q that
      no data contradicts.
  Returns:
    float32 [..., V], -inf for what does not count.
  """
  counts = prior_logps > -jnp.inf
  if support is not None:
    counts &= support
  logits = hide(prior_logps, counts) + hide(q_values, counts) / alpha
  return jnp.where(counts, logits, -jnp.inf)


def optimal_state_values(
  q_values: Float[Array, '*B V'],
  prior_logps: Float[Array, '*B V'],
  *,
  alpha: float,
  support: Bool[Array, '*B V'] | None = None,
) -> Float[Array, '*B']:
  r"""V(s) = alpha log sum_a p(a|s) exp(Q(s, a) / alpha), P4LM's Eq. 7.

  >>> q, p = jnp.array([[0., 2.]]), jnp.log(jnp.array([[.5, .5]]))
  >>> print(f'{optimal_state_values(q, p, alpha=2.0)[0]:.4f}')  # 2 log(1.859)
  1.2402

  Arguments as of `optimal_logits`; a state none of whose actions counts has
  -inf.
  """
  logits = optimal_logits(q_values, prior_logps, alpha=alpha, support=support)
  return alpha * jax.nn.logsumexp(logits, axis=-1)


def policy_state_values(
  q_values: Float[Array, '*B V'],
  policy_logps: Float[Array, '*B V'],
  prior_logps: Float[Array, '*B V'],
  *,
  alpha: float,
) -> Float[Array, '*B']:
  r"""V of a given policy: sum_a pi(a|s) (Q(s, a) - alpha log(pi / p)(a|s)).

  At most `optimal_state_values`, and equal at mu*. Actions that the policy
  never takes add nothing; one that only the prior never takes makes it -inf.
  """
  taken = policy_logps > -jnp.inf
  policy_logps = at_least_float32(policy_logps)
  gaps = hide(policy_logps, taken) - hide(prior_logps, taken)
  gains = hide(q_values, taken) - alpha * gaps
  chances = jnp.where(taken, jnp.exp(policy_logps), 0.0)
  return jnp.sum(chances * gains, axis=-1)


def action_values(
  q_values: Float[Array, '*B V'], actions: Int[Array, '*B']
) -> Float[Array, '*B']:
  """Q of the actions taken."""
  return jnp.take_along_axis(q_values, actions[..., None], axis=-1)[..., 0]


def temporal_targets(
  token_rewards: Float[Array, 'B L'],
  state_values: Float[Array, 'B L'],
  *,
  response_mask: Bool[Array, 'B L'],
) -> Float[Array, 'B L']:
  """r(s_l, a_l) + V(s_{l+1}), with V = 0 after the last counted token.

  >>> print(temporal_targets(jnp.array([[0., 3.]]), jnp.array([[5., 7.]]),
  ...                        response_mask=jnp.ones((1, 2), bool)))
  [[7. 3.]]

  Returns:
    float32 [B, L], zero where masked; no gradient flows through it.
  """
  following = hide(state_values, response_mask)
  following = jnp.pad(following[:, 1:], ((0, 0), (0, 1)))
  targets = hide(token_rewards, response_mask) + following
  return jax.lax.stop_gradient(hide(targets, response_mask))


def critic_loss(
  estimates: Float[Array, '*K B L'],
  targets: Float[Array, 'B L'],
  *,
  mask: Bool[Array, 'B L'],
) -> Float[Array, '']:
  """Half the squared error, mean over counted tokens, summed over critics.

  Args:
    estimates: float [B, L] or [K, B, L], differentiable.
    targets: float [B, L], constants.
    mask: bool [B, L]; where False anything may stand in the others.
  Returns:
    float32 []; zero when nothing is counted.
  """
  targets = hide(jax.lax.stop_gradient(targets), mask)
  each = estimates.reshape(-1, *targets.shape)
  errors = hide(each, mask[None]) - targets[None]
  return jnp.sum(masked_mean(jnp.square(errors), mask[None], axis=(1, 2))) / 2


def pessimistic(
  q_values: Float[Array, 'K *B V'], how: str = 'min'
) -> Float[Array, '*B V']:
  """One Q of K critics: their 'min' (twins: Fujimoto et al. 2018) or 'mean'.

  Raises:
    ValueError: another `how`.
  """
  if how == 'min':
    return jnp.min(q_values, axis=0)
  if how == 'mean':
    return jnp.mean(q_values, axis=0)
  raise ValueError(f"how must be 'min' or 'mean', got {how!r}")


def conservative_penalty(
  q_values: Float[Array, 'K B L V'],
  actions: Int[Array, 'B L'],
  prior_logps: Float[Array, 'B L V'],
  *,
  response_mask: Bool[Array, 'B L'],
  alpha: float = 1.0,
) -> Float[Array, '']:
  r"""How far Q stands out above the actions that were taken (CQL).

      penalty = mean of alpha log sum_a p(a|s) exp(Q(s, a) / alpha) - Q(s, a_l)

  over counted tokens, summed over critics. Kumar et al. 2020, Eq. 4, with the
  prior p in place of the uniform distribution: CQL(rho) with rho = p. Its
  gradient lowers Q where the soft-optimal policy goes and raises it where the
  data are.

  Returns:
    float32 []; zero when nothing is counted.
  """
  mask = response_mask[None]
  # Padding is replaced before the sums: NaN would spoil the gradient there.
  q_values = hide(q_values, mask[..., None])
  prior_logps = hide(prior_logps, response_mask[..., None])
  reach = optimal_state_values(
    q_values, jnp.broadcast_to(prior_logps, q_values.shape), alpha=alpha
  )
  taken = action_values(
    q_values, jnp.broadcast_to(actions, q_values.shape[:-1])
  )
  return jnp.sum(masked_mean(reach - taken, mask, axis=(1, 2)))


def distillation_loss(
  policy_logps: Float[Array, 'B L V'],
  target_logits: Float[Array, 'B L V'],
  *,
  response_mask: Bool[Array, 'B L'],
  direction: str = 'reverse',
  aggregation: str = 'response',
) -> Float[Array, '']:
  r"""KL between the policy and the policy of the target logits, token by token.

      reverse   KL(pi || mu)   P4LM's Eq. 9, and its Eq. 5 over alpha when the
                               actions are the policy's
      forward   KL(mu || pi)   finite where mu leaves actions out

  at the states of the data.

  Args:
    policy_logps: float [B, L, V], normalised, differentiable.
    target_logits: float [B, L, V], constants, -inf for no chance.
    response_mask: bool [B, L].
    direction: 'reverse' or 'forward'.
    aggregation: see `masks.aggregate`.
  Returns:
    float32 [], nats; zero when nothing is counted.
  Raises:
    ValueError: an unknown direction.
  """
  if direction not in ('reverse', 'forward'):
    raise ValueError(
      f"direction must be 'reverse' or 'forward', got {direction!r}"
    )
  counted = response_mask[..., None]
  # Padding is replaced before any sum over it: NaN would spoil the gradient.
  policy_logps = hide(policy_logps, counted)
  target_logits = hide(jax.lax.stop_gradient(target_logits), counted)
  target_logps = jax.nn.log_softmax(target_logits, axis=-1)
  first, second = policy_logps, target_logps
  if direction == 'forward':
    first, second = target_logps, policy_logps
  divergences = _divergences(first, second)
  return aggregate(divergences, response_mask, aggregation)


def _divergences(first, second):
  """KL of the last axis; where `first` has no chance nothing is added."""
  possible = first > -jnp.inf
  gaps = hide(first, possible) - hide(second, possible)
  return jnp.sum(jnp.where(possible, jnp.exp(first), 0.0) * gaps, axis=-1)
