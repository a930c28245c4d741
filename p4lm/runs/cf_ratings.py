"""Ratings as CF fits read them, and what describes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from p4lm.cf.recency import recency_weights
from p4lm.cf.rows import Interactions
from p4lm.data import rating_arrays, tables
from p4lm.errors import UserError
from p4lm.runs.held_out import positions

# The test split judges what was fitted.
FITTED_SPLITS = ('train', 'validation')


@dataclasses.dataclass(frozen=True)
class SplitRatings:
  """Interactions with the ids behind their rows."""

  interactions: Interactions
  user_ids: list[str]
  item_ids: list[str]


def check_fitted_splits(splits: Sequence[str]) -> None:
  """Raises UserError unless these splits may be fitted."""
  wrong = [name for name in splits if name not in FITTED_SPLITS]
  if isinstance(splits, str) or not splits or wrong:
    raise UserError(
      f'splits is {splits!r}; fit on {FITTED_SPLITS[:1]} or {FITTED_SPLITS}: '
      'the test ratings judge'
    )


def read_splits(
  data_dir,
  splits: Sequence[str],
  positive_rating: float | None = None,
  *,
  half_life_days: float | None = None,
  confidences: Callable[[np.ndarray], np.ndarray] | None = None,
) -> SplitRatings:
  """Reads the ratings of some splits.

  Args:
    data_dir: tables of `make_data`.
    splits: such as ('train',).
    positive_rating: lower ratings are left out, but not their users and items;
      None reads all.
    half_life_days: the weight of a rating is halved for every so many days that
      it is older than the newest; None leaves weights to the fit.
    confidences: with a half-life, ratings [M] -> weights [M] before ageing.
  Raises:
    UserError: the file is missing, or no rating to fit is left.
  """
  ratings = rating_arrays.read_ratings(data_dir, splits)
  is_fitted, listed = 'train' in splits, ' or '.join(splits)
  if is_fitted and not len(ratings.ratings):
    raise UserError(f'{data_dir}/ratings.parquet has no row of split {listed}')
  kept: slice | np.ndarray = slice(None)
  if positive_rating is not None and positive_rating > 0:
    kept = ratings.ratings >= positive_rating
    if is_fitted and not kept.any():
      raise UserError(
        f'no rating of {listed} in {data_dir} is >= positive_rating '
        f'{positive_rating}; lower it'
      )
  weights = None
  if half_life_days is not None:
    weights = confidences(ratings.ratings[kept]) * recency_weights(
      ratings.timestamps[kept], half_life_days
    )
  users, items = ratings.users, ratings.items
  interactions = Interactions(
    users.codes[kept],
    items.codes[kept],
    ratings.ratings[kept],
    len(users.ids),
    len(items.ids),
    weights,
  )
  return SplitRatings(interactions, users.ids, items.ids)


def known_pairs(train: SplitRatings, other: SplitRatings) -> Interactions:
  """The other split's entries in the rows of the fitted ids."""
  found = other.interactions
  users = positions(other.user_ids, train.user_ids)[found.user_rows]
  items = positions(other.item_ids, train.item_ids)[found.item_rows]
  kept = (users >= 0) & (items >= 0)
  return Interactions(
    users[kept],
    items[kept],
    found.values[kept],
    len(train.user_ids),
    len(train.item_ids),
  )


def ratings_sha256(data_dir) -> str:
  """Hash of the file of ratings.

  Raises:
    UserError: there is none.
  """
  path = Path(data_dir) / 'ratings.parquet'
  if not path.is_file():
    raise UserError(
      f'{path} does not exist; DATA_DIR must be a directory that make_data '
      'wrote'
    )
  return tables.hash_file(path)
