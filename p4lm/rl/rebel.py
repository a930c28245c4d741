r"""REBEL: policy improvement as regression on differences of rewards.

Each iteration fits, over pairs of responses y, y' to a prompt sampled from the
policy pi_t that the iteration began with,

    log(pi / pi_t)(y) - log(pi / pi_t)(y')  to  eta (R(y) - R(y'))

whose solution is pi proportional to pi_t exp(eta R), the step of mirror descent
(Gao et al. 2024). R is the reward less kl_coefficient times the log-ratio of
pi_t to the reference, so iterations settle at reference exp(r / kl_coefficient)
/ Z, the optimum of REINFORCE + KL.

The loss is scaled as in the published code, eta^2 times the paper's Eq. 6, and
log-probabilities are sums over a response's tokens, EOS included, at the
sampler's temperature. `standardise='batch'` whitens R, KL included, as that
code does; off by default, since it makes eta depend on the batch.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from p4lm.errors import UserError
from p4lm.ops import advantages as advantage_ops
from p4lm.ops import kl, masks
from p4lm.ops.logprobs import sequence_logprobs
from p4lm.ops.relative_rewards import PAIRS, pair_count, rebel_loss
from p4lm.rl.learner import Learner, Workbench
from p4lm.rl.objective import (
  Objective,
  ScoreFn,
  check_at_least,
  check_choices,
  kl_coefficients,
  learnable,
  minibatches,
  update_metrics,
)
from p4lm.rl.on_policy import OnPolicyLearner


@dataclasses.dataclass(frozen=True)
class RebelConfig:
  """How far an iteration goes and what it regresses on.

  Attributes:
    eta: step size of mirror descent, in nats a unit of reward.
    kl_coefficient: beta, in reward units a nat; paid in the reward.
    pairs: 'all' pairs of a prompt's samples, or 'neighbours'.
    standardise: 'none', or 'batch' for rewards of mean 0 and deviation 1.
    epochs: passes over a rollout; the regression needs several updates to fit.
    minibatches: updates a pass; divides the prompts of an iteration.
  """

  eta: float = 1.0
  kl_coefficient: float = 0.1
  pairs: str = 'all'
  standardise: str = 'none'
  epochs: int = 4
  minibatches: int = 1

  def __post_init__(self):
    check_choices(self, {'pairs': PAIRS, 'standardise': ('none', 'batch')})
    check_at_least(self, 0, 'kl_coefficient')
    check_at_least(self, 1, 'epochs', 'minibatches')
    if not self.eta > 0:
      raise UserError(f'RebelConfig.eta must be above 0, got {self.eta}')

  kl_in: ClassVar[str] = 'reward'

  @property
  def updates_per_step(self) -> int:
    """Updates on each rollout."""
    return self.epochs * self.minibatches

  def objective(self, score_fn: ScoreFn) -> Objective:
    """Regression on shuffled parts of a rollout."""
    return make_rebel_objective(score_fn, self)

  def learner(self, bench: Workbench) -> Learner:
    """Learns from each rollout as it comes."""
    return OnPolicyLearner(bench, self.objective(bench.score_fn))


def make_rebel_objective(
  score_fn: ScoreFn, config: RebelConfig | None = None
) -> Objective:
  """REBEL's plan and loss.

  The plan's batches have `rollout`, `previous_logps` [B] of pi_t, `rewards`
  [B] after KL and standardisation, and `valid` [B].

  Args:
    score_fn: (params, frozen, rollout) -> the policy's log-probabilities
      [B, L], under the distribution that was sampled from.
    config: the choices.
  """
  config = config or RebelConfig()

  def plan(params, frozen, rollout, key):
    token_logps = jax.lax.stop_gradient(score_fn(params, frozen, rollout))
    valid = learnable(rollout, token_logps)
    mask = rollout.response_mask & valid[:, None]
    batch = {
      'rollout': rollout,
      'previous_logps': sequence_logprobs(token_logps, mask),
      'rewards': _paid(rollout, token_logps, valid, mask, config),
      'valid': valid,
    }
    return minibatches(
      batch,
      key,
      prompts=rollout.prompt_tokens.shape[0],
      epochs=config.epochs,
      count=config.minibatches,
    )

  def loss_fn(params, frozen, batch, key):
    del key
    rollout = batch['rollout']
    token_logps = score_fn(params, frozen, rollout)
    constant_logps = jax.lax.stop_gradient(token_logps)
    valid = batch['valid'] & learnable(rollout, constant_logps)
    mask = rollout.response_mask & valid[:, None]
    groups = {'group_size': rollout.group_size, 'pairs': config.pairs}
    loss = rebel_loss(
      sequence_logprobs(token_logps, mask),
      batch['previous_logps'],
      batch['rewards'],
      valid=valid,
      eta=config.eta,
      **groups,
    )
    paid = jnp.broadcast_to(batch['rewards'][:, None], mask.shape)
    metrics = update_metrics(rollout, constant_logps, paid, valid, mask)
    metrics['loss_weight'] = pair_count(valid, **groups)
    return loss, metrics

  return Objective(loss_fn, plan)


def _paid(rollout, token_logps, valid, mask, config):
  """Rewards [B] less the price of the KL, standardised if so wished."""
  paid = kl_coefficients(rollout, config.kl_coefficient) * kl.kl_estimates(
    token_logps, rollout.reference_logps, mask=mask, estimator='k1'
  )
  rewards = masks.hide(rollout.rewards, valid) - jnp.sum(paid, axis=1)
  mean, deviation = advantage_ops.location_and_scale(
    rewards,
    valid=valid,
    group_size=rollout.group_size,
    over=config.standardise,
  )
  return (rewards - mean) / deviation
