r"""Closed-form soft-optimal distillation: P4LM's Eqs. 6-9.

A critic learns Q of the best policy from trajectories of any policy,

    Q(s, a) <- r + V(s'),   V(s) = alpha log sum_a p_pre(a|s) exp(Q(s, a)/alpha)

and the policy is drawn towards mu*(a|s), proportional to p_pre(a|s)
exp(Q(s, a) / alpha), by the gradient of KL(pi || mu*) at the states of the
replay. Both sums run over the whole vocabulary, so no action is sampled and no
importance weight is needed. With Q right, the policy is p_pre(y) exp(r(y) /
alpha) / Z, the optimum of REINFORCE + KL with the same coefficient.
"""

from __future__ import annotations

import dataclasses

from p4lm.errors import UserError
from p4lm.ops import critics as critic_ops
from p4lm.ops import masks
from p4lm.rl.critics import CriticConfig, Judged, heads_on_anchor
from p4lm.rl.learner import Learner, Workbench
from p4lm.rl.objective import check_at_least, check_choices
from p4lm.rl.off_policy import OffPolicyLearner
from p4lm.rl.replay import ReplayConfig
from p4lm.typing import Array


@dataclasses.dataclass(frozen=True)
class SoftOptimalConfig:
  """The choices of the off-policy algorithms.

  Attributes:
    kl_coefficient: alpha, in reward units a nat, above 0.
    critic: heads, targets, rate.
    replay: what is kept and drawn.
    policy_updates: updates of the policy an iteration, each on an equal part
      of the drawn rows.
    aggregation: of the policy's loss, see `masks.aggregate`.
  """

  kl_coefficient: float = 0.1
  critic: CriticConfig = CriticConfig()
  replay: ReplayConfig = ReplayConfig()
  policy_updates: int = 1
  aggregation: str = 'response'

  def __post_init__(self):
    check_choices(self, {'aggregation': masks.AGGREGATIONS})
    check_at_least(self, 1, 'policy_updates')
    if not self.kl_coefficient > 0:
      raise UserError(
        f'{type(self).__name__}.kl_coefficient must be above 0, got '
        f'{self.kl_coefficient}'
      )
    for name, parts in (
      ('policy_updates', self.policy_updates),
      ('critic.updates', self.critic.updates),
    ):
      if self.replay.rows % parts:
        raise UserError(
          f'{type(self).__name__}.{name}={parts} does not divide the '
          f'{self.replay.rows} rows drawn; choose a divisor'
        )

  @property
  def kl_in(self) -> str:
    """Where the KL is: in the critics' values."""
    return 'values'

  @property
  def direction(self) -> str:
    """Of the policy's KL, see `ops.critics.distillation_loss`."""
    return 'reverse'

  @property
  def updates_per_step(self) -> int:
    """Optimizer steps of the policy an iteration."""
    return self.policy_updates

  def learner(self, bench: Workbench) -> Learner:
    """Learns from a replay of all rollouts so far."""
    return OffPolicyLearner(bench, self, heads_on_anchor(bench, self.critic))

  def next_values(self, judged: Judged) -> Array:
    """V of the states [R, L] that Q's targets hold: of the best policy."""
    return critic_ops.optimal_state_values(
      judged.target_q, judged.prior_logps, alpha=self.kl_coefficient
    )

  def extra_loss(
    self, judged: Judged, q_values: Array, values: Array
  ) -> tuple[Array | float, dict[str, Array]]:
    """What the critics minimise beside the error of Q, and its metrics."""
    del judged, q_values, values
    return 0.0, {}

  def policy_logits(self, q_values: Array, prior_logps: Array) -> Array:
    """Logits [R, L, V] of the policy to draw near to: mu*."""
    return critic_ops.optimal_logits(
      q_values, prior_logps, alpha=self.kl_coefficient
    )
