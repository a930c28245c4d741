"""Weightings of reward terms for one policy that is told which one to follow.

A policy of the joint reward fits one weighting; another one needs another
training. A conditioned policy is trained over many at once: each prompt comes
with a weighting w of the terms, drawn from a Dirichlet distribution, the prompt
begins with it in words, and its responses are paid by

    r_w(y) = sum_k w_k c_k r_k(y),    sum_k w_k = 1,

where c_k are the weights of `JointRewardConfig`, which bring terms of different
units to one scale. In expectation over w this is the objective of conditional
language policies (K. Wang et al. 2024, "Conditional Language Policy"). Each w
has its optimum, p_ref(y) exp(r_w(y) / beta) / Z_w, and a user chooses w when
the training is over. Words in the prompt, as in directional preference
alignment (H. Wang et al. 2024), need no parameters of their own: samplers,
learners, critics and a replay read them as they read any prompt. Left out: the
mixing of parameters by w, which needs an adapter for each term.

Weights are whole parts of `levels` in the prompt and in the reward alike, so
what is said is what is paid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from p4lm.errors import UserError

Parts = Mapping[str, int]

# Keeps these draws apart from others that are made of the run's seed.
_DRAWS = 1_000_081


@dataclasses.dataclass(frozen=True)
class WeightingConfig:
  """Over which weightings a policy is trained.

  Attributes:
    concentration: of the symmetric Dirichlet distribution; 1 draws uniformly
      from the simplex, less favours its corners, more its middle.
    levels: parts that a weighting is divided into.
  """

  concentration: float = 1.0
  levels: int = 10

  def __post_init__(self):
    if not 0 < self.concentration < np.inf:
      raise UserError(
        'WeightingConfig.concentration must be above 0 and finite, got '
        f'{self.concentration}'
      )
    if self.levels < 1:
      raise UserError(
        f'WeightingConfig.levels must be 1 or more, got {self.levels}'
      )


@dataclasses.dataclass(frozen=True)
class Weighted:
  """The terms whose weights a policy's prompts tell, in order.

  Attributes:
    terms: at least two names.
    levels: parts of a weighting.
  """

  terms: tuple[str, ...]
  levels: int

  def __post_init__(self):
    if len(self.terms) < 2:
      raise UserError(
        'a policy is conditioned on the weights of two reward terms or more, '
        f'got {", ".join(self.terms) or "none"}'
      )

  def drawn(self, concentration: float, seed: int, number: int) -> Parts:
    """The weighting of prompt `number` of a run, of these numbers alone.

    Args:
      concentration: of the Dirichlet distribution.
      seed: of the run.
      number: how many prompts came before, whatever the batch size.
    """
    generator = np.random.default_rng([seed, _DRAWS, number])
    weights = generator.dirichlet(np.full(len(self.terms), concentration))
    return self._rounded(weights)

  def of(self, weights: Mapping[str, float] | None) -> Parts:
    """Weights that a user wants, in parts.

    >>> of = Weighted(('nli', 'appeal'), levels=10).of
    >>> of({'nli': 2.0, 'appeal': 1.0})
    {'nli': 7, 'appeal': 3}
    >>> of({'appeal': 1})
    {'nli': 0, 'appeal': 10}

    Args:
      weights: at least 0, in any unit; a term that is left out has none.
    Raises:
      UserError: no weights, an unknown term, a number below 0, or nothing but
        zeros.
    """
    if not weights:
      raise UserError(
        'this policy is told the weights of its rewards and got none: give '
        f'weights {{name: number}} of {", ".join(self.terms)}'
      )
    if not isinstance(weights, Mapping):
      raise UserError(f'weights must be {{name: number}}, got {weights!r}')
    unknown = sorted(set(weights) - set(self.terms))
    if unknown:
      raise UserError(
        f'weights name {", ".join(unknown)}, of which the policy '
        f'knows nothing; it was trained on {", ".join(self.terms)}'
      )
    try:
      wanted = np.array([float(weights.get(n, 0.0)) for n in self.terms])
    except (TypeError, ValueError) as error:
      raise UserError(
        f'weights must be numbers, got {dict(weights)}'
      ) from error
    if not (np.isfinite(wanted).all() and wanted.min() >= 0 < wanted.max()):
      raise UserError(
        f'weights must be finite, 0 or more and not all 0, got {dict(weights)}'
      )
    # Of the greatest first: a sum of large numbers could overflow.
    wanted = wanted / wanted.max()
    return self._rounded(wanted / wanted.sum())

  def shares(self, parts: Parts) -> dict[str, float]:
    """{term: weight}, which sum to 1: what a response is paid by."""
    return {name: parts[name] / self.levels for name in self.terms}

  def _rounded(self, weights: np.ndarray) -> Parts:
    """Parts that sum to `levels`, by the largest remainders."""
    exact = weights * self.levels
    parts = np.floor(exact).astype(int)
    rest = self.levels - parts.sum()
    # Stable: the first of equal remainders, so that a draw means one weighting.
    order = np.argsort(parts - exact, kind='stable')
    parts[order[:rest]] += 1
    return dict(zip(self.terms, parts.tolist()))
