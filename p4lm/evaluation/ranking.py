r"""Ranking metrics over the full catalogue, with the conventions spelled out.

candidates  the whole catalogue; items that a user rated before never enter
            the list (`top_items.py`);
ties        the lower item row comes first; scores are float32;
short lists are padded with -1, which is never a hit;
relevance   is binary; NDCG's ideal has min(k, relevant items) hits, its
            discount is 1 / log2(rank + 1) (Jarvelin & Kekalainen 2002);
Recall@k    divides by the number of relevant items, Recall (truncated) by
            min(k, relevant items), Precision by k also where lists are short;
cold items  that no list can hold stay relevant: they are misses;
no truth    users without a relevant item are counted and left out (NaN);
coverage    is the share of the catalogue that is in any evaluated list.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from p4lm.errors import UserError
from p4lm.evaluation import statistics, table_one
from p4lm.evaluation.item_lists import ItemLists
from p4lm.evaluation.top_items import check_cutoff
from p4lm.typing import Float, Int

CONVENTIONS = (
  'full catalogue; items rated before excluded; ties to the lower row, scores '
  'in float32; binary relevance; ideal DCG of min(k, relevant); recall over '
  'all relevant items, cold ones too; users without truth left out'
)
METRICS = ('ndcg', 'recall', 'recall_truncated', 'precision', 'mrr', 'hr')
SAMPLES = 2000


@dataclasses.dataclass(frozen=True)
class RankingResult:
  """Per-user values and what they are over.

  Attributes:
    values: {'ndcg@20': float64 [U], ...}; NaN for users without truth.
    users_without_truth: number of users left out.
    coverage: {'coverage@20': share}, of the users with truth; empty where the
      size of the catalogue was not given.
  """

  values: Mapping[str, np.ndarray]
  users_without_truth: int
  coverage: Mapping[str, float] = dataclasses.field(default_factory=dict)

  @property
  def users(self) -> int:
    """Number of users with truth, whom the means are over."""
    return len(next(iter(self.values.values()))) - self.users_without_truth

  def means(self) -> dict[str, float]:
    """Mean of each metric over the users that have truth; NaN without any."""
    if not self.users:
      return dict.fromkeys(self.values, float('nan'))
    return {name: float(np.nanmean(v)) for name, v in self.values.items()}

  def intervals(
    self, *, samples: int = SAMPLES, level: float = 0.95, seed: int = 0
  ) -> dict[str, statistics.Interval]:
    """{metric: Interval} of the mean, from resampled users."""
    names = list(self.values)
    columns = np.stack([self.values[n] for n in names], 1)
    kept = columns[~np.isnan(columns[:, 0])]
    found = statistics.mean_intervals(
      kept, samples=samples, level=level, seed=seed
    )
    return dict(zip(names, found))


def evaluate_lists(
  top: Int[np.ndarray, 'U K'],
  truth: ItemLists,
  ks: Sequence[int],
  *,
  num_items: int | None = None,
) -> RankingResult:
  """Metrics of ranked lists at each cut-off.

  Args:
    top: int [U, K], item rows, best first, -1 for none.
    truth: the relevant items of each user. Rows that are in no list, such as
      those of cold items, count as relevant.
    ks: cut-offs, at least 1 and none above K.
    num_items: size of the catalogue, for the coverage.
  Returns:
    Values under the names `METRICS` with '@k'.
  Raises:
    UserError: a cut-off below 1 or above K, or other numbers of users.
  """
  check_cutoffs(ks)
  if len(top) != len(truth):
    raise UserError(
      f'{len(top)} ranked lists for {len(truth)} users with truth'
    )
  if max(ks) > top.shape[1]:
    raise UserError(f"cut-off {max(ks)} is above the lists' {top.shape[1]}")
  relevant = truth.counts()
  hits = _hits(top, truth)
  values, coverage = {}, {}
  for k in ks:
    for name, value in _at_k(hits[:, :k], relevant, k).items():
      values[f'{name}@{k}'] = np.where(relevant > 0, value, np.nan)
    if num_items:
      shown = np.unique(top[relevant > 0, :k])
      coverage[f'coverage@{k}'] = float(np.sum(shown >= 0) / num_items)
  return RankingResult(values, int(np.sum(relevant == 0)), coverage)


def contrasts(
  results: Mapping[str, RankingResult],
  pairs: Sequence[tuple[str, str]],
  metrics: Sequence[str],
  *,
  samples: int = SAMPLES,
  seed: int = 0,
) -> list[table_one.Contrast]:
  """Differences between rankers, paired by user.

  Args:
    results: {ranker: its result}, of the same users in the same order.
    pairs: (first, second) rankers; the difference is first - second.
    metrics: names such as 'ndcg@20'.
    samples, seed: of the paired bootstrap.
  Returns:
    One contrast a pair and metric.
  Raises:
    UserError: an unknown ranker or metric, or other numbers of users.
  """
  return table_one.contrasts(
    {name: result.values for name, result in results.items()},
    pairs,
    judge='held-out ratings',
    criteria=metrics,
    samples=samples,
    seed=seed,
  )


def check_cutoffs(ks: Sequence[int]) -> None:
  """Raises UserError unless there are cut-offs, distinct, each at least 1."""
  if isinstance(ks, int) or not len(ks) or len(set(ks)) < len(ks):
    raise UserError(
      f'the cut-offs are {ks!r}; give a tuple of distinct ones: (10, 20)'
    )
  for k in ks:
    check_cutoff(k)


def _hits(top, truth) -> np.ndarray:
  """bool [U, K]: is the item at this rank relevant?"""
  num_items = max(int(truth.rows.max(initial=-1)), int(top.max(initial=-1))) + 1
  users = np.repeat(np.arange(len(truth)), truth.counts())
  keys = np.sort(users * num_items + truth.rows)
  wanted = np.arange(len(top))[:, None] * num_items + top
  found = np.searchsorted(keys, wanted)
  found = np.minimum(found, max(len(keys) - 1, 0))
  equal = keys[found] == wanted if len(keys) else np.zeros(top.shape, bool)
  return equal & (top >= 0)


def _at_k(hits, relevant, k: int) -> dict[str, Float[np.ndarray, U]]:
  discounts = 1 / np.log2(np.arange(2, k + 2))
  reachable = np.minimum(relevant, k)
  ideal = np.concatenate([[0.0], np.cumsum(discounts)])[reachable]
  count = hits.sum(axis=1)
  first = np.where(count > 0, hits.argmax(axis=1) + 1, np.inf)
  at_least_one = np.maximum(relevant, 1)
  return {
    'ndcg': hits @ discounts / np.maximum(ideal, discounts[0]),
    'recall': count / at_least_one,
    'recall_truncated': count / np.minimum(at_least_one, k),
    'precision': count / k,
    'mrr': 1 / first,
    'hr': (count > 0).astype(float),
  }
