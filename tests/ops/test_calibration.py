import numpy as np
import pytest
import statsmodels.api as sm
from scipy import special

from p4lm.ops import calibration


def _drawn(tau, count=20_000, seed=0):
  """Scores, and labels drawn from sigmoid(score / tau)."""
  generator = np.random.default_rng(seed)
  scores = 3 * generator.normal(size=count)
  labels = generator.random(count) < special.expit(scores / tau)
  return scores, labels.astype(int)


@pytest.mark.parametrize('tau', [0.4, 1.0, 2.5])
def test_temperature_scaling_recovers_the_temperature(tau):
  scores, labels = _drawn(tau)
  assert abs(calibration.fit_temperature(scores, labels) / tau - 1) < 0.04


def test_temperature_is_the_inverse_of_a_logit_slope():
  scores, labels = _drawn(1.7, count=500)
  slope = sm.Logit(labels, scores[:, None]).fit(disp=False, tol=1e-13).params[0]
  np.testing.assert_allclose(
    calibration.fit_temperature(scores, labels), 1 / slope, rtol=1e-6
  )


def test_scaling_mends_overconfidence():
  scores, labels = _drawn(3.0)
  found = calibration.calibration_of(scores, labels)
  assert found.ece > 0.1
  assert found.ece_scaled < 0.02
  assert found.nll_scaled < found.nll
  assert found.brier_scaled < found.brier
  assert found.count == len(labels)
  # Scaling keeps the order, so accuracy is one number.
  np.testing.assert_allclose(found.accuracy, np.mean((scores > 0) == labels))


def test_calibrated_probabilities_have_a_small_error():
  scores, labels = _drawn(1.0)
  ece = calibration.expected_calibration_error(special.expit(scores), labels)
  assert ece < 0.02


def test_ece_by_hand_with_two_bins():
  # Bin (0, .5]: mean p .3, one of two; bin (.5, 1]: mean p .9, one of one.
  ece = calibration.expected_calibration_error(
    [0.1, 0.5, 0.9], [0, 1, 1], bins=2
  )
  np.testing.assert_allclose(ece, 2 / 3 * 0.2 + 1 / 3 * 0.1)


def test_ece_keeps_the_ends():
  assert calibration.expected_calibration_error([0.0, 1.0], [0, 1]) == 0
  assert calibration.expected_calibration_error([0.0, 1.0], [1, 0]) == 1


def test_scores_without_a_best_temperature_get_the_end_of_the_range():
  scores = np.array([-2.0, -1.0, 1.0, 2.0])
  low, high = calibration.TEMPERATURE_RANGE
  assert calibration.fit_temperature(scores, scores > 0) == low
  assert calibration.fit_temperature(scores, scores < 0) == high
  assert calibration.fit_temperature(np.zeros(4), [0, 1, 0, 1]) in (low, high)


def test_correlation_equals_numpy():
  first, second = np.random.default_rng(0).normal(size=(2, 30))
  np.testing.assert_allclose(
    calibration.correlation(first, second), np.corrcoef(first, second)[0, 1]
  )
  assert calibration.correlation(np.full(30, 0.1), second) == 0


@pytest.mark.parametrize(
  'scores,labels,named',
  [
    ([1.0, np.nan], [0, 1], '1 of 2 scores are not finite'),
    ([1.0, 2.0], [0, 2], 'labels must be 0 or 1'),
    ([1.0], [0, 1], r'\(1,\) and \(2,\)'),
    ([1.0], [0], '2 or more'),
  ],
)
def test_bad_inputs_are_named(scores, labels, named):
  with pytest.raises(ValueError, match=named):
    calibration.calibration_of(scores, labels)
  if named.startswith('labels'):
    with pytest.raises(ValueError, match=r'in \[0, 1\]'):
      calibration.brier_score([1.5], [1])


def test_a_temperature_of_other_examples_is_taken():
  scores, labels = _drawn(2.0, count=300)
  found = calibration.calibration_of(scores, labels, temperature=2.0)
  assert found.temperature == 2.0
  np.testing.assert_allclose(
    found.nll_scaled,
    calibration.negative_log_likelihood(scores / 2.0, labels),
  )


@pytest.mark.parametrize('bins', [1, 7, 15])
def test_reliability_bins_give_the_calibration_error(bins):
  scores, labels = _drawn(3.0, count=500)
  probabilities = special.expit(scores)
  found = calibration.reliability(probabilities, labels, bins=bins)
  gaps = np.abs(found.frequencies - found.probabilities)
  np.testing.assert_allclose(
    (gaps * found.counts).sum() / found.counts.sum(),
    calibration.expected_calibration_error(probabilities, labels, bins=bins),
  )
  assert found.counts.sum() == 500 and (found.counts > 0).all()
