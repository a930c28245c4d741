r"""GRPO: PPO whose baseline is the group's own mean, in units of its spread.

As published (Shao et al. 2024, DeepSeekMath), the default here: advantages
(r - mean) / deviation of the G rewards of a prompt, the same for all tokens;
PPO's clip; k3 to the reference in the loss; each response's tokens averaged
before the responses are. Its descendants are choices of the same config:

    aggregation    'response_mean' as published; 'token' is DAPO (Yu et al.
                   2025), and 'response' is Dr. GRPO (Liu et al. 2025) up to its
                   constant divisor, which the learning rate absorbs
    standardise    'none' is Dr. GRPO
    clip_high      0.28 is DAPO's clip-higher

The deviation divides by G, as a population's; some published code divides by
G - 1, which scales all advantages by sqrt((G - 1) / G).
"""

from __future__ import annotations

import dataclasses

from p4lm.rl.ppo import PpoConfig


@dataclasses.dataclass(frozen=True)
class GrpoConfig(PpoConfig):
  """PPO's choices with the defaults of the paper; one update a rollout."""

  kl_coefficient: float = 0.04
  kl_estimator: str = 'k3'
  kl_in: str = 'loss'
  baseline: str = 'group_mean'
  standardise: str = 'group'
  aggregation: str = 'response_mean'
  epochs: int = 1
  minibatches: int = 1
