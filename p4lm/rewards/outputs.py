"""How the heads' scores of a reward model become one reward."""

from __future__ import annotations

import dataclasses

import numpy as np

from p4lm.errors import UserError

OUTPUTS = ('score', 'probability', 'log_probability', 'logit')
HEADS = ('mean', 'min', 'lower')
SENTENCES = ('whole', 'min', 'mean')


@dataclasses.dataclass(frozen=True)
class RewardOutput:
  """What a joint reward reads of a reward model.

  Attributes:
    output: 'score' is the model's number as it is; 'logit', 'probability' and
      'log_probability' read it as log-odds.
    heads: of an ensemble the 'mean', the 'min', or 'lower', the mean less
      `std_weight` deviations: a policy is not paid for what heads disagree
      about (Coste et al. 2023).
    std_weight: 0 or more.
    calibrated: divides the log-odds by the temperature of the model's report.
    sentences: of entailment, asks about the 'whole' text, or about each
      sentence and takes their 'min' or 'mean', see `sentence_entailment`.
    premise_words: of the premise's chunks, then.
  """

  output: str = 'score'
  heads: str = 'mean'
  std_weight: float = 1.0
  calibrated: bool = False
  sentences: str = 'whole'
  premise_words: int = 40

  def __post_init__(self):
    choices = (
      ('output', OUTPUTS),
      ('heads', HEADS),
      ('sentences', SENTENCES),
    )
    for name, known in choices:
      if getattr(self, name) not in known:
        raise UserError(
          f'RewardOutput.{name} must be one of {", ".join(known)}, got '
          f'{getattr(self, name)!r}'
        )
    if not (np.isfinite(self.std_weight) and self.std_weight >= 0):
      raise UserError(
        f'RewardOutput.std_weight must be 0 or more, got {self.std_weight}'
      )
    if self.calibrated and self.output == 'score':
      raise UserError(
        "RewardOutput.calibrated divides log-odds: take output 'logit', "
        "'probability' or 'log_probability'"
      )


def combined(
  scores: np.ndarray, output: RewardOutput
) -> tuple[np.ndarray, np.ndarray]:
  """One score of each text, and how far the heads disagree about it.

  >>> scores = np.array([[1.0, 3.0], [2.0, 2.0]])
  >>> print(*combined(scores, RewardOutput(heads='lower')))
  [1. 2.] [1. 0.]

  Args:
    scores: float [R, K] of K heads.
    output: how.
  Returns:
    float [R], and the heads' standard deviation float [R] (divided by K).
  """
  spread = scores.std(axis=1)
  if output.heads == 'min':
    return scores.min(axis=1), spread
  mean = scores.mean(axis=1)
  if output.heads == 'lower':
    mean = mean - np.asarray(output.std_weight, mean.dtype) * spread
  return mean, spread


def against_population(
  points: np.ndarray, population: np.ndarray
) -> np.ndarray:
  """Mean log-odds [R] of points [R, K] to be preferred to a population's.

  Args:
    points: heads of preference 'general'.
    population: [K], the mean of its points.
  """
  population = np.asarray(population, points.dtype)
  across = points[:, ::2] @ population[1::2]
  return across - points[:, 1::2] @ population[::2]


def read(scores: np.ndarray, output: str, temperature: float) -> np.ndarray:
  """Scores [R] as they are, or read as log-odds over a temperature."""
  if output == 'score':
    return scores
  logits = scores / np.asarray(temperature, scores.dtype)
  if output == 'logit':
    return logits
  log_probabilities = -np.logaddexp(np.zeros((), scores.dtype), -logits)
  if output == 'log_probability':
    return log_probabilities
  return np.exp(log_probabilities)
