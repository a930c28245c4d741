r"""Soft actor-critic on tokens: P4LM's Eqs. 3-5.

As `soft_optimal`, but values are those of the current policy and a second
critic learns them:

    Q(s, a) <- r + V(s')
    V(s)    <- E_a[Q(s, a) - alpha log(pi / p_pre)(a|s)]
    pi      <- least E_{a ~ pi}[alpha log(pi / p_pre)(a|s) - Q(s, a)]

The expectation over actions runs over the whole vocabulary under the policy.
As printed, the paper's Eq. 4 takes the actions of the data, which is right only
when the policy is mu*: `value_actions='data'`, for comparison. Its Eq. 5 as
printed takes them too, which is behaviour cloning; that is not offered.
"""

from __future__ import annotations

import dataclasses

from p4lm.ops import critics as critic_ops
from p4lm.rl.critics import Judged
from p4lm.rl.objective import check_choices
from p4lm.rl.soft_optimal import SoftOptimalConfig
from p4lm.typing import Array


@dataclasses.dataclass(frozen=True)
class SacConfig(SoftOptimalConfig):
  """The choices of `SoftOptimalConfig`, and whose actions V is the mean of.

  Attributes:
    value_actions: 'policy', or 'data' as the paper prints.
  """

  value_actions: str = 'policy'

  def __post_init__(self):
    super().__post_init__()
    check_choices(self, {'value_actions': ('policy', 'data')})

  def next_values(self, judged: Judged) -> Array:
    """The slow state values."""
    return judged.target_v

  def extra_loss(
    self, judged: Judged, q_values: Array, values: Array
  ) -> tuple[Array, dict[str, Array]]:
    """The error of V, Eq. 4."""
    loss = critic_ops.critic_loss(
      values, self.value_targets(judged), mask=judged.mask
    )
    return loss, {'value_loss': loss}

  def value_targets(self, judged: Judged) -> Array:
    """What V is regressed on, [R, L]."""
    alpha = self.kl_coefficient
    if self.value_actions == 'policy':
      return critic_ops.policy_state_values(
        judged.target_q, judged.policy_logps, judged.prior_logps, alpha=alpha
      )
    of_taken = lambda values: critic_ops.action_values(
      values, judged.rollout.response_tokens
    )
    gap = of_taken(judged.policy_logps) - of_taken(judged.prior_logps)
    return of_taken(judged.target_q) - alpha * gap
