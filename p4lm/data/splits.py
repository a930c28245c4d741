"""Splits of ratings, their hash, held-out pairs, and the check for leaks."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from p4lm.data import pair_order, split_rules, tables
from p4lm.data.split_rules import TEST, TRAIN, RatingKeys
from p4lm.data.tables import SPLITS
from p4lm.errors import UserError

_PAIR_SALT = 0x5EED


@dataclasses.dataclass(frozen=True)
class EvaluationRule:
  """Which (user, item) pairs may be held out for the evaluation.

  Attributes:
    count: pairs wanted.
    min_rating: the user rated the item at least so.
    min_train_ratings: training ratings that the user should have.
    min_other_test_ratings: further test ratings of the user, which judge the
      text.
    min_item_ratings: training ratings that the item should have, so that its
      CF vector means something.
  """

  count: int = 200
  min_rating: float = 4.0
  min_train_ratings: int = 15
  min_other_test_ratings: int = 5
  min_item_ratings: int = 5


def split_ratings(
  ratings: pa.Table,
  *,
  seed: int,
  rule: str = 'random_by_user',
  test_share: float = 0.2,
  validation_share: float = 0.1,
) -> pa.Table:
  """Adds the column `split`: train, validation or test.

  Args:
    ratings: user_id, item_id, timestamp and more; no (user, item) twice.
    seed: other seeds give other splits, where the rule is random.
    rule: one of `split_rules.RULES`.
    test_share: in [0, 1).
    validation_share: in [0, 1), the two together below 1.
  Returns:
    The table with `split` (dictionary column) added or replaced.
  Raises:
    UserError: no such rule, shares that leave nothing to train on, or a rule
      that these ratings do not allow.
  """
  keys = rating_keys(ratings, seed, test_share, validation_share)
  if rule not in split_rules.RULES:
    raise UserError(
      f'split rule {rule!r} is unknown; it must be one of '
      f'{", ".join(split_rules.RULES)}'
    )
  return with_splits(ratings, split_rules.RULES[rule](keys))


def rating_keys(
  ratings: pa.Table, seed: int, test_share: float, validation_share: float
) -> RatingKeys:
  """What split rules read of the ratings.

  Raises:
    UserError: the shares do not leave ratings to train on.
  """
  if not (
    0 <= test_share < 1
    and 0 <= validation_share < 1
    and test_share + validation_share < 1
  ):
    raise UserError(
      f'test_share={test_share} and validation_share={validation_share} must '
      'be in [0, 1) and leave a share to train on'
    )
  return RatingKeys(
    users=tables.encode_ids(ratings['user_id']),
    items=tables.encode_ids(ratings['item_id']),
    timestamps=_timestamps(ratings),
    seed=seed,
    test_share=test_share,
    validation_share=validation_share,
  )


def _timestamps(ratings: pa.Table) -> np.ndarray:
  """int64 [M]; without the column all ratings are of one moment."""
  if 'timestamp' not in ratings.column_names:
    return np.zeros(len(ratings), np.int64)
  return ratings['timestamp'].to_numpy().astype(np.int64)


def check_split(ratings: pa.Table, parameters: Mapping) -> str:
  """Looks whether a split is what its rule promises; says so in a sentence.

  Args:
    ratings: with `split`.
    parameters: split_rule, seed, test_share, validation_share.
  Raises:
    ValueError: it is not.
  """
  names = ('seed', 'test_share', 'validation_share')
  keys = rating_keys(ratings, **{name: parameters[name] for name in names})
  return split_rules.check(parameters['split_rule'], keys, split_codes(ratings))


def with_splits(ratings: pa.Table, codes: np.ndarray) -> pa.Table:
  """The table with `split` from codes (0 train, 1 validation, 2 test)."""
  column = pa.DictionaryArray.from_arrays(
    pa.array(codes, pa.int8()), pa.array(SPLITS)
  )
  if 'split' in ratings.column_names:
    ratings = ratings.drop_columns(['split'])
  return ratings.append_column('split', column)


def split_codes(ratings: pa.Table) -> np.ndarray:
  """int8 [M]: 0 train, 1 validation, 2 test."""
  encoded = tables.encode_ids(ratings['split'])
  unknown = sorted(set(encoded.ids) - set(SPLITS))
  if unknown:
    raise UserError(f'no split {unknown[0]!r}; splits: {", ".join(SPLITS)}')
  positions = np.array([SPLITS.index(name) for name in encoded.ids], np.int8)
  return positions[encoded.codes]


def split_hash(ratings: pa.Table) -> str:
  """sha256 over the set of (user, item, split), whatever the order of rows."""
  users = tables.encode_ids(ratings['user_id'])
  items = tables.encode_ids(ratings['item_id'])
  numbers = pair_order.pair_numbers(users, items, 0)
  numbers = pair_order.mix(numbers + split_codes(ratings).astype(np.uint64))
  return hashlib.sha256(np.sort(numbers).astype('<u8').tobytes()).hexdigest()


def choose_evaluation_pairs(
  ratings: pa.Table,
  items: pa.Table,
  *,
  seed: int,
  rule: EvaluationRule = EvaluationRule(),
) -> pa.Table:
  """Chooses held-out (user, item) pairs from the test ratings.

  A pair is a test rating of at least `min_rating` of an item with a plot.
  Pairs that meet the wishes about train ratings, other test ratings and the
  item's ratings come before pairs that do not; within each group all users
  have one pair before any has two.

  Args:
    ratings: with `split`.
    items: the `items` schema.
    seed: other seeds give other pairs.
    rule: count and wishes.
  Returns:
    user_id, item_id of at most `count` pairs; fewer when there are no more.
  Raises:
    UserError: no test rating qualifies.
  """
  users = tables.encode_ids(ratings['user_id'])
  encoded = tables.encode_ids(ratings['item_id'])
  split = split_codes(ratings)
  plots = items['plot'].to_pylist()
  described = {id_ for id_, p in zip(items['item_id'].to_pylist(), plots) if p}
  has_plot = np.array([id_ in described for id_ in encoded.ids], bool)
  liked = ratings['rating'].to_numpy() >= rule.min_rating
  rows = np.flatnonzero((split == TEST) & liked & has_plot[encoded.codes])
  if not len(rows):
    raise UserError(
      f'no test rating >= {rule.min_rating} is of an item with a plot: '
      'no evaluation pairs can be chosen; give more ratings or plots'
    )
  user_codes, item_codes = users.codes[rows], encoded.codes[rows]
  per_user = lambda which: np.bincount(
    users.codes[split == which], minlength=len(users.ids)
  )
  item_ratings = np.bincount(
    encoded.codes[split == TRAIN], minlength=len(encoded.ids)
  )
  wishes = np.stack(
    [
      per_user(TRAIN)[user_codes] >= rule.min_train_ratings,
      per_user(TEST)[user_codes] > rule.min_other_test_ratings,
      item_ratings[item_codes] >= rule.min_item_ratings,
    ]
  )
  # A salt, or the order would be the one that made these test ratings.
  numbers = pair_order.mix(
    pair_order.pair_numbers(users, encoded, seed, rows) + np.uint64(_PAIR_SALT)
  )
  unmet = len(wishes) - wishes.sum(0)
  chosen = rows[
    pair_order.round_robin(user_codes, unmet, numbers)[: rule.count]
  ]
  return pa.table(
    {
      'user_id': [users.ids[code] for code in users.codes[chosen]],
      'item_id': [encoded.ids[code] for code in encoded.codes[chosen]],
    }
  )


def check_leakage(
  ratings: pa.Table,
  evaluation_pairs: pa.Table,
  texts: Mapping[str, pa.Table] | None = None,
) -> None:
  """Checks that what judges a model is not what trained it.

  No (user, item) is rated in two splits; each evaluation pair is a test
  rating; no table of texts has a row about an evaluation pair.

  Args:
    ratings: with `split`.
    evaluation_pairs: user_id, item_id.
    texts: {name: table with user_id and item_id}.
  Raises:
    ValueError: says which rule is broken and by which pair.
  """
  users = tables.encode_ids(ratings['user_id'])
  items = tables.encode_ids(ratings['item_id'])
  keys = users.codes.astype(np.int64) * len(items.ids) + items.codes
  ordered = np.sort(keys)
  twice = ordered[1:][ordered[1:] == ordered[:-1]]
  if len(twice):
    user, item = divmod(int(twice[0]), len(items.ids))
    raise ValueError(
      f'user {users.ids[user]!r} rated item {items.ids[item]!r} twice: the '
      'splits overlap'
    )
  held_out = set(_pairs(evaluation_pairs))
  test = ratings.filter(pa.array(split_codes(ratings) == TEST))
  known = pa.array([user for user, _ in held_out], pa.string())
  # Only the test ratings of the users in question become Python objects.
  test = _rows_of(test, known)
  outside = held_out - set(_pairs(test))
  if outside:
    raise ValueError(f'evaluation pair {min(outside)} is no test rating')
  for name, table in (texts or {}).items():
    leaked = held_out & set(_pairs(table))
    if leaked:
      raise ValueError(f'table {name} is about evaluation pair {min(leaked)}')


def _rows_of(table: pa.Table, user_ids: pa.Array) -> pa.Table:
  users = tables.encode_ids(table['user_id'])
  wanted = set(user_ids.to_pylist())
  keep = np.array([id_ in wanted for id_ in users.ids], bool)
  return table.filter(pa.array(keep[users.codes]))


def _pairs(table: pa.Table) -> Sequence[tuple[str, str]]:
  return list(zip(table['user_id'].to_pylist(), table['item_id'].to_pylist()))
