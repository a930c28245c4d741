r"""REINFORCE with a KL penalty to the anchor: P4LM's on-policy algorithm.

Maximises, over prompts x and responses y of the policy,

    J = E[ r(x, y) - kl_coefficient * sum_l log(policy / reference)(y_l) ]

whose optimum for a prompt is reference(y) exp(r(x, y) / kl_coefficient) / Z.
The gradient is estimated from G samples a prompt: each token's log-probability
times the response's return less a baseline, which is made of the other samples
or, as in the paper, learned.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from p4lm.errors import UserError
from p4lm.ops import advantages as advantage_ops
from p4lm.ops import masks, policy_gradient
from p4lm.rl.eos import rewards_at_end
from p4lm.rl.learner import Learner, Workbench
from p4lm.rl.objective import (
  Objective,
  ScoreFn,
  capped_ratios,
  check_at_least,
  check_choices,
  kl_in_loss,
  learnable,
  loss_weight,
  token_penalties,
  update_metrics,
)
from p4lm.rl.on_policy import OnPolicyLearner
from p4lm.rl.rollouts import Rollout
from p4lm.rl.value_baseline import ValueConfig
from p4lm.typing import Array

_CHOICES = {
  'kl_estimator': ('k1', 'k2', 'k3'),
  'kl_in': ('reward', 'loss'),
  'baseline': ('none', 'batch_mean', 'group_mean', 'leave_one_out', 'value'),
  'standardise': ('none', 'batch', 'group'),
  'credit': ('response', 'to_go'),
  'aggregation': masks.AGGREGATIONS,
}


@dataclasses.dataclass(frozen=True)
class ReinforceConfig:
  """Every choice of the estimator; the defaults are unbiased for J.

  Attributes:
    kl_coefficient: beta, in reward units a nat.
    kl_estimator: k1, k2 or k3. In the reward only k1 gives the gradient of J.
    kl_in: 'reward' (paid token by token) or 'loss' (differentiated; k2 or k3).
    baseline: see `ops.advantages.baselines`; leave_one_out needs G >= 2.
      'value' is learned: the state's value by a head on the anchor's hidden
      states, see `rl.value_baseline`. Credit is then always to go.
    standardise: advantages to mean 0 and deviation 1 per 'batch' or 'group'.
    credit: 'response' or 'to_go', which part of the KL a token answers for.
    aggregation: 'response' sums over tokens and averages over responses, as J
      does; 'response_mean' and 'token' average over tokens.
    entropy_coefficient: adds this much of the policy's entropy to J.
    ratio_cap: corrects samples of a slightly other policy by the importance
      ratio of each token, at most this; None for no correction.
    value_decay: lambda of generalised advantages with a learned baseline; 1 is
      unbiased.
    value: how a learned baseline is learned.
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
  value_decay: float = 1.0
  value: ValueConfig = ValueConfig()

  updates_per_step: ClassVar[int] = 1

  def __post_init__(self):
    name = type(self).__name__
    check_choices(self, _CHOICES)
    check_at_least(self, 0, 'kl_coefficient', 'entropy_coefficient')
    if self.kl_in == 'loss' and self.kl_estimator == 'k1':
      raise UserError(
        f'{name}: k1 in the loss has an expected gradient of zero and '
        "would hold nothing back: set kl_in='reward', or kl_estimator k2 or k3"
      )
    if self.ratio_cap is not None:
      check_at_least(self, 1, 'ratio_cap')
    if not 0 <= self.value_decay <= 1:
      raise UserError(
        f'{name}.value_decay must be in [0, 1], got {self.value_decay}'
      )
    if self.baseline == 'value' and self.standardise == 'group':
      raise UserError(
        f"{name}: standardise='group' is of whole responses, a learned "
        "baseline of tokens: set standardise to 'batch' or 'none'"
      )

  def objective(self, score_fn: ScoreFn) -> Objective:
    """One update a rollout."""
    return Objective(make_reinforce_loss(score_fn, self))

  def learner(self, bench: Workbench) -> Learner:
    """Learns from each rollout as it comes."""
    values = self.value if self.baseline == 'value' else None
    return OnPolicyLearner(
      bench,
      self.objective(bench.score_fn),
      values and values.make(bench, self),
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
    valid = learnable(rollout, constant_logps)
    mask = rollout.response_mask & valid[:, None]
    advantages = reinforce_advantages(rollout, constant_logps, valid, config)
    weighted = advantages * capped_ratios(
      constant_logps, rollout.behavior_logps, mask, config.ratio_cap
    )
    loss = policy_gradient.reinforce_loss(
      policy_logps,
      weighted,
      response_mask=mask,
      aggregation=config.aggregation,
    )
    if config.kl_in == 'loss':
      loss += kl_in_loss(
        policy_logps,
        rollout,
        mask,
        coefficient=config.kl_coefficient,
        estimator=config.kl_estimator,
      )
    metrics = update_metrics(rollout, constant_logps, advantages, valid, mask)
    metrics['loss_weight'] = loss_weight(mask, config.aggregation)
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
  Raises:
    ValueError: a learned baseline, and the rollout has no values.
  """
  mask = rollout.response_mask & valid[:, None]
  penalties = token_penalties(rollout, policy_logps, mask, config)
  rewards = masks.hide(rollout.rewards, valid)
  if config.baseline == 'value':
    return _value_advantages(rollout, rewards, penalties, mask, config)
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


def _value_advantages(rollout, rewards, penalties, mask, config):
  if rollout.values is None:
    raise ValueError(
      "baseline='value' needs rollouts with a critic's values; got none"
    )
  advantages = advantage_ops.generalised_advantages(
    rewards_at_end(rewards, mask) - penalties,
    rollout.values,
    response_mask=mask,
    decay=config.value_decay,
  )
  if config.standardise == 'none':
    return advantages
  mean, deviation = advantage_ops.token_location_and_scale(advantages, mask)
  return masks.hide((advantages - mean) / deviation, mask)
