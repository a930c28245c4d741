"""Calibration: does a probability of 0.8 come true eight times in ten?

NumPy in float64, on the host: these figures go into reports.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy import optimize, special

# A temperature beyond these means that no finite one is best: separable
# scores want 0, scores that point the wrong way want infinity.
TEMPERATURE_RANGE = (1e-3, 1e3)


def expected_calibration_error(
  probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = 15
) -> float:
  r"""Gap between stated probability and frequency, averaged over the data.

      ECE = sum_k (n_k / n) |mean(labels in bin k) - mean(p in bin k)|

  over `bins` bins of equal width on [0, 1] (Naeini et al. 2015), of the
  probability of label 1, not of the predicted class. Bins are closed on the
  right, the first on both sides.

  >>> print(round(expected_calibration_error([0.8, 0.8], [1, 0]), 12))
  0.3

  Args:
    probabilities: float [n] in [0, 1].
    labels: [n], 0 or 1.
    bins: how many.
  Returns:
    in [0, 1]; its floor for n perfectly calibrated examples is of the order of
    sqrt(bins / n), not 0.
  Raises:
    ValueError: shapes differ, nothing is given, or a value is out of range.
  """
  probabilities, labels = _checked_probabilities(probabilities, labels)
  which = _bins_of(probabilities, bins)
  gaps = np.bincount(which, weights=labels - probabilities, minlength=bins)
  return float(np.sum(np.abs(gaps)) / len(labels))


def brier_score(probabilities: npt.ArrayLike, labels: npt.ArrayLike) -> float:
  """Mean squared distance between probability and label (Brier 1950).

  >>> print(brier_score([0.5, 1.0], [1, 1]))
  0.125
  """
  probabilities, labels = _checked_probabilities(probabilities, labels)
  return float(np.mean(np.square(probabilities - labels)))


def negative_log_likelihood(
  logits: npt.ArrayLike, labels: npt.ArrayLike, *, temperature: float = 1.0
) -> float:
  """Mean -log p(label), p = sigmoid(logit / temperature); nats an example.

  >>> print(f'{negative_log_likelihood([0.0], [1]):.4f}')
  0.6931
  """
  logits, labels = _checked_logits(logits, labels)
  scaled = logits / temperature
  return float(np.mean(np.logaddexp(0.0, scaled) - labels * scaled))


def fit_temperature(logits: npt.ArrayLike, labels: npt.ArrayLike) -> float:
  r"""The temperature tau that minimises the NLL of sigmoid(logit / tau).

  Temperature scaling (Guo et al. 2017) leaves the order of the scores alone.
  The NLL is convex in 1 / tau, so the root of its slope,
  sum_b (sigmoid(z_b / tau) - y_b) z_b = 0, is the one minimum.

  Returns:
    tau within TEMPERATURE_RANGE: its lower end for scores that separate the
    labels, its upper end for scores that are no better than chance.
  """
  logits, labels = _checked_logits(logits, labels)

  def slope(log_temperature):
    scaled = logits * np.exp(-log_temperature)
    return np.mean((special.expit(scaled) - labels) * logits)

  low, high = np.log(TEMPERATURE_RANGE)
  if slope(low) <= 0:
    return TEMPERATURE_RANGE[0]
  if slope(high) >= 0:
    return TEMPERATURE_RANGE[1]
  return float(np.exp(optimize.brentq(slope, low, high, xtol=1e-12)))


@dataclasses.dataclass(frozen=True)
class Reliability:
  """What a reliability diagram shows: B bins of equal width that are not empty.

  Attributes:
    probabilities: float [B], mean stated probability.
    frequencies: float [B], mean label.
    counts: int [B].
  """

  probabilities: np.ndarray
  frequencies: np.ndarray
  counts: np.ndarray


def reliability(
  probabilities: npt.ArrayLike, labels: npt.ArrayLike, *, bins: int = 15
) -> Reliability:
  """Stated probability and frequency by bin.

  With the bins of `expected_calibration_error`, which is the mean of
  |frequencies - probabilities| weighed by `counts`.

  >>> found = reliability([0.1, 0.3, 0.9], [0, 1, 1], bins=2)
  >>> print(found.probabilities, found.frequencies, found.counts)
  [0.2 0.9] [0.5 1. ] [2 1]
  """
  probabilities, labels = _checked_probabilities(probabilities, labels)
  which = _bins_of(probabilities, bins)
  counts = np.bincount(which, minlength=bins)
  kept = counts > 0
  means = [
    np.bincount(which, weights=values, minlength=bins)[kept] / counts[kept]
    for values in (probabilities, labels)
  ]
  return Reliability(means[0], means[1], counts[kept])


@dataclasses.dataclass(frozen=True)
class Calibration:
  """How well logits predict binary labels, before and after rescaling.

  The `_scaled` figures are honest: the temperature is one that other examples
  gave. `temperature` is that one, or, cross-fitted, that of all examples.
  """

  accuracy: float
  nll: float
  brier: float
  ece: float
  temperature: float
  nll_scaled: float
  brier_scaled: float
  ece_scaled: float
  count: int


def calibration_of(
  logits: npt.ArrayLike,
  labels: npt.ArrayLike,
  *,
  bins: int = 15,
  halves: npt.ArrayLike | None = None,
  temperature: float | None = None,
) -> Calibration:
  """Measures accuracy and calibration of logits against labels 0 and 1.

  A logit of exactly 0 counts as half right. Without a `temperature` each half
  of the examples is scaled by the one fitted on the other half.

  Args:
    logits: float [n].
    labels: [n].
    bins: of the calibration error.
    halves: bool [n], the half of each example for the cross-fit, so that
      examples which belong together share one; None takes even positions.
  Raises:
    ValueError: fewer than 2 examples, shapes differ, or a value is not finite.
  """
  logits, labels = _checked_logits(logits, labels)
  if len(labels) < 2:
    raise ValueError(f'calibration needs 2 or more examples, got {len(labels)}')
  if temperature is None:
    temperature = fit_temperature(logits, labels)
    scaled = _cross_fitted(logits, labels, halves)
  else:
    scaled = logits / temperature
  plain = special.expit(logits)
  rescaled = special.expit(scaled)
  agrees = np.sign(logits) * (2 * labels - 1)
  return Calibration(
    accuracy=float(np.mean((agrees + 1) / 2)),
    nll=negative_log_likelihood(logits, labels),
    brier=brier_score(plain, labels),
    ece=expected_calibration_error(plain, labels, bins=bins),
    temperature=float(temperature),
    nll_scaled=negative_log_likelihood(scaled, labels),
    brier_scaled=brier_score(rescaled, labels),
    ece_scaled=expected_calibration_error(rescaled, labels, bins=bins),
    count=len(labels),
  )


def _cross_fitted(logits, labels, halves):
  """Logits over the temperature of the half that each is not in."""
  if halves is None:
    halves = np.arange(len(labels)) % 2 == 0
  halves = np.asarray(halves, bool)
  if halves.all() or not halves.any():
    raise ValueError('both halves must have an example')
  scaled = np.empty_like(logits)
  for half in (halves, ~halves):
    scaled[half] = logits[half] / fit_temperature(logits[~half], labels[~half])
  return scaled


def _bins_of(probabilities, bins):
  edges = np.linspace(0.0, 1.0, bins + 1)
  return np.clip(np.searchsorted(edges, probabilities) - 1, 0, bins - 1)


def correlation(first: npt.ArrayLike, second: npt.ArrayLike) -> float:
  """Pearson correlation in float64; 0 when either is constant.

  >>> print(round(correlation([1, 2, 3], [2, 4, 6]), 12))
  1.0
  """
  first = np.asarray(first, np.float64)
  second = np.asarray(second, np.float64)
  if first.shape != second.shape or first.ndim != 1 or not len(first):
    raise ValueError(
      f'two vectors of one length are needed, got {first.shape} and '
      f'{second.shape}'
    )
  # Deviations of a constant from its mean are rounding, which correlates.
  if np.ptp(first) == 0 or np.ptp(second) == 0:
    return 0.0
  first, second = first - first.mean(), second - second.mean()
  spread = np.sqrt(np.sum(first**2)) * np.sqrt(np.sum(second**2))
  return float(np.sum(first * second) / spread) if spread > 0 else 0.0


def _checked_logits(logits, labels):
  logits = np.asarray(logits, np.float64)
  labels = np.asarray(labels, np.float64)
  if logits.shape != labels.shape or logits.ndim != 1 or not len(logits):
    raise ValueError(
      'scores and labels must be vectors of one length above 0, got '
      f'{logits.shape} and {labels.shape}'
    )
  if not np.isfinite(logits).all():
    raise ValueError(
      f'{np.sum(~np.isfinite(logits))} of {len(logits)} scores are not finite'
    )
  if not np.isin(labels, (0.0, 1.0)).all():
    raise ValueError('labels must be 0 or 1')
  return logits, labels


def _checked_probabilities(probabilities, labels):
  probabilities, labels = _checked_logits(probabilities, labels)
  if probabilities.min() < 0 or probabilities.max() > 1:
    raise ValueError(
      'probabilities must be in [0, 1], got values from '
      f'{probabilities.min()} to {probabilities.max()}'
    )
  return probabilities, labels
