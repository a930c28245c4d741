"""Paired comparisons of one system's scores with another's."""

from __future__ import annotations

import dataclasses

import numpy as np

from p4lm.errors import UserError
from p4lm.evaluation import statistics
from p4lm.evaluation.statistics import Interval


def wins(scores, baseline_scores) -> np.ndarray:
  """1 where the score is higher, 1/2 at a tie, 0 where it is lower.

  >>> wins([2.0, 1.0, 0.0], [1.0, 1.0, 1.0]).tolist()
  [1.0, 0.5, 0.0]
  """
  scores, baseline_scores = np.asarray(scores), np.asarray(baseline_scores)
  return (scores > baseline_scores) + 0.5 * (scores == baseline_scores)


@dataclasses.dataclass(frozen=True)
class Comparison:
  """A system against a baseline over the pairs where both scores are valid.

  Attributes:
    pairs: number of such pairs.
    win_rate: share of wins, ties half.
    absolute_increase: mean of s - b.
    percentage_increase: 100 x mean of (s - b) / |b| over the pairs with b != 0
      (the paper's, pair by pair; a b near 0 makes it large).
    percentage_of_means: 100 x (mean s - mean b) / |mean b|, which one pair
      cannot dominate.
    zero_baselines: pairs left out of `percentage_increase` because b = 0.
  """

  pairs: int
  win_rate: Interval
  absolute_increase: Interval
  percentage_increase: Interval
  percentage_of_means: Interval
  zero_baselines: int

  def as_dict(self) -> dict:
    """JSON values."""
    return {
      'pairs': self.pairs,
      'win_rate': self.win_rate.as_dict(),
      'absolute_increase': self.absolute_increase.as_dict(),
      'percentage_increase': self.percentage_increase.as_dict(),
      'percentage_of_means': self.percentage_of_means.as_dict(),
      'zero_baselines': self.zero_baselines,
    }


def compare(
  scores, baseline_scores, *, clusters=None,
  samples: int = statistics.SAMPLES, level: float = 0.95, seed: int = 0,
) -> Comparison:  # fmt: skip
  """Win rate and increases of a system over a baseline, with intervals.

  Args:
    scores: float [M]; NaN marks an invalid score, whose pair is left out.
    baseline_scores: float [M], the baseline's on the same pairs.
    clusters: [M] labels (users) that are resampled together, or None.
    samples, level, seed: of the paired bootstrap.
  Returns:
    The comparison.
  Raises:
    UserError: the two arrays differ in length.
  """
  scores = np.asarray(scores, np.float64)
  baseline = np.asarray(baseline_scores, np.float64)
  if scores.shape != baseline.shape:
    raise UserError(
      f'scores {scores.shape} and baseline_scores {baseline.shape} are not '
      'paired; score the same pairs with both systems'
    )
  kept = ~(np.isnan(scores) | np.isnan(baseline))
  scores, baseline = scores[kept], baseline[kept]
  labels = None if clusters is None else np.asarray(clusters)[kept]
  options = dict(samples=samples, level=level, seed=seed)
  won, gained = statistics.mean_intervals(
    np.stack([wins(scores, baseline), scores - baseline], 1),
    clusters=labels,
    **options,
  )
  nonzero = baseline != 0
  percent = 100 * (scores - baseline)[nonzero] / np.abs(baseline[nonzero])
  (by_pair,) = statistics.mean_intervals(
    percent, clusters=None if labels is None else labels[nonzero], **options
  )
  of_means = statistics.function_interval(
    np.stack([scores, baseline], 1), _percentage, clusters=labels, **options
  )
  return Comparison(
    len(scores), won, gained, by_pair, of_means, int(np.sum(~nonzero))
  )


def _percentage(means: np.ndarray) -> np.ndarray:
  score, baseline = means[..., 0], means[..., 1]
  size = np.where(baseline == 0, np.nan, np.abs(baseline))
  return 100 * (score - baseline) / size
