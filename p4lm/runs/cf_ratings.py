"""Ratings as CF fits read them, and what describes them."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import numpy as np

from p4lm.cf.rows import Interactions
from p4lm.data import tables
from p4lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class SplitRatings:
  """Interactions with the ids behind their rows."""

  interactions: Interactions
  user_ids: list[str]
  item_ids: list[str]


def read_split(
  data_dir, split: str, positive_rating: float | None = None
) -> SplitRatings:
  """Reads the ratings of a split.

  Args:
    data_dir: tables of `make_data`.
    split: such as 'train'.
    positive_rating: lower ratings are left out, but not their users and items;
      None reads all.
  Raises:
    UserError: the file is missing, or no rating of the train split is left.
  """
  ratings = tables.read_ratings(data_dir, [split])
  if split == 'train' and not len(ratings.ratings):
    raise UserError(f'{data_dir}/ratings.parquet has no row of split train')
  kept: slice | np.ndarray = slice(None)
  if positive_rating is not None and positive_rating > 0:
    kept = ratings.ratings >= positive_rating
    if split == 'train' and not kept.any():
      raise UserError(
        f'no training rating in {data_dir} is >= positive_rating '
        f'{positive_rating}; lower it'
      )
  users, items = ratings.users, ratings.items
  interactions = Interactions(
    users.codes[kept],
    items.codes[kept],
    ratings.ratings[kept],
    len(users.ids),
    len(items.ids),
  )
  return SplitRatings(interactions, users.ids, items.ids)


def known_pairs(train: SplitRatings, other: SplitRatings) -> Interactions:
  """The other split's entries in the rows of the training ids."""
  found = other.interactions
  user_row = {id_: row for row, id_ in enumerate(train.user_ids)}
  item_row = {id_: row for row, id_ in enumerate(train.item_ids)}
  users = np.array([user_row.get(i, -1) for i in other.user_ids], np.int32)
  items = np.array([item_row.get(i, -1) for i in other.item_ids], np.int32)
  user_rows, item_rows = users[found.user_rows], items[found.item_rows]
  kept = (user_rows >= 0) & (item_rows >= 0)
  return Interactions(
    user_rows[kept],
    item_rows[kept],
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
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
