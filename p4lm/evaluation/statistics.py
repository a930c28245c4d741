r"""Means with standard errors, and paired bootstrap intervals.

Everything here is a mean over pairs or a function of such means, so one
resampling serves all: a bootstrap sample draws the units again with
replacement and weighs each by how often it was drawn (Efron 1979). Where units
share a user, whole users are drawn (`clusters`): texts for one user are not
independent. Intervals are percentile intervals.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from p4lm.errors import UserError

SAMPLES = 10_000
_CHUNK_FLOATS = 1 << 22


@dataclasses.dataclass(frozen=True)
class Interval:
  """An estimate with the bounds of its bootstrap interval.

  Attributes:
    estimate: value on the data themselves.
    low, high: bounds; NaN where fewer than two units are left.
    level: coverage, e.g. 0.95.
  """

  estimate: float
  low: float
  high: float
  level: float = 0.95

  def lies_apart_from(self, value: float = 0.0) -> bool:
    """Whether `value` is outside the interval (False without bounds)."""
    return self.low > value or self.high < value

  def as_dict(self) -> dict[str, float | None]:
    """JSON values; a missing number is None, for JSON has no NaN."""
    return {
      'estimate': finite_or_none(self.estimate),
      'low': finite_or_none(self.low),
      'high': finite_or_none(self.high),
      'level': self.level,
    }


@dataclasses.dataclass(frozen=True)
class Mean:
  """A mean, its standard error, and the number of values it is over."""

  mean: float
  standard_error: float
  count: int


def mean_and_standard_error(values) -> Mean:
  """Mean of the values that are not NaN, and s / sqrt(n) with n - 1 in s.

  >>> mean_and_standard_error([1.0, 2.0, 3.0, float('nan')])
  Mean(mean=2.0, standard_error=0.5773502691896258, count=3)

  Args:
    values: float [M]; NaN marks an invalid score.
  Returns:
    The mean; NaN without values, and so the error of fewer than two.
  """
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  count = len(values)
  mean = float(values.mean()) if count else math.nan
  error = (
    float(values.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
  )
  return Mean(mean, error, count)


def mean_intervals(
  columns, *, clusters=None, samples: int = SAMPLES, level: float = 0.95,
  seed: int = 0,
) -> list[Interval]:  # fmt: skip
  """Interval of the mean of each column, all from the same resamples.

  Args:
    columns: float [M, K] (or [M]) without NaN; row m is one unit.
    clusters: [M] labels; units with one label are drawn together.
    samples: number of bootstrap samples.
    level: coverage.
    seed: of the resampling.
  Returns:
    K intervals.
  """
  columns = np.asarray(columns, np.float64)
  if columns.ndim == 1:
    columns = columns[:, None]
  estimates, resampled = _bootstrap(columns, clusters, samples, seed)
  return [
    _interval(estimates[k], resampled[:, k], level)
    for k in range(columns.shape[1])
  ]


def function_interval(
  columns, function: Callable[[np.ndarray], np.ndarray], *, clusters=None,
  samples: int = SAMPLES, level: float = 0.95, seed: int = 0,
) -> Interval:  # fmt: skip
  """Interval of a function of the columns' means, for instance their ratio.

  Args:
    columns: float [M, K] without NaN.
    function: takes means [..., K] and returns [...].
    clusters, samples, level, seed: as in `mean_intervals`.
  Returns:
    The interval; without bounds for fewer than two units (or clusters).
  Raises:
    UserError: a NaN among the columns, or labels of another length.
  """
  columns = np.asarray(columns, np.float64)
  estimates, resampled = _bootstrap(columns, clusters, samples, seed)
  return _interval(float(function(estimates)), function(resampled), level)


def finite_or_none(value: float) -> float | None:
  """The number for JSON: None for NaN and infinities."""
  return float(value) if math.isfinite(value) else None


def _interval(estimate, resampled: np.ndarray, level: float) -> Interval:
  resampled = resampled[~np.isnan(resampled)]
  low = high = math.nan
  if len(resampled):
    tail = (1 - level) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
  return Interval(float(estimate), float(low), float(high), level)


def _bootstrap(columns, clusters, samples: int, seed: int):
  """Means of the columns [K], and of resampled clusters [samples, K]."""
  if np.isnan(columns).any():
    raise UserError(
      'NaN among the values to resample; drop invalid pairs first'
    )
  if not len(columns):
    missing = np.full(columns.shape[1], np.nan)
    return missing, missing[None, :][:0]
  sums, sizes = _cluster_sums(columns, clusters)
  estimates = sums.sum(0) / sizes.sum()
  count = len(sums)
  if count < 2:
    return estimates, np.zeros((0, columns.shape[1]))
  generator = np.random.default_rng(seed)
  chunk = max(1, _CHUNK_FLOATS // (count * columns.shape[1]))
  means = []
  for start in range(0, samples, chunk):
    shape = (min(chunk, samples - start), count)
    drawn = generator.integers(count, size=shape)
    means.append(sums[drawn].sum(1) / sizes[drawn].sum(1)[:, None])
  return estimates, np.concatenate(means)


def _cluster_sums(columns, clusters):
  """Sums [C, K] and sizes [C] of the units that are drawn together."""
  if clusters is None:
    return columns, np.ones(len(columns))
  clusters = np.asarray(clusters)
  if clusters.shape != (len(columns),):
    raise UserError(
      f'clusters has shape {clusters.shape} for {len(columns)} pairs; '
      'give one label per pair'
    )
  labels, rows = np.unique(clusters, return_inverse=True)
  sums = np.zeros((len(labels), columns.shape[1]))
  np.add.at(sums, rows, columns)
  return sums, np.bincount(rows).astype(float)
