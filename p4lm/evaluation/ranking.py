r"""Ranking metrics over the full catalogue, with the conventions spelled out.

exclusions  items a user already rated never enter the list;
ties        the lower item row comes first; scores are float32;
short lists are padded with -1, which is never a hit;
relevance   is binary; NDCG's ideal has min(k, relevant items) hits;
Recall@k    divides by the number of relevant items, Recall (truncated) by
            min(k, relevant items);
no truth    users without a relevant item are counted and left out (NaN).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from p4lm.errors import UserError
from p4lm.evaluation import statistics
from p4lm.typing import Float, Int

CONVENTIONS = (
  'full catalogue; rated items excluded; ties to the lower row; binary '
  'relevance; recall over all relevant items; users without truth left out'
)
METRICS = ('ndcg', 'recall', 'recall_truncated', 'precision', 'mrr', 'hr')
_BATCH_SCORES = 1 << 24


@dataclasses.dataclass(frozen=True)
class ItemLists:
  """A list of item rows for each user (a CSR matrix without values).

  Attributes:
    starts: int64 [U + 1]; user u has `rows[starts[u]:starts[u + 1]]`.
    rows: int [M], item rows.
  """

  starts: np.ndarray
  rows: np.ndarray

  @classmethod
  def from_pairs(cls, user_rows, item_rows, num_users: int) -> ItemLists:
    """Groups pairs by user; a pair given twice counts once."""
    user_rows, item_rows = np.asarray(user_rows), np.asarray(item_rows)
    pairs = np.unique(np.stack([user_rows, item_rows]), axis=1)
    counts = np.bincount(pairs[0].astype(int), minlength=num_users)
    return cls(np.concatenate([[0], np.cumsum(counts)]), pairs[1].astype(int))

  def __len__(self) -> int:
    return len(self.starts) - 1

  def __getitem__(self, user: int) -> np.ndarray:
    return self.rows[self.starts[user] : self.starts[user + 1]]

  def mask(self, users: slice, num_items: int) -> np.ndarray:
    """bool [len(users), num_items], True at listed items."""
    first, last, _ = users.indices(len(self))
    counts = np.diff(self.starts[first : last + 1])
    mask = np.zeros((last - first, num_items), bool)
    listed = self.rows[self.starts[first] : self.starts[last]]
    mask[np.repeat(np.arange(last - first), counts), listed] = True
    return mask


@dataclasses.dataclass(frozen=True)
class RankingResult:
  """Per-user values and what they are over.

  Attributes:
    values: {'ndcg@20': float64 [U], ...}; NaN for users without truth.
    users_without_truth: number of users left out.
  """

  values: Mapping[str, np.ndarray]
  users_without_truth: int

  def means(self) -> dict[str, float]:
    """Mean of each metric over the users that have truth."""
    return {name: float(np.nanmean(v)) for name, v in self.values.items()}

  def intervals(self, *, samples: int = 2000, seed: int = 0):
    """{metric: Interval} from resampled users."""
    names = list(self.values)
    columns = np.stack([self.values[n] for n in names], 1)
    kept = columns[~np.isnan(columns[:, 0])]
    found = statistics.mean_intervals(kept, samples=samples, seed=seed)
    return dict(zip(names, found))


def top_items(
  user_embeddings, item_embeddings, k: int, *, exclude: ItemLists | None = None,
  item_offsets=None,
) -> np.ndarray:  # fmt: skip
  """The k best items of each user by x_u.y_i (+ offset_i).

  Args:
    user_embeddings: float [U, E].
    item_embeddings: float [I, E].
    k: length of the lists, at least 1.
    exclude: items that never enter a user's list.
    item_offsets: float [I] added to every user's scores, or None.
  Returns:
    int32 [U, k], best first, -1 where fewer than k items are left.
  """
  users = np.asarray(user_embeddings, np.float32)
  items = np.asarray(item_embeddings, np.float32)
  offsets = np.zeros(len(items)) if item_offsets is None else item_offsets
  offsets = jnp.asarray(offsets, jnp.float32)
  batch = max(1, min(len(users), _BATCH_SCORES // max(len(items), 1)))
  lists = []
  for start in range(0, len(users), batch):
    part = users[start : start + batch]
    # The last batch is padded so that one program serves all.
    padded = np.zeros((batch, users.shape[1]), np.float32)
    padded[: len(part)] = part
    mask = np.zeros((batch, len(items)), bool)
    if exclude is not None:
      mask[: len(part)] = exclude.mask(
        slice(start, start + len(part)), len(items)
      )
    scores = _masked_scores(padded, items, offsets, mask)
    lists.append(np.asarray(_top(scores, min(k, len(items))))[: len(part)])
  return _pad_lists(np.concatenate(lists), k)


def top_of_scores(scores, k: int) -> np.ndarray:
  """The k best columns of each row; -inf and NaN never enter.

  >>> top_of_scores(np.array([[1.0, 3.0, 3.0, -np.inf]]), 4).tolist()
  [[1, 2, 0, -1]]

  Args:
    scores: float [U, I]; compared in float32.
    k: length of the lists.
  Returns:
    int32 [U, k].
  """
  scores = np.asarray(scores, np.float32)
  scores = np.where(np.isnan(scores), -np.inf, scores)
  top = np.asarray(_top(jnp.asarray(scores), min(k, scores.shape[1])))
  return _pad_lists(top, k)


@jax.jit
def _masked_scores(users, items, offsets, mask):
  scores = jnp.matmul(users, items.T, precision=jax.lax.Precision.HIGHEST)
  return jnp.where(mask, -jnp.inf, scores + offsets[None, :])


def _top(scores, k: int):
  # lax.top_k keeps the lower index first among equal scores.
  values, rows = jax.lax.top_k(scores, k)
  return jnp.where(values == -jnp.inf, -1, rows)


def _pad_lists(top: np.ndarray, k: int) -> np.ndarray:
  missing = k - top.shape[1]
  return np.pad(top, ((0, 0), (0, missing)), constant_values=-1).astype(
    np.int32
  )


def evaluate_lists(
  top: Int[np.ndarray, 'U K'], truth: ItemLists, ks: Sequence[int]
) -> RankingResult:
  """Metrics of ranked lists at each cut-off.

  Args:
    top: int [U, K], item rows, best first, -1 for none.
    truth: the relevant items of each user.
    ks: cut-offs, none above K.
  Returns:
    Values under the names `METRICS` with '@k'.
  Raises:
    UserError: a cut-off above K, or other numbers of users.
  """
  if len(top) != len(truth):
    raise UserError(
      f'{len(top)} ranked lists for {len(truth)} users with truth'
    )
  if max(ks) > top.shape[1]:
    raise UserError(f"cut-off {max(ks)} is above the lists' {top.shape[1]}")
  relevant = np.diff(truth.starts)
  hits = _hits(top, truth)
  values = {}
  for k in ks:
    for name, value in _at_k(hits[:, :k], relevant, k).items():
      values[f'{name}@{k}'] = np.where(relevant > 0, value, np.nan)
  return RankingResult(values, int(np.sum(relevant == 0)))


def _hits(top, truth) -> np.ndarray:
  """bool [U, K]: is the item at this rank relevant?"""
  num_items = max(int(truth.rows.max(initial=-1)), int(top.max(initial=-1))) + 1
  users = np.repeat(np.arange(len(truth)), np.diff(truth.starts))
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
