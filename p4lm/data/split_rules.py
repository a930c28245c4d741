"""How ratings are divided into train, validation and test: four rules.

random_by_user  each user's ratings in a random order are cut by share
leave_one_out   each user's newest rating is test, the one before validation
global_time     everything from one moment on is test, before that validation
user_disjoint   whole users are train, validation or test

The first and the last need ids alone: every rating (or user) has a 64-bit
number from the seed and its ids, so the result depends neither on the order of
rows nor on the other users. Ties of timestamps are broken by these numbers
within a user; across users (`global_time`) a moment is never divided.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from p4lm.data import pair_order
from p4lm.data.tables import EncodedIds
from p4lm.errors import UserError

TRAIN, VALIDATION, TEST = range(3)


@dataclasses.dataclass(frozen=True)
class RatingKeys:
  """What rules read of M ratings.

  Attributes:
    users, items: ids and codes [M].
    timestamps: int64 [M], seconds.
    seed: of the random orders.
    test_share, validation_share: in [0, 1), together below 1; rules that need
      none pass over them.
  """

  users: EncodedIds
  items: EncodedIds
  timestamps: np.ndarray
  seed: int
  test_share: float
  validation_share: float

  @property
  def num_users(self) -> int:
    return len(self.users.ids)

  def counts(self) -> np.ndarray:
    """Ratings of each user, int64 [U]."""
    return np.bincount(self.users.codes, minlength=self.num_users)

  def numbers(self) -> np.ndarray:
    """uint64 [M], a random number of each rating."""
    return pair_order.pair_numbers(self.users, self.items, self.seed)


def random_by_user(keys: RatingKeys) -> np.ndarray:
  """int8 [M]: of a user's n ratings, round(share n) each, halves up.

  At least one rating of every user is train.
  """
  counts = keys.counts()
  rank = pair_order.rank_within(
    keys.users.codes, keys.numbers(), keys.num_users
  )
  num_test = np.floor(counts * keys.test_share + 0.5).astype(np.int64)
  num_held = num_test + np.floor(counts * keys.validation_share + 0.5).astype(
    int
  )
  num_held = np.minimum(num_held, counts - 1)
  return _by_rank(keys, rank, np.minimum(num_test, num_held), num_held)


def leave_one_out(keys: RatingKeys) -> np.ndarray:
  """int8 [M]: the newest rating is test, the second newest validation.

  A user with two ratings has no validation, one with one is train alone.
  """
  order = np.lexsort((keys.numbers(), -keys.timestamps, keys.users.codes))
  counts = keys.counts()
  rank = np.empty(len(order), np.int64)
  starts = np.cumsum(counts) - counts
  rank[order] = np.arange(len(order)) - np.repeat(starts, counts)
  held = np.clip(counts - 1, 0, 2)
  return _by_rank(keys, rank, np.minimum(held, 1), held)


def global_time(keys: RatingKeys) -> np.ndarray:
  """int8 [M]: the newest ratings of all are test, those before validation.

  Test is as close to its share as it comes without dividing a moment, and not
  above it; so are both together.

  Raises:
    UserError: a share above 0 of which no moment is small enough.
  """
  ordered = np.sort(keys.timestamps)
  codes = np.full(len(ordered), TRAIN, np.int8)
  held = keys.test_share + keys.validation_share
  for code, share in ((VALIDATION, held), (TEST, keys.test_share)):
    first = first_moment(ordered, share)
    codes[keys.timestamps >= first] = code
  return codes


def user_disjoint(keys: RatingKeys) -> np.ndarray:
  """int8 [M]: each user is in one split, with these probabilities."""
  codes = user_codes(
    keys.users.ids, keys.seed, keys.test_share, keys.validation_share
  )
  return codes[keys.users.codes]


def user_codes(
  ids: Sequence[str], seed: int, test_share: float, validation_share: float
) -> np.ndarray:
  """int8 [U]: the split of each user, from the seed and the user's id alone."""
  uniform = pair_order.id_numbers(ids, f'user split {seed}') / 2.0**64
  codes = np.full(len(ids), TRAIN, np.int8)
  codes[uniform < test_share + validation_share] = VALIDATION
  codes[uniform < test_share] = TEST
  return codes


def first_moment(
  ordered: np.ndarray, share: float, noun: str = 'ratings'
) -> float:
  """The earliest timestamp from which on at most this share lies.

  Args:
    ordered: timestamps, ascending.
    share: in [0, 1).
    noun: what has the timestamps, for the message.
  Returns:
    One of the timestamps, infinity for a share of 0.
  Raises:
    UserError: every moment leaves more, or all.
  """
  if not share:
    return np.inf
  wanted = int(np.floor(len(ordered) * share + 0.5))
  place = len(ordered) - wanted
  if place > 0 and wanted and ordered[place - 1] == ordered[place]:
    # The moment is divided: begin with the next one.
    place = np.searchsorted(ordered, ordered[place], side='right')
  if place >= len(ordered) or place == 0:
    raise UserError(
      f'no moment leaves {share:.0%} of {len(ordered)} {noun} after it: too '
      'few distinct timestamps; divide them in another way'
    )
  return ordered[place]


RULES: Mapping[str, Callable[[RatingKeys], np.ndarray]] = {
  'random_by_user': random_by_user,
  'leave_one_out': leave_one_out,
  'global_time': global_time,
  'user_disjoint': user_disjoint,
}


def check(rule: str, keys: RatingKeys, codes: np.ndarray) -> str:
  """Says what is true of a split, having looked.

  Args:
    rule: a name of RULES.
    keys: the ratings.
    codes: int8 [M], their split.
  Returns:
    One sentence for the manifest.
  Raises:
    ValueError: the split breaks its rule.
  """
  users = keys.users.codes
  per_split = np.stack(
    [
      np.bincount(users[codes == code], minlength=keys.num_users)
      for code in (TRAIN, VALIDATION, TEST)
    ]
  )
  if rule == 'user_disjoint':
    _require(((per_split > 0).sum(0) <= 1).all(), 'a user is in two splits')
    return 'no user is in two splits'
  if rule == 'global_time':
    edges = [
      keys.timestamps[codes == code] for code in (TRAIN, VALIDATION, TEST)
    ]
    edges = [edge for edge in edges if len(edge)]
    in_order = all(a.max() < b.min() for a, b in zip(edges, edges[1:]))
    _require(in_order, 'a rating is older than one of an earlier split')
    return 'every validation and test rating is newer than all before it'
  has_train = (per_split[TRAIN] > 0) | (per_split.sum(0) == 0)
  _require(has_train.all(), 'a user has no training rating')
  if rule == 'leave_one_out':
    single = per_split[[VALIDATION, TEST]].max(initial=0) <= 1
    _require(single, 'a user has two ratings in one held-out split')
    newest = np.full(keys.num_users, np.iinfo(np.int64).min)
    np.maximum.at(newest, users, keys.timestamps)
    test = codes == TEST
    _require(
      (keys.timestamps[test] == newest[users[test]]).all(),
      'a test rating is not the newest of its user',
    )
    return "every test rating is its user's newest"
  return 'every user has training ratings'


def _by_rank(keys, rank, num_test, num_held) -> np.ndarray:
  codes = np.full(len(rank), TRAIN, np.int8)
  codes[rank < num_held[keys.users.codes]] = VALIDATION
  codes[rank < num_test[keys.users.codes]] = TEST
  return codes


def _require(holds, problem: str) -> None:
  if not holds:
    raise ValueError(f'the split is broken: {problem}')
