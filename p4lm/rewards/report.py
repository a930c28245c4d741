"""How far a reward model can be trusted: one dict of numbers a checkpoint."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy import stats

from p4lm.ops import calibration


def classification_report(
  logits: npt.ArrayLike,
  labels: npt.ArrayLike,
  lengths: npt.ArrayLike,
  *,
  groups: npt.ArrayLike | None = None,
  temperature: float | None = None,
) -> dict[str, float]:
  """Accuracy and calibration of an entailment model on held-out examples.

  Args:
    logits: float [n], log-odds of label 1.
    labels: [n], 0 or 1.
    lengths: [n], of the inputs (tokens or words).
    groups: int [n], such as the number of the premise; the examples of a group
      are in one half of a cross-fit. None takes each by itself.
    temperature: fitted on other examples; None fits it crosswise on these.
  Returns:
    `accuracy`, `nll`, `brier`, `ece`, `temperature`, the last three but one
    again with `_scaled` (see `Calibration`), `count`,
    `share_positive` (accuracy of always saying yes) and `length_correlation`
    of score and length.
  """
  halves = None if groups is None else _halves(np.asarray(groups))
  report = dataclasses.asdict(
    calibration.calibration_of(
      logits, labels, halves=halves, temperature=temperature
    )
  )
  report['share_positive'] = float(np.mean(np.asarray(labels, np.float64)))
  report['length_correlation'] = calibration.correlation(logits, lengths)
  return report


def pairwise_report(
  chosen_scores: npt.ArrayLike,
  rejected_scores: npt.ArrayLike,
  chosen_lengths: npt.ArrayLike,
  rejected_lengths: npt.ArrayLike,
  *,
  temperature: float | None = None,
) -> dict[str, float]:
  """Accuracy and calibration of P(chosen wins) = sigmoid(score gap).

  Which side of a pair is called chosen is its label, so each pair is counted
  in both orders: calibration then asks whether a stated preference of 0.8, for
  either side, comes true eight times in ten.

  Args:
    chosen_scores, rejected_scores: float [n].
    chosen_lengths, rejected_lengths: [n], of the texts.
    temperature: see `classification_report`.
  Returns:
    what `classification_report` has (`count` in pairs), and
    `length_correlation` of the gaps in score and in length, and
    `longer_wins`, the accuracy of always choosing the longer text.
  """
  chosen, rejected = _float64(chosen_scores), _float64(rejected_scores)
  gaps = _gap(chosen, rejected, 'scores')
  longer = _gap(_float64(chosen_lengths), _float64(rejected_lengths), 'lengths')
  logits, labels = both_orders(gaps)
  # Both orders of a pair lie in one half, or one would predict the other.
  halves = np.tile(np.arange(len(gaps)) % 2 == 0, 2)
  report = dataclasses.asdict(
    calibration.calibration_of(
      logits, labels, halves=halves, temperature=temperature
    )
  )
  report['count'] = len(gaps)
  report['length_correlation'] = calibration.correlation(gaps, longer)
  report['longer_wins'] = float(np.mean((np.sign(longer) + 1) / 2))
  report['mean_score'] = float((chosen.mean() + rejected.mean()) / 2)
  return report


def both_orders(gaps: npt.ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  """Logits and labels [2n] of n score gaps, each pair told both ways round."""
  gaps = _float64(gaps)
  return np.concatenate([gaps, -gaps]), np.repeat([1, 0], len(gaps))


def regression_report(
  scores: npt.ArrayLike, targets: npt.ArrayLike, lengths: npt.ArrayLike
) -> dict[str, float]:
  """Error and correlation of a relevance model on held-out examples.

  Returns:
    `squared_error`, `absolute_error`, `explained` (1 - error / variance of the
    targets; 0 for always answering their mean), `correlation`,
    `rank_correlation` (Spearman), `length_correlation`, `count`.
  """
  scores, targets = _float64(scores), _float64(targets)
  errors = _gap(scores, targets, 'scores and targets')
  variance = float(targets.var())
  squared = float(np.mean(errors**2))
  ranks = stats.rankdata(scores), stats.rankdata(targets)
  return {
    'squared_error': squared,
    'absolute_error': float(np.mean(np.abs(errors))),
    'explained': 1 - squared / variance if variance > 0 else 0.0,
    'correlation': calibration.correlation(scores, targets),
    'rank_correlation': calibration.correlation(*ranks),
    'length_correlation': calibration.correlation(scores, lengths),
    'count': len(scores),
  }


def _halves(groups):
  """bool [n]: every other group, or every other example of a single one."""
  _, numbers = np.unique(groups, return_inverse=True)
  if not numbers.any():
    numbers = np.arange(len(numbers))
  return numbers % 2 == 0


def _float64(values):
  return np.asarray(values, np.float64)


def _gap(first, second, what):
  if first.shape != second.shape or first.ndim != 1 or not len(first):
    raise ValueError(
      f'{what} must be two vectors of one length above 0, got {first.shape} '
      f'and {second.shape}'
    )
  gap = first - second
  if not np.isfinite(gap).all():
    raise ValueError(
      f'{what}: {np.sum(~np.isfinite(gap))} of {len(gap)} are not finite'
    )
  return gap
