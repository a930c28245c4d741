"""The joint reward: every term weighted, normalised, capped and logged once."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from p4lm.errors import UserError
from p4lm.rewards.terms import (
  RewardRequest,
  RewardTerm,
  TermValues,
  evaluate_term,
)

# P4LM's weights of precision, appeal, personalization and relevance.
PAPER_WEIGHTS = {
  'nli': 2.0,
  'appeal': 0.1,
  'personalization': 1.0,
  'relevance': 1.0,
}
NORMALISATIONS = ('none', 'population_mean', 'batch')
ORDERS = ('normalise_then_sum', 'sum_then_normalise')

# Keeps a division finite when a term says the same of all texts.
_SPREAD_FLOOR = 1e-6


@dataclasses.dataclass(frozen=True)
class JointRewardConfig:
  """How terms become one reward.

  Attributes:
    weights: by term name. A term without a weight, or with weight 0, is only
      watched: logged, without a say in the total or in what is valid. A
      request's own `shares` multiply them.
    normalisation: 'none'; 'population_mean' subtracts each term's mean over a
      population of texts (the paper's centring, see `population_means_of`);
      'batch' subtracts the batch's mean and divides by its deviation.
    order: 'normalise_then_sum' treats each term and then weights it;
      'sum_then_normalise' weights and sums first and treats the total, so that
      a term of wide spread keeps its weight in the sum.
    population_means: by term name, for 'population_mean'.
    caps: by term name, (lowest, highest) value that counts, either may be
      None; applied to the raw value, before anything else.
  """

  weights: Mapping[str, float] = dataclasses.field(
    default_factory=lambda: dict(PAPER_WEIGHTS)
  )
  normalisation: str = 'none'
  order: str = 'normalise_then_sum'
  population_means: Mapping[str, float] = dataclasses.field(
    default_factory=dict
  )
  caps: Mapping[str, tuple[float | None, float | None]] = dataclasses.field(
    default_factory=dict
  )

  def __post_init__(self):
    if self.normalisation not in NORMALISATIONS:
      raise UserError(
        f'normalisation must be one of {", ".join(NORMALISATIONS)}, got '
        f'{self.normalisation!r}'
      )
    if self.order not in ORDERS:
      raise UserError(
        f'order must be one of {", ".join(ORDERS)}, got {self.order!r}'
      )
    for name, weight in self.weights.items():
      if not np.isfinite(weight):
        raise UserError(f'the weight of term {name!r} must be finite: {weight}')
    for name, (low, high) in self.caps.items():
      if low is not None and high is not None and low > high:
        raise UserError(
          f'the caps of term {name!r} are (lowest, highest), got {low} > {high}'
        )


@dataclasses.dataclass(frozen=True)
class JointValues:
  """The joint reward of a batch and what it is made of.

  Attributes:
    total: float32 [B], 0 where not valid.
    valid: bool [B], True where every term that counts for it has a value.
    by_term: raw values and validity of every term.
    metrics: means, deviations, shares and counts, ready to be logged.
  """

  total: np.ndarray
  valid: np.ndarray
  by_term: Mapping[str, TermValues]
  metrics: Mapping[str, float]


class JointReward:
  """Weighted sum of terms; see `JointRewardConfig` for each choice.

  Args:
    terms: judges of distinct names.
    config: weights, normalisation, caps.

  Raises:
    UserError: two terms of one name, a weight or a cap for a term that is not
      there, no weighted term, or a population mean that is missing.
  """

  def __init__(
    self, terms: Sequence[RewardTerm], config: JointRewardConfig | None = None
  ):
    self.terms = {term.name: term for term in terms}
    self.config = config or JointRewardConfig()
    names = [term.name for term in terms]
    if len(self.terms) != len(names):
      raise UserError(f'reward terms need distinct names, got {names}')
    weighted = {n for n, w in self.config.weights.items() if w != 0.0}
    for what, named in (('weights', weighted), ('caps', self.config.caps)):
      unknown = sorted(set(named) - set(names))
      if unknown:
        raise UserError(
          f'{what} name reward terms that are not there: '
          f'{", ".join(unknown)}; the terms are {", ".join(names)}. Give '
          f'REWARDS for all of them, or other JointRewardConfig.{what}'
        )
    self.weights = {
      name: float(self.config.weights[name])
      for name in names
      if name in weighted
    }
    if not self.weights:
      raise UserError(
        f'no reward term has a weight; the terms are {", ".join(names)}'
      )
    if self.config.normalisation == 'population_mean':
      missing = sorted(set(self.weights) - set(self.config.population_means))
      if missing:
        raise UserError(
          'population_mean needs a mean for each weighted term; missing: '
          f'{", ".join(missing)}'
        )

  def __call__(self, requests: Sequence[RewardRequest]) -> JointValues:
    """Judges B texts.

    Raises:
      UserError: a term threw, returned the wrong number of values, or (for a
        weighted term) no finite value for any of the texts.
    """
    by_term = {
      name: evaluate_term(term, requests) for name, term in self.terms.items()
    }
    shares = self._shares(requests)
    valid = np.ones(len(requests), bool)
    for name, share in shares.items():
      valid &= by_term[name].valid | (share == 0)
      if share.any() and not by_term[name].valid.any():
        raise UserError(
          f'reward term {name!r} has no finite value for any of '
          f'{len(requests)} texts: nothing can be learned from it'
        )
    total = np.where(valid, self._total(by_term, shares, valid), 0.0)
    total = total.astype(np.float32)
    metrics = _metrics(by_term, total, valid) | _slopes(by_term, shares)
    return JointValues(total, valid, by_term, metrics)

  def _shares(self, requests):
    """float64 [B] of every weighted term; 1 where a request says nothing."""
    return {
      name: np.array(
        [
          1.0 if request.shares is None else request.shares.get(name, 0.0)
          for request in requests
        ]
      )
      for name in self.weights
    }

  def _total(self, by_term, shares, valid):
    batch = self.config.normalisation == 'batch'
    each = self.config.order == 'normalise_then_sum'
    total = np.zeros(len(valid))
    for name, weight in self.weights.items():
      values = self._capped(name, by_term[name].values.astype(np.float64))
      if self.config.normalisation == 'population_mean':
        # Linear: before or after the sum is the same.
        values = values - self.config.population_means[name]
      if batch and each:
        values = _standardised(values, valid & by_term[name].valid)
      total += weight * shares[name] * values
    return _standardised(total, valid) if batch and not each else total

  def _capped(self, name, values):
    low, high = self.config.caps.get(name, (None, None))
    if low is None and high is None:
      return values
    return np.clip(values, low, high)


def population_means_of(
  terms: Sequence[RewardTerm], requests: Sequence[RewardRequest]
) -> dict[str, float]:
  """Each term's mean over a population of texts, for `JointRewardConfig`.

  Caps are not applied: give the population that the caps leave alone.

  Raises:
    UserError: a term has no finite value for any of the texts.
  """
  means = {}
  for term in terms:
    answer = evaluate_term(term, requests)
    if not answer.valid.any():
      raise UserError(
        f'reward term {term.name!r} has no finite value for any of '
        f'{len(requests)} texts, so no population mean'
      )
    means[term.name] = float(answer.values[answer.valid].mean(dtype=np.float64))
  return means


def _standardised(values, valid):
  kept = values[valid]
  if not kept.size:
    return np.zeros_like(values)
  return (values - kept.mean()) / (kept.std() + _SPREAD_FLOOR)


def _metrics(by_term, total, valid):
  metrics = {}
  for name, answer in by_term.items():
    kept = answer.values[answer.valid].astype(np.float64)
    if kept.size:
      metrics[f'reward/{name}/mean'] = float(kept.mean())
      metrics[f'reward/{name}/std'] = float(kept.std())
    # A single head never disagrees with itself.
    if kept.size and answer.spread is not None and answer.spread.any():
      spread = answer.spread[answer.valid].mean(dtype=np.float64)
      metrics[f'reward/{name}/spread'] = float(spread)
    metrics[f'reward/{name}/share_valid'] = _share(answer.valid)
    for event, count in answer.counts.items():
      metrics[f'reward/{name}/{event}'] = float(count)
  if valid.any():
    metrics['reward/total/mean'] = float(total[valid].mean(dtype=np.float64))
    metrics['reward/total/std'] = float(total[valid].std(dtype=np.float64))
  metrics['reward/total/share_valid'] = _share(valid)
  return metrics


def _slopes(by_term, shares):
  """How much a term rises from share 0 to 1, by least squares over the texts.

  What the shares of conditioned prompts do; nothing where all are the same.
  """
  metrics = {}
  for name, share in shares.items():
    kept = by_term[name].valid
    centred = share[kept] - share[kept].mean() if kept.any() else share[:0]
    if centred.any():
      values = by_term[name].values[kept].astype(np.float64)
      slope = centred @ values / (centred @ centred)
      metrics[f'reward/{name}/by_share'] = float(slope)
  return metrics


def _share(valid):
  return float(valid.mean()) if valid.size else 1.0
