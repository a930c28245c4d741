r"""Rewards that must not fall below a threshold: a Lagrangian multiplier each.

    maximise J   subject to   E[r_k] >= c_k   for the named terms k

is a game in which the policy maximises J + sum_k lambda_k (E[r_k] - c_k) and
the multipliers lambda_k >= 0 minimise it. The policy is paid lambda_k (r_k -
c_k) beside its reward, and after each iteration

    lambda_k <- clip(lambda_k + rate (c_k - mean of r_k), 0, highest)

A multiplier rises while its reward falls short and sinks back to zero once the
threshold is kept with room (Moskovitz et al. 2024 guard proxies of rewards in
this way). Where the thresholds cannot all be met, multipliers stop at
`highest`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import numpy as np

from p4lm.errors import UserError
from p4lm.rewards.joint import JointValues


@dataclasses.dataclass(frozen=True)
class ThresholdConfig:
  """Which rewards are kept above what.

  Attributes:
    thresholds: by term name, c_k in the term's own unit; empty for none.
    rate: of the multipliers' steps, above 0.
    start: first value of every multiplier.
    highest: bound of every multiplier.
  """

  thresholds: Mapping[str, float] = dataclasses.field(default_factory=dict)
  rate: float = 0.5
  start: float = 0.0
  highest: float = 20.0

  def __post_init__(self):
    for name, value in self.thresholds.items():
      if not np.isfinite(value):
        raise UserError(f'the threshold of {name!r} must be finite: {value}')
    if not self.rate > 0:
      raise UserError(f'ThresholdConfig.rate must be above 0, got {self.rate}')
    if not 0 <= self.start <= self.highest:
      raise UserError(
        f'ThresholdConfig.start is {self.start}; it must be between 0 and '
        f'highest ({self.highest})'
      )

  def check_terms(self, terms: Iterable[str]) -> None:
    """Raises UserError for a threshold of a term that is not judged."""
    terms = list(terms)
    unknown = sorted(set(self.thresholds) - set(terms))
    if unknown:
      raise UserError(
        f'ThresholdConfig.thresholds names {", ".join(unknown)}, but the '
        f'reward terms are {", ".join(terms)}'
      )


class Multipliers:
  """The multipliers of a run; part of its checkpoint.

  Attributes:
    values: {term: float64 []}.
  """

  def __init__(self, config: ThresholdConfig):
    self._config = config
    self.values = {name: np.float64(config.start) for name in config.thresholds}

  def paid(self, judged: JointValues) -> JointValues:
    """The joint reward with sum_k lambda_k (r_k - c_k) added.

    A text whose thresholded term has no value is not valid.
    """
    total = judged.total.astype(np.float64)
    valid = judged.valid.copy()
    for name, threshold in self._config.thresholds.items():
      answer = judged.by_term[name]
      total += self.values[name] * (answer.values - threshold)
      valid &= answer.valid
    total = np.where(valid, total, 0.0).astype(np.float32)
    return dataclasses.replace(judged, total=total, valid=valid)

  def follow(self, judged: JointValues) -> dict[str, float]:
    """Moves the multipliers after an iteration; what to log of it.

    Args:
      judged: the iteration's samples. A term without any value leaves its
        multiplier as it is.
    Returns:
      The multiplier that the iteration was paid by, and by how much its mean
      reward was above the threshold.
    """
    logged = {}
    for name, threshold in self._config.thresholds.items():
      answer, used = judged.by_term[name], self.values[name]
      logged[f'threshold/{name}/multiplier'] = float(used)
      if not answer.valid.any():
        continue
      room = answer.values[answer.valid].mean(dtype=np.float64) - threshold
      moved = used - self._config.rate * room
      self.values[name] = np.float64(np.clip(moved, 0, self._config.highest))
      logged[f'threshold/{name}/room'] = float(room)
    return logged
