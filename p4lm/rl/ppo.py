r"""PPO: several updates on one rollout, held near the policy that sampled it.

As REINFORCE, but the rollout is learned from `epochs` times in `minibatches`
parts. Advantages are computed once, with the parameters that the iteration
began with; a token's gradient stops once its probability has moved by more
than the clip range in the direction that its advantage pushes (Schulman et al.
2017). With one epoch of one minibatch the gradient is that of REINFORCE.

The ratio's denominator is the learner's own replay of the sampled tokens, so
that it is exactly 1 at first; what the sampler's arithmetic differs by is
corrected by `ratio_cap` as in REINFORCE. Left out: clipping of the value loss,
which Andrychowicz et al. 2021 find no use in.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from p4lm.errors import UserError
from p4lm.ops import policy_gradient
from p4lm.rl.objective import (
  Objective,
  ScoreFn,
  capped_ratios,
  check_at_least,
  kl_in_loss,
  learnable,
  loss_weight,
  minibatches,
  update_metrics,
)
from p4lm.rl.reinforce import ReinforceConfig, reinforce_advantages
from p4lm.rl.rollouts import Rollout
from p4lm.typing import Array


@dataclasses.dataclass(frozen=True)
class PpoConfig(ReinforceConfig):
  """The choices of REINFORCE, and how far to go on one rollout.

  Attributes:
    epochs: passes over a rollout.
    minibatches: updates a pass; divides the prompts of an iteration.
    clip_low, clip_high: how far below and above 1 a ratio counts.
  """

  baseline: str = 'value'
  standardise: str = 'batch'
  value_decay: float = 0.95
  epochs: int = 2
  minibatches: int = 2
  clip_low: float = 0.2
  clip_high: float = 0.2

  def __post_init__(self):
    super().__post_init__()
    check_at_least(self, 1, 'epochs', 'minibatches')
    check_at_least(self, 0, 'clip_high')
    if not 0 <= self.clip_low < 1:
      raise UserError(
        f'{type(self).__name__}.clip_low must be in [0, 1), got {self.clip_low}'
      )

  @property
  def updates_per_step(self) -> int:
    """Updates on each rollout."""
    return self.epochs * self.minibatches

  def objective(self, score_fn: ScoreFn) -> Objective:
    """Clipped updates on shuffled parts of a rollout."""
    return make_ppo_objective(score_fn, self)


def make_ppo_objective(
  score_fn: ScoreFn, config: PpoConfig | None = None
) -> Objective:
  """PPO's plan and loss.

  The plan's batches have `rollout`, `previous_logps` [B, L], `advantages`
  [B, L] (with the sampler's correction) and `valid` [B]. A single update on
  the whole rollout needs no plan: its loss makes them of its own pass.

  Args:
    score_fn: (params, frozen, rollout) -> the policy's log-probabilities
      [B, L], under the distribution that was sampled from.
    config: the choices.
  """
  config = config or PpoConfig()

  def plan(params, frozen, rollout, key):
    return minibatches(
      _to_learn(score_fn(params, frozen, rollout), rollout, config),
      key,
      prompts=rollout.prompt_tokens.shape[0],
      epochs=config.epochs,
      count=config.minibatches,
    )

  def minibatch_loss(params, frozen, batch, key):
    del key
    policy_logps = score_fn(params, frozen, batch['rollout'])
    return _clipped_loss(policy_logps, batch, config)

  def whole_loss(params, frozen, rollout, key):
    del key
    policy_logps = score_fn(params, frozen, rollout)
    batch = _to_learn(policy_logps, rollout, config)
    return _clipped_loss(policy_logps, batch, config)

  if _replays_itself(config):
    return Objective(whole_loss)
  return Objective(minibatch_loss, plan)


def _to_learn(
  policy_logps: Array, rollout: Rollout, config: PpoConfig
) -> dict[str, Any]:
  """A rollout with what the policy before the updates makes of it."""
  previous_logps = jax.lax.stop_gradient(policy_logps)
  valid = learnable(rollout, previous_logps)
  mask = rollout.response_mask & valid[:, None]
  advantages = reinforce_advantages(rollout, previous_logps, valid, config)
  ratios = capped_ratios(
    previous_logps, rollout.behavior_logps, mask, config.ratio_cap
  )
  return {
    'rollout': rollout,
    'previous_logps': previous_logps,
    'advantages': advantages * ratios,
    'valid': valid,
  }


def _clipped_loss(
  policy_logps: Array, batch: dict[str, Any], config: PpoConfig
) -> tuple[Array, dict[str, Array]]:
  """The loss of an update and its metrics."""
  rollout, advantages = batch['rollout'], batch['advantages']
  constant_logps = jax.lax.stop_gradient(policy_logps)
  valid = batch['valid'] & learnable(rollout, constant_logps)
  mask = rollout.response_mask & valid[:, None]
  clip = {'clip_low': config.clip_low, 'clip_high': config.clip_high}
  loss = policy_gradient.ppo_clip_loss(
    policy_logps,
    batch['previous_logps'],
    advantages,
    response_mask=mask,
    aggregation=config.aggregation,
    **clip,
  )
  if config.kl_in == 'loss':
    loss += kl_in_loss(
      policy_logps,
      rollout,
      mask,
      coefficient=config.kl_coefficient,
      estimator=config.kl_estimator,
      aggregation=config.aggregation,
    )
  metrics = update_metrics(rollout, constant_logps, advantages, valid, mask)
  metrics['share_clipped'] = policy_gradient.clipped_share(
    constant_logps,
    batch['previous_logps'],
    advantages,
    response_mask=mask,
    **clip,
  )
  metrics['loss_weight'] = loss_weight(mask, config.aggregation)
  return loss, metrics


def _replays_itself(config: PpoConfig) -> bool:
  """Whether the policy before the only update can be read in that update.

  It spares a pass over the rollout. Statistics of the whole rollout need the
  plan: microbatches see a part of it, though always whole groups.
  """
  return (
    config.updates_per_step == 1
    and config.standardise != 'batch'
    and config.baseline != 'batch_mean'
  )
