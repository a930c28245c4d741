import numpy as np
import pytest
from scipy import special, stats

from p4lm.rewards import report


@pytest.fixture(name='generator')
def _generator():
  return np.random.default_rng(0)


def test_classification(generator):
  logits = 4 * generator.normal(size=4000)
  labels = generator.random(4000) < special.expit(logits / 2)
  lengths = 10 + logits + generator.normal(size=4000)
  found = report.classification_report(logits, labels, lengths)
  np.testing.assert_allclose(found['accuracy'], np.mean((logits > 0) == labels))
  np.testing.assert_allclose(found['share_positive'], labels.mean())
  assert abs(found['temperature'] - 2) < 0.2
  assert found['ece_scaled'] < 0.03 < found['ece']
  np.testing.assert_allclose(
    found['length_correlation'], np.corrcoef(logits, lengths)[0, 1]
  )


@pytest.mark.parametrize('count', [2000, 2001])
def test_pairs_are_counted_in_both_orders(generator, count):
  """Utilities whose gaps are twice too wide: temperature 2 mends them."""
  first, second = 3 * generator.normal(size=(2, count))
  first_wins = generator.random(count) < special.expit((first - second) / 2)
  chosen = np.where(first_wins, first, second)
  rejected = np.where(first_wins, second, first)
  lengths = generator.integers(5, 50, (2, count))
  found = report.pairwise_report(chosen, rejected, *lengths)
  assert found['count'] == count
  np.testing.assert_allclose(found['accuracy'], np.mean(chosen > rejected))
  np.testing.assert_allclose(
    found['nll'], np.mean(np.log1p(np.exp(rejected - chosen)))
  )
  assert abs(found['temperature'] - 2) < 0.3
  assert found['ece_scaled'] < 0.04 < found['ece']
  # A shift of all scores changes nothing.
  shifted = report.pairwise_report(chosen + 9, rejected + 9, *lengths)
  np.testing.assert_allclose(shifted['nll'], found['nll'], rtol=1e-9)
  assert abs(found['longer_wins'] - 0.5) < 0.05


def test_longer_wins_counts_equal_lengths_as_half():
  found = report.pairwise_report(
    [1.0, 2.0, 0.0, 1.0], [0.0, 1.0, 1.0, 0.0], [3, 3, 5, 3], [1, 3, 3, 9]
  )
  np.testing.assert_allclose(found['longer_wins'], 2.5 / 4)
  np.testing.assert_allclose(found['accuracy'], 0.75)


def test_regression(generator):
  targets = generator.normal(size=300)
  scores = 0.5 * targets + 0.1 * generator.normal(size=300)
  lengths = generator.normal(size=300)
  found = report.regression_report(scores, targets, lengths)
  np.testing.assert_allclose(
    found['rank_correlation'], stats.spearmanr(scores, targets).statistic
  )
  np.testing.assert_allclose(
    found['correlation'], np.corrcoef(scores, targets)[0, 1]
  )
  error = np.mean((scores - targets) ** 2)
  np.testing.assert_allclose(found['squared_error'], error)
  np.testing.assert_allclose(found['explained'], 1 - error / targets.var())
  constant = report.regression_report(
    np.full(300, targets.mean()), targets, lengths
  )
  np.testing.assert_allclose(constant['explained'], 0, atol=1e-12)
  assert constant['correlation'] == 0


def test_bad_inputs_are_named():
  with pytest.raises(ValueError, match=r'scores .* \(2,\) and \(1,\)'):
    report.pairwise_report([1.0, 2.0], [1.0], [1, 2], [1])
  with pytest.raises(ValueError, match='1 of 2 are not finite'):
    report.regression_report([1.0, np.nan], [1.0, 2.0], [1, 2])
