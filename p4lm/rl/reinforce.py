r"""REINFORCE with a KL penalty to the anchor: P4LM's on-policy algorithm.

Maximises, over prompts x and responses y of the policy,

    J = E[ r(x, y) - kl_coefficient * sum_l log(policy / reference)(y_l) ]

whose optimum for a prompt is reference(y) exp(r(x, y) / kl_coefficient) / Z.
The gradient is estimated from G samples a prompt: each token's log-probability
times the response's return less a baseline of the other samples.

Of the paper's method this leaves out the learned value baseline; leave-one-out
needs no second network and is unbiased as well.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from p4lm.errors import UserError
from p4lm.ops import advantages as advantage_ops
from p4lm.ops import kl, logprobs, masks, policy_gradient
from p4lm.rl.rollouts import Rollout
from p4lm.typing import Array

_CHOICES = {
  'kl_estimator': ('k1', 'k2', 'k3'),
  'kl_in': ('reward', 'loss'),
  'baseline': ('none', 'batch_mean', 'group_mean', 'leave_one_out'),
  'standardise': ('none', 'batch', 'group'),
  'credit': ('response', 'to_go'),
  'aggregation': ('response', 'token'),
}


@dataclasses.dataclass(frozen=True)
class ReinforceConfig:
  """Every choice of the estimator; the defaults are unbiased for J.

  Attributes:
    kl_coefficient: beta, in reward units a nat.
    kl_estimator: k1, k2 or k3. In the reward only k1 gives the gradient of J.
    kl_in: 'reward' (paid token by token) or 'loss' (differentiated; k2 or k3).
    baseline: see `ops.advantages.baselines`; leave_one_out needs G >= 2.
    standardise: advantages to mean 0 and deviation 1 per 'batch' or 'group'.
    credit: 'response' or 'to_go', which part of the KL a token answers for.
    aggregation: 'response' sums over tokens and averages over responses, as J
      does; 'token' averages over tokens.
    entropy_coefficient: adds this much of the policy's entropy to J.
    ratio_cap: corrects samples of a slightly other policy by the importance
      ratio of each token, at most this; None for no correction.
  """

  kl_coefficient: float = 0.1
  kl_estimator: str = 'k1'
  kl_in: str = 'reward'
  baseline: str = 'leave_one_out'
  standardise: str = 'none'
  credit: str = 'response'
  aggregation: str = 'response'
  entropy_coefficient: float = 0.0
  ratio_cap: float | None = None

  def __post_init__(self):
    for name, known in _CHOICES.items():
      if getattr(self, name) not in known:
        raise UserError(
          f'ReinforceConfig.{name} must be one of {", ".join(known)}, got '
          f'{getattr(self, name)!r}'
        )
    for name in ('kl_coefficient', 'entropy_coefficient'):
      if not getattr(self, name) >= 0:
        raise UserError(
          f'ReinforceConfig.{name} must be 0 or more, got {getattr(self, name)}'
        )
    if self.kl_in == 'loss' and self.kl_estimator == 'k1':
      raise UserError(
        'ReinforceConfig: k1 in the loss has an expected gradient of zero and '
        "would hold nothing back: set kl_in='reward', or kl_estimator k2 or k3"
      )
    if self.ratio_cap is not None and not self.ratio_cap >= 1:
      raise UserError(
        f'ReinforceConfig.ratio_cap must be 1 or more, got {self.ratio_cap}'
      )


def make_reinforce_loss(
  score_fn: Callable[[Any, Any, Rollout], Array],
  config: ReinforceConfig | None = None,
) -> Callable[[Any, Any, Rollout, Array], tuple[Array, dict[str, Array]]]:
  """The loss of a train step on rollouts.

  Minus its expected gradient, for samples of the policy, is that of J (with
  the default choices, and for the samples that are valid). A sample is left
  out and counted if its reward is not valid or if the learner gives one of its
  tokens no probability at all, so that it cannot be replayed.

  Args:
    score_fn: (params, frozen, rollout) -> the policy's log-probabilities
      [B, L], under the distribution that was sampled from.
    config: the estimator's choices.
  Returns:
    loss_fn(params, frozen, rollout, key) -> (loss, metrics).
  """
  config = config or ReinforceConfig()

  def loss_fn(params, frozen, rollout, key):
    del key
    policy_logps = score_fn(params, frozen, rollout)
    constant_logps = jax.lax.stop_gradient(policy_logps)
    valid = rollout.valid & _can_be_replayed(constant_logps, rollout)
    mask = rollout.response_mask & valid[:, None]
    advantages = reinforce_advantages(rollout, constant_logps, valid, config)
    weighted = advantages * _importance_weights(
      constant_logps, rollout, mask, config
    )
    loss = policy_gradient.reinforce_loss(
      policy_logps,
      weighted,
      response_mask=mask,
      aggregation=config.aggregation,
    )
    if config.kl_in == 'loss':
      loss += config.kl_coefficient * kl.kl_loss(
        policy_logps,
        rollout.reference_logps,
        mask=mask,
        estimator=config.kl_estimator,
      )
    metrics = _metrics(rollout, constant_logps, advantages, valid, mask)
    return loss, metrics

  return loss_fn


def reinforce_advantages(
  rollout: Rollout,
  policy_logps: Array,
  valid: Array,
  config: ReinforceConfig,
) -> Array:
  """Advantages float32 [B, L] of a rollout, zero where masked or not valid.

  Args:
    rollout: B samples.
    policy_logps: float [B, L], constants.
    valid: bool [B], the samples to learn from.
    config: KL, baseline, credit and standardisation.
  """
  mask = rollout.response_mask & valid[:, None]
  penalties = config.entropy_coefficient * masks.hide(policy_logps, mask)
  if config.kl_in == 'reward':
    penalties += config.kl_coefficient * kl.kl_estimates(
      policy_logps,
      rollout.reference_logps,
      mask=mask,
      estimator=config.kl_estimator,
    )
  rewards = masks.hide(rollout.rewards, valid)
  returns = rewards - jnp.sum(penalties, axis=1)
  groups = {'valid': valid, 'group_size': rollout.group_size}
  baseline = advantage_ops.baselines(
    returns, baseline=config.baseline, **groups
  )
  mean, deviation = advantage_ops.location_and_scale(
    returns - baseline, over=config.standardise, **groups
  )
  advantages = advantage_ops.token_advantages(
    rewards,
    baseline + mean,
    penalties,
    response_mask=mask,
    credit=config.credit,
  )
  return advantages / deviation[:, None]


def _can_be_replayed(policy_logps, rollout):
  return jnp.all(jnp.isfinite(policy_logps) | ~rollout.response_mask, axis=1)


def _importance_weights(policy_logps, rollout, mask, config):
  if config.ratio_cap is None:
    return jnp.ones((), policy_logps.dtype)
  ratios = policy_gradient.importance_ratios(
    policy_logps, rollout.behavior_logps, response_mask=mask
  )
  return jnp.minimum(ratios, config.ratio_cap)


def _metrics(rollout, policy_logps, advantages, valid, mask):
  def per_response(values):
    return masks.masked_mean(jnp.sum(values, axis=1), valid)

  def divergence(estimator):
    return per_response(
      kl.kl_estimates(
        policy_logps, rollout.reference_logps, mask=mask, estimator=estimator
      )
    )

  drift = logprobs.logprob_drift(policy_logps, rollout.behavior_logps, mask)
  return {
    'reward': masks.masked_mean(rollout.rewards, valid),
    'kl': divergence('k1'),
    'kl_k3': divergence('k3'),
    'token_entropy': -masks.masked_mean(policy_logps, mask),
    'response_length': per_response(mask),
    'advantage_std': masks.masked_std(advantages, mask),
    'share_valid': jnp.mean(valid, dtype=policy_logps.dtype),
    'tokens': (rollout.prompt_tokens != 0).sum() + rollout.response_mask.sum(),
    **drift,
  }
