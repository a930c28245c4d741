"""Conservative Q-learning: soft-optimal distillation that doubts unseen tokens.

As `soft_optimal`, with the penalty of Kumar et al. 2020 on the critics: Q is
pushed down where the soft-optimal policy would go and up at the tokens of the
data. With weight 0 it is `soft_optimal`.
"""

from __future__ import annotations

import dataclasses

from p4lm.ops import critics as critic_ops
from p4lm.rl.critics import Judged
from p4lm.rl.objective import check_at_least
from p4lm.rl.soft_optimal import SoftOptimalConfig
from p4lm.typing import Array


@dataclasses.dataclass(frozen=True)
class CqlConfig(SoftOptimalConfig):
  """The choices of `SoftOptimalConfig`, and how much the penalty counts.

  Attributes:
    conservative_weight: of the penalty beside the squared error.
  """

  conservative_weight: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    check_at_least(self, 0, 'conservative_weight')

  def extra_loss(
    self, judged: Judged, q_values: Array, values: Array
  ) -> tuple[Array, dict[str, Array]]:
    """The weighted penalty."""
    penalty = critic_ops.conservative_penalty(
      q_values,
      judged.rollout.response_tokens,
      judged.prior_logps,
      response_mask=judged.mask,
      alpha=self.kl_coefficient,
    )
    return self.conservative_weight * penalty, {'conservative_penalty': penalty}
