"""In-sample softmax: soft-optimal distillation within the data's support.

As `soft_optimal`, but the sums over actions take only those that data can be
expected to have (Xiao et al. 2023): tokens that the anchor, which wrote them or
a policy near it, gives a chance of at least `least_chance`. An unsupported Q
then touches neither values nor policy. The target leaves tokens out, so the
policy follows it by the forward KL.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from p4lm.errors import UserError
from p4lm.ops import critics as critic_ops
from p4lm.rl.critics import Judged
from p4lm.rl.soft_optimal import SoftOptimalConfig
from p4lm.typing import Array


@dataclasses.dataclass(frozen=True)
class InSampleConfig(SoftOptimalConfig):
  """The choices of `SoftOptimalConfig`, and what counts as supported.

  Attributes:
    least_chance: in (0, 1); a state always supports its likeliest token.
  """

  least_chance: float = 1e-3

  def __post_init__(self):
    super().__post_init__()
    if not 0 < self.least_chance < 1:
      raise UserError(
        f'InSampleConfig.least_chance must be in (0, 1): {self.least_chance}'
      )

  @property
  def direction(self) -> str:
    """Forward: the target gives some tokens no chance."""
    return 'forward'

  def support(self, prior_logps: Array) -> Array:
    """bool [R, L, V], the tokens that count."""
    likeliest = prior_logps >= prior_logps.max(axis=-1, keepdims=True)
    return likeliest | (prior_logps >= np.log(self.least_chance))

  def next_values(self, judged: Judged) -> Array:
    """V of the best policy that stays within the support."""
    return critic_ops.optimal_state_values(
      judged.target_q,
      judged.prior_logps,
      alpha=self.kl_coefficient,
      support=self.support(judged.prior_logps),
    )

  def policy_logits(self, q_values: Array, prior_logps: Array) -> Array:
    """Logits of the in-sample softmax."""
    return critic_ops.optimal_logits(
      q_values,
      prior_logps,
      alpha=self.kl_coefficient,
      support=self.support(prior_logps),
    )
