"""What the policy is held near to, and how strongly: reference and coefficient.

The reference of the KL penalty is the SFT policy, as in the paper, or one that
moves: a copy of the policy taken every few iterations, or the moving average of
its parameters. The coefficient is fixed or steered towards a wished KL.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from p4lm.errors import UserError
from p4lm.rl.objective import check_at_least, check_choices
from p4lm.typing import PyTree

REFERENCES = ('sft', 'previous', 'moving_average')


@dataclasses.dataclass(frozen=True)
class ReferenceConfig:
  """Which policy the KL is measured to.

  Attributes:
    kind: 'sft', fixed; 'previous', the policy as it was when the iteration's
      number was last divisible by `every`, so that the penalty is a trust
      region; or 'moving_average' of the parameters, by `decay` an iteration.
    every: iterations between copies, for 'previous'.
    decay: share of the average that stays, for 'moving_average'.
  """

  kind: str = 'sft'
  every: int = 1
  decay: float = 0.99

  def __post_init__(self):
    check_choices(self, {'kind': REFERENCES})
    check_at_least(self, 1, 'every')
    if not 0 <= self.decay < 1:
      raise UserError(
        f'ReferenceConfig.decay must be in [0, 1), got {self.decay}'
      )

  @property
  def moves(self) -> bool:
    """Whether the reference is RL state."""
    return self.kind != 'sft'

  def check_fits(self, algorithm) -> None:
    """Raises UserError for a penalty that would be zero or have no effect."""
    if self.moves and algorithm.kl_in == 'values':
      raise UserError(
        f'{type(algorithm).__name__} holds the policy near the SFT policy by '
        f'its critics; a reference of kind {self.kind!r} would have no effect'
      )
    fresh = self.kind == 'previous' and self.every == 1
    if fresh and algorithm.kl_in == 'reward':
      raise UserError(
        "ReferenceConfig: kind='previous' with every=1 is the policy that "
        'samples, and its KL in the reward is always 0; set every=2 or more, '
        "or the algorithm's kl_in to 'loss' with several updates an iteration"
      )


class MovingReference:
  """Parameters of a reference that follows the policy.

  Args:
    config: how; its kind is not 'sft'.
    params: the policy's first parameters, copied.
  """

  def __init__(self, config: ReferenceConfig, params: PyTree):
    self._config = config
    self.params = jax.tree.map(jnp.copy, params)
    self._average = jax.jit(_average, static_argnums=2, donate_argnums=0)

  def before(self, iteration: int, params: PyTree) -> None:
    """To be called with the policy that is about to sample."""
    if iteration == 0:
      return
    if self._config.kind == 'moving_average':
      self.params = self._average(self.params, params, self._config.decay)
    elif iteration % self._config.every == 0:
      self.params = jax.tree.map(jnp.copy, params)


def _average(mean: PyTree, new: PyTree, decay: float) -> PyTree:
  return jax.tree.map(lambda m, n: m + (1 - decay) * (n - m), mean, new)


@dataclasses.dataclass(frozen=True)
class AdaptiveKl:
  """Steers the KL coefficient towards a KL of `target` nats a response.

  After each iteration (Ziegler et al. 2019, Section 2.2):

      error = clip(KL / target - 1, -clip, clip)
      coefficient *= 1 + gain * error

  Attributes:
    target: nats a response, above 0.
    gain: how fast; 0.1 as published.
    clip: most that one iteration's error counts; 0.2 as published.
    lowest, highest: bounds of the coefficient.
  """

  target: float
  gain: float = 0.1
  clip: float = 0.2
  lowest: float = 1e-4
  highest: float = 1e2

  def __post_init__(self):
    check_at_least(self, 0, 'gain', 'clip', 'lowest')
    if not self.target > 0:
      raise UserError(f'AdaptiveKl.target must be above 0, got {self.target}')
    if not self.lowest <= self.highest:
      raise UserError(
        f'AdaptiveKl.lowest is {self.lowest}, above highest {self.highest}'
      )

  def check_fits(self, algorithm) -> None:
    """Raises UserError for an algorithm whose coefficient is in its critics."""
    if algorithm.kl_in == 'values':
      raise UserError(
        f'{type(algorithm).__name__} learns critics for one KL coefficient; '
        'leave out kl_control'
      )

  def after(self, coefficient: float, kl: float) -> float:
    """The next coefficient.

    >>> AdaptiveKl(target=2.0).after(0.5, kl=10.0)
    0.51

    Args:
      coefficient: the one that the iteration had.
      kl: what the iteration measured, nats a response; NaN changes nothing.
    """
    if not np.isfinite(kl):
      return coefficient
    error = np.clip(kl / self.target - 1, -self.clip, self.clip)
    steered = coefficient * (1 + self.gain * error)
    return float(np.clip(steered, self.lowest, self.highest))
