"""Bootstrap intervals against formulas and known coverage."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.evaluation import statistics, win_rates
from p4lm.evaluation.statistics import (
  function_interval,
  mean_and_standard_error,
  mean_intervals,
)
from p4lm.evaluation.win_rates import compare


@pytest.mark.parametrize('module', [statistics, win_rates])
def test_docstrings(module):
  found = doctest.testmod(module)
  assert found.failed == 0
  assert found.attempted > 0


def test_interval_of_a_mean_is_near_the_normal_one():
  values = np.random.default_rng(0).normal(size=400)
  (found,) = mean_intervals(values, samples=20_000)
  error = values.std() / math.sqrt(400)
  assert found.estimate == pytest.approx(values.mean())
  assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.004)
  assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.004)


def test_intervals_cover():
  """About 95 of 100 intervals hold the true mean."""
  generator = np.random.default_rng(1)
  held = 0
  for seed in range(300):
    (found,) = mean_intervals(
      generator.exponential(size=80), samples=400, seed=seed
    )
    held += found.low <= 1.0 <= found.high
  assert 0.90 < held / 300 < 0.98


def test_scipy_agrees_on_a_ratio_of_means():
  import scipy.stats

  generator = np.random.default_rng(2)
  x = generator.normal(3, 1, 60)
  y = x + generator.normal(1, 1, 60)
  columns = np.stack([y, x], 1)
  found = function_interval(
    columns, lambda m: m[..., 0] / m[..., 1], samples=20_000
  )
  theirs = scipy.stats.bootstrap(
    (y, x), lambda y, x, axis: y.mean(axis) / x.mean(axis), paired=True,
    method='percentile', n_resamples=20_000, random_state=0,
  ).confidence_interval  # fmt: skip
  assert found.low == pytest.approx(theirs.low, abs=0.004)
  assert found.high == pytest.approx(theirs.high, abs=0.004)


def test_clusters_are_drawn_whole():
  """Ten copies of each value tell no more than the value once."""
  values = np.random.default_rng(3).normal(size=50)
  labels = np.repeat(np.arange(50), 10)
  (once,) = mean_intervals(values, samples=4000)
  (copies,) = mean_intervals(
    np.repeat(values, 10), clusters=labels, samples=4000
  )
  (naive,) = mean_intervals(np.repeat(values, 10), samples=4000)
  assert (copies.low, copies.high) == pytest.approx((once.low, once.high))
  assert naive.high - naive.low < 0.5 * (copies.high - copies.low)


def test_clusters_of_unequal_size_weigh_by_size():
  (found,) = mean_intervals(
    [0.0, 0.0, 0.0, 1.0], clusters=['a', 'a', 'a', 'b'], samples=1000
  )
  assert found.estimate == 0.25
  assert (found.low, found.high) == (0.0, 1.0)


def test_same_seed_same_interval():
  values = np.random.default_rng(4).normal(size=30)
  one, two = (mean_intervals(values, seed=5, samples=99) for _ in range(2))
  assert one == two
  assert one != mean_intervals(values, seed=6, samples=99)


def test_few_values():
  (found,) = mean_intervals([2.0])
  assert found.estimate == 2.0
  assert math.isnan(found.low)
  assert not found.lies_apart_from(0.0)
  (empty,) = mean_intervals(np.zeros((0, 1)))
  assert math.isnan(empty.estimate)
  assert empty.as_dict()['estimate'] is None
  assert mean_and_standard_error([]).count == 0
  with pytest.raises(UserError, match='NaN among'):
    mean_intervals([1.0, math.nan])
  with pytest.raises(UserError, match='one label per pair'):
    mean_intervals([1.0, 2.0], clusters=['a'])


def test_compare_by_hand():
  """Scores, baselines: a win, a tie, a loss, a zero baseline, an invalid."""
  scores = [2.0, -1.0, -4.0, 1.0, np.nan]
  baseline = [1.0, -1.0, -2.0, 0.0, 5.0]
  found = compare(scores, baseline, samples=100)
  assert found.pairs == 4
  assert found.win_rate.estimate == pytest.approx(2.5 / 4)
  assert found.absolute_increase.estimate == pytest.approx((1 + 0 - 2 + 1) / 4)
  # Denominator |b|: +100%, 0%, -100%; the zero baseline is left out.
  assert found.percentage_increase.estimate == pytest.approx(0.0)
  assert found.zero_baselines == 1
  # Means -0.5 and -0.5.
  assert found.percentage_of_means.estimate == pytest.approx(0.0)


def test_compare_negative_baseline_counts_up_as_up():
  found = compare([-1.0, -1.0], [-2.0, -4.0], samples=50)
  assert found.percentage_increase.estimate == pytest.approx((50 + 75) / 2)
  assert found.percentage_of_means.estimate == pytest.approx(200 / 3)


def test_compare_nothing_and_wrong_lengths():
  found = compare([np.nan], [1.0])
  assert found.pairs == 0
  assert math.isnan(found.win_rate.estimate)
  with pytest.raises(UserError, match='not paired'):
    compare([1.0], [1.0, 2.0])
