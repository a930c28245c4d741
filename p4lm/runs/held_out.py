"""Held-out ratings as a ranking problem: for whom, among what, what counts.

  catalogue  the items with a rating in the splits that the fit read
  users      those with ratings there and relevant held-out ones
  seen       what a user rated in any split before the held-out one
  truth      the relevant held-out items of a user; cold items, which are not
             in the catalogue, stay among them as misses

Users without ratings in the fitted splits (cold users) can be known to no
collaborative filter: they are counted and left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from p4lm.data import rating_arrays
from p4lm.data.rating_arrays import RatingArrays
from p4lm.data.tables import SPLITS
from p4lm.errors import UserError
from p4lm.evaluation.item_lists import ItemLists


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """A ranking problem.

  Attributes:
    fitted_splits: whose ratings are known.
    split: whose ratings judge.
    user_ids: the U users.
    item_ids: the I items of the catalogue, in the order of the data.
    seen: U lists of rows of the catalogue.
    truth: U lists; row I and above are cold items.
    known: the ratings of the fitted splits; their item codes are rows of the
      catalogue.
    cold_users: users with relevant held-out ratings and none known.
    cold_user_ratings: relevant ratings of those.
    users_without_truth: users who are known and have nothing to find.
    cold_item_ratings: relevant ratings of cold items, by the U users.
  """

  fitted_splits: tuple[str, ...]
  split: str
  user_ids: Sequence[str]
  item_ids: Sequence[str]
  seen: ItemLists
  truth: ItemLists
  known: RatingArrays
  cold_users: int
  cold_user_ratings: int
  users_without_truth: int
  cold_item_ratings: int

  def facts(self) -> dict[str, object]:
    """What was counted, to print beside every result."""
    relevant = len(self.truth.rows)
    return {
      'known ratings': f'{len(self.known.ratings):,} of '
      f'{" + ".join(self.fitted_splits)}',
      'judged by': f'{relevant:,} ratings of {self.split}, '
      f'{self.cold_item_ratings:,} of them of cold items (misses)',
      'users': f'{len(self.user_ids):,}; left out: {self.cold_users:,} cold '
      f'users ({self.cold_user_ratings:,} ratings), '
      f'{self.users_without_truth:,} with nothing held out',
      'candidates': f'{len(self.item_ids):,} items less those that the user '
      f'rated in {" + ".join(_before(self.split))}',
    }


def read_held_out(
  data_dir, *, fitted_splits: Sequence[str] = ('train',), split: str = 'test',
  relevant_rating: float = 0.0,
) -> HeldOut:  # fmt: skip
  """Reads the ranking problem of a data directory.

  Args:
    data_dir: tables of `make_data`.
    fitted_splits: whose ratings are known.
    split: whose ratings judge, 'validation' or 'test'.
    relevant_rating: lower held-out ratings are not relevant.
  Raises:
    UserError: a split is unknown or judges what it taught, or no user can be
      ranked for.
  """
  fitted_splits = tuple(fitted_splits)
  check_splits(fitted_splits, split)
  known = rating_arrays.read_ratings(data_dir, fitted_splits)
  held = rating_arrays.read_ratings(data_dir, [split])
  if not len(held.ratings):
    raise UserError(
      f'{data_dir}/ratings.parquet has no rating of split {split!r} to judge by'
    )
  liked = held.ratings >= relevant_rating
  if not liked.any():
    raise UserError(
      f'no {split} rating is >= relevant_rating {relevant_rating}; lower it'
    )
  rows = positions(held.users.ids, known.users.ids)[held.users.codes[liked]]
  is_warm = rows >= 0
  if not is_warm.any():
    raise UserError(
      f'none of the {len(held.users.ids)} users with {split} ratings has a '
      f'rating in {" + ".join(fitted_splits)}, so nothing is known of them; '
      'make the data with another SPLIT_RULE'
    )
  users, user_rows = np.unique(rows[is_warm], return_inverse=True)
  items = _with_cold_items(held, known)[held.items.codes[liked]][is_warm]
  cold = held.users.codes[liked][~is_warm]
  return HeldOut(
    fitted_splits=fitted_splits,
    split=split,
    user_ids=[known.users.ids[row] for row in users],
    item_ids=known.items.ids,
    seen=_seen(data_dir, split, known, users),
    truth=ItemLists.from_pairs(user_rows, items, len(users)),
    known=known,
    cold_users=len(np.unique(cold)),
    cold_user_ratings=len(cold),
    users_without_truth=len(known.users.ids) - len(users),
    cold_item_ratings=int(np.sum(items >= len(known.items.ids))),
  )


def check_splits(fitted_splits: Sequence[str], split: str) -> None:
  """Raises UserError unless `split` judges and comes after the fitted ones."""
  if split not in SPLITS[1:]:
    raise UserError(
      f'no split {split!r} to judge by; it is {" or ".join(SPLITS[1:])}'
    )
  late = [name for name in fitted_splits if name not in _before(split)]
  if late:
    raise UserError(
      f'the fit read the ratings of {late[0]!r}, so {split!r} cannot judge it; '
      f'judge by another split, or fit on {" + ".join(_before(split))} alone'
    )


def positions(ids: Sequence[str], among: Sequence[str]) -> np.ndarray:
  """int64 [len(ids)]: place of each id in another list, -1 for none.

  >>> positions(['b', 'x'], ['a', 'b']).tolist()
  [1, -1]
  """
  place = {id_: row for row, id_ in enumerate(among)}
  return np.array([place.get(id_, -1) for id_ in ids], np.int64)


def _before(split: str) -> tuple[str, ...]:
  return SPLITS[: SPLITS.index(split)]


def _with_cold_items(held: RatingArrays, known: RatingArrays) -> np.ndarray:
  """Row of each held-out item; cold ones follow the catalogue."""
  rows = positions(held.items.ids, known.items.ids)
  cold = rows < 0
  rows[cold] = len(known.items.ids) + np.arange(cold.sum())
  return rows


def _seen(data_dir, split: str, known: RatingArrays, users) -> ItemLists:
  """Rows of the catalogue that each user rated in any earlier split."""
  earlier = rating_arrays.read_ratings(data_dir, _before(split))
  row_of = np.full(len(known.users.ids) + 1, -1)
  row_of[users] = np.arange(len(users))
  user_rows = row_of[positions(earlier.users.ids, known.users.ids)]
  user_rows = user_rows[earlier.users.codes]
  items = positions(earlier.items.ids, known.items.ids)[earlier.items.codes]
  kept = (user_rows >= 0) & (items >= 0)
  return ItemLists.from_pairs(user_rows[kept], items[kept], len(users))
