"""What a reward model must beat: chance, length, and a bag of tokens.

Each is fitted on the training split and answers with log-odds, so that it is
judged by the figures of the model itself. The bag of tokens is a logistic
regression on which tokens occur; it reads no order and no meaning, so what it
already gets right needs no understanding of the text.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import scipy.sparse
from scipy import special

PENALTIES = (0.3, 1.0, 3.0, 10.0, 30.0)
_EOS_ID = 1
_NEWTON_STEPS, _CONJUGATE_STEPS = 30, 60
_TOLERANCE = 1e-9


@dataclasses.dataclass(frozen=True)
class TokenExamples:
  """Tokenized examples of one split.

  Attributes:
    prompts: int [n, P], right-padded with 0.
    sides: int [n, L] each: the response, or the chosen and the rejected one.
    labels: float [n]; of pairs 1 where the chosen one won.
  """

  prompts: np.ndarray
  sides: tuple[np.ndarray, ...]
  labels: np.ndarray

  @property
  def lengths(self) -> tuple[np.ndarray, ...]:
    """int [n] each: tokens of the sides."""
    return tuple((side != 0).sum(axis=1) for side in self.sides)


@dataclasses.dataclass(frozen=True)
class Logistic:
  """log-odds(x) = x . weights + intercept."""

  weights: np.ndarray
  intercept: float

  def __call__(self, features) -> np.ndarray:
    """float64 [n] of features [n, D], dense or sparse."""
    return np.asarray(features @ self.weights).ravel() + self.intercept


def fit_logistic(
  features, labels: np.ndarray, penalty: float, *, intercept: bool = True
) -> Logistic:
  r"""Logistic regression with a ridge.

  Minimises  sum_b log(1 + e^{z_b}) - y_b z_b + penalty / 2 |w|^2,
  z = x . w + c, the intercept c free of the penalty, by Newton's method with
  conjugate gradients.

  Args:
    features: float [n, D], dense or sparse.
    labels: [n] in [0, 1].
    penalty: above 0.
    intercept: False fixes c at 0, as for differences of two texts.
  """
  features = scipy.sparse.csr_matrix(features, dtype=np.float64)
  labels = np.asarray(labels, np.float64)
  ridge = np.full(features.shape[1] + 1, float(penalty))
  ridge[-1] = 0.0 if intercept else 1.0
  ones = np.full((features.shape[0], 1), float(intercept))
  features = scipy.sparse.hstack([features, ones]).tocsr()

  def loss(point):
    logits = features @ point
    fitted = np.sum(np.logaddexp(0, logits) - labels * logits)
    return fitted + np.sum(ridge * point**2) / 2

  point = np.zeros(len(ridge))
  for _ in range(_NEWTON_STEPS):
    chances = special.expit(features @ point)
    gradient = features.T @ (chances - labels) + ridge * point
    if np.abs(gradient).max() <= _TOLERANCE * max(1, len(labels)):
      break
    spread = chances * (1 - chances)
    step = _conjugate_gradients(
      lambda v, spread=spread: (
        features.T @ (spread * (features @ v)) + ridge * v
      ),
      gradient,
    )
    # Half of what is left, until it helps: Newton's step may go too far.
    before, scale = loss(point), 1.0
    while loss(point - scale * step) > before and scale > 1e-6:
      scale /= 2
    point = point - scale * step
  return Logistic(point[:-1], float(point[-1] * intercept))


def _conjugate_gradients(apply, target: np.ndarray) -> np.ndarray:
  """Solves apply(x) = target for a positive definite map.

  Sums are written out: calls of threaded BLAS on short vectors, next to other
  work on the machine, take twenty times as long.
  """
  solution = np.zeros_like(target)
  residual = target.copy()
  direction, size = residual.copy(), np.sum(residual**2)
  enough = 1e-16 * size
  for _ in range(_CONJUGATE_STEPS):
    image = apply(direction)
    rate = size / np.sum(direction * image)
    solution += rate * direction
    residual -= rate * image
    size, before = np.sum(residual**2), size
    if size <= enough:
      break
    direction = residual + size / before * direction
  return solution


def classification_baselines(
  train: TokenExamples, judged: dict[str, TokenExamples]
) -> dict[str, dict[str, np.ndarray]]:
  """Log-odds of the baselines of a labelled task.

  `majority` knows the training labels' mean alone, `length` the lengths of
  prompt and response, `bag of tokens` which tokens are in the prompt, which in
  the response, and which of these are not in the prompt.

  Args:
    train: examples to fit on.
    judged: {split: examples}; on the first one penalties are chosen.
  Returns:
    {baseline: {split: float [n]}}.
  """
  rate = np.clip(train.labels.mean(), 1e-6, 1 - 1e-6)
  features = {'length': _lengths, 'bag of tokens': _bags}
  found = {
    'majority': {
      split: np.full(len(examples.labels), special.logit(rate))
      for split, examples in judged.items()
    }
  }
  for name, featurise in features.items():
    size = _vocabulary(train)
    model = _chosen(
      featurise(train, size),
      train.labels,
      [(featurise(e, size), e.labels) for e in judged.values()][0],
      intercept=True,
    )
    found[name] = {s: model(featurise(e, size)) for s, e in judged.items()}
  return found


def pairwise_baselines(
  train: TokenExamples, judged: dict[str, TokenExamples]
) -> dict[str, dict[str, np.ndarray]]:
  """Score gaps of the baselines of a task of pairs, chosen less rejected.

  `no opinion` says 0.5 of every pair, `length` knows the gap in length, `bag of
  tokens` which tokens one text has and the other has not.

  Args, Returns: see `classification_baselines`.
  """
  found = {
    'no opinion': {s: np.zeros(len(e.labels)) for s, e in judged.items()}
  }
  for name, featurise in (('length', _length_gap), ('bag of tokens', _bag_gap)):
    size = _vocabulary(train)
    tuning = [
      (featurise(e, size), np.ones(len(e.labels))) for e in judged.values()
    ][0]
    model = _chosen(
      featurise(train, size), np.ones(len(train.labels)), tuning,
      intercept=False,
    )  # fmt: skip
    found[name] = {s: model(featurise(e, size)) for s, e in judged.items()}
  return found


def _chosen(features, labels, tuning, *, intercept) -> Logistic:
  """The fit whose penalty gives the tuning examples the least NLL."""
  fits = [
    fit_logistic(features, labels, penalty, intercept=intercept)
    for penalty in PENALTIES
  ]

  def nll(fit):
    logits = fit(tuning[0])
    return np.mean(np.logaddexp(0, logits) - tuning[1] * logits)

  return min(fits, key=nll)


def _vocabulary(examples: TokenExamples) -> int:
  arrays = (examples.prompts, *examples.sides)
  return 1 + max(int(array.max(initial=0)) for array in arrays)


def _lengths(examples, size):
  del size
  prompt = (examples.prompts != 0).sum(axis=1)
  return np.log1p(np.stack([prompt, *examples.lengths], axis=1))


def _length_gap(examples, size):
  del size
  chosen, rejected = np.log1p(np.stack(examples.lengths))
  return (chosen - rejected)[:, None]


def _bags(examples, size):
  prompt, response = (
    _bag(tokens, size) for tokens in (examples.prompts, examples.sides[0])
  )
  new = response - response.multiply(prompt)
  return scipy.sparse.hstack([prompt, response, new]).tocsr()


def _bag_gap(examples, size):
  chosen, rejected = (_bag(side, size) for side in examples.sides)
  return (chosen - rejected).tocsr()


def _bag(tokens: np.ndarray, size: int):
  """csr float64 [n, size], 1 where a token occurs; unseen ones are left out."""
  rows, places = np.nonzero((tokens > _EOS_ID) & (tokens < size))
  cells = np.unique(np.stack([rows, tokens[rows, places]]), axis=1)
  return scipy.sparse.csr_matrix(
    (np.ones(cells.shape[1]), tuple(cells)), shape=(len(tokens), size)
  )
