"""Which user-film pairs are written about, and what their users like."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from p4lm.data import pair_order, rating_arrays
from p4lm.data.attributes import UserAffinity
from p4lm.errors import UserError
from p4lm.writers.films import Film, Films


@dataclasses.dataclass(frozen=True)
class Draw:
  """Drawn pairs: ids, films, and each user's affinity.

  `others` holds the affinities of further users, to compare with.
  """

  user_ids: list[str]
  films: list[Film]
  affinities: np.ndarray
  others: np.ndarray

  def __iter__(self):
    return zip(self.films, self.affinities)

  def table(self, **columns) -> pa.Table:
    pairs = {
      'user_id': pa.array(self.user_ids, pa.string()),
      'item_id': pa.array([f.item_id for f in self.films], pa.string()),
    }
    return pa.table({**pairs, **columns})


class PairSource:
  """Draws (user, film) pairs from the training ratings.

  Args:
    ratings: training ratings of all users.
    films: those that can be written about.
    held_out: user_id, item_id of the evaluation pairs, never drawn.
    min_rating: a pitch recommends a film that the user rated at least so.
    split_shares: of users in each judged split.
    affinity_of: of the users of these ratings.
    seed: other seeds draw other pairs.
  Raises:
    UserError: no rating is left to draw.
  """

  # Enough for every table; further ratings would only cost time.
  _POOL = 300_000

  def __init__(
    self,
    ratings: rating_arrays.RatingArrays,
    films: Films,
    held_out: pa.Table,
    *,
    min_rating: float,
    split_shares: Sequence[float],
    affinity_of: UserAffinity,
    seed: int,
  ):
    self.films = films
    self._ratings, self._seed = ratings, seed
    item_rows = films.attributes.rows(ratings.items.ids)
    is_film = np.array([row in films.by_row for row in item_rows], bool)
    usable = is_film[ratings.items.codes]
    usable &= ratings.ratings >= min_rating
    rows = self._spread(np.flatnonzero(usable))
    pairs = set(zip(*(held_out[c].to_pylist() for c in ('user_id', 'item_id'))))
    user_ids, item_ids = ratings.users.ids, ratings.items.ids
    users, items = ratings.users.codes[rows], ratings.items.codes[rows]
    keep = [
      (user_ids[u], item_ids[i]) not in pairs for u, i in zip(users, items)
    ]
    self._users, self._items = users[keep], item_rows[items[keep]]
    if not len(self._users):
      raise UserError(
        f'no training rating >= {min_rating} is of a film with a plot'
      )
    numbers = pair_order.pair_numbers(ratings.users, ratings.items, seed, rows)
    self._numbers = numbers[keep]
    self._user_split = split_of(user_ids, split_shares, seed)
    self._affinity_of = affinity_of

  def draw(self, count: int, purpose: str, split: int | None = None) -> Draw:
    """Pairs in which users take turns.

    Args:
      count: wanted. Without a split at most as many as there are, all
        different; with one exactly so many, repeated where there are fewer.
      purpose: other purposes draw in another order.
      split: only users of this judged split.
    """
    rows = np.arange(len(self._users))
    if split is not None:
      rows = rows[self._user_split[self._users] == split]
      # A data set of a few users may leave a split empty.
      rows = rows if len(rows) else np.arange(len(self._users))
    salt = pair_order.id_numbers([purpose], str(self._seed))[0]
    numbers = pair_order.mix(self._numbers[rows] + salt)
    order = pair_order.round_robin(
      self._users[rows], np.zeros(len(rows), np.int64), numbers
    )
    if split is not None:
      order = np.resize(order, count)
    chosen = rows[order[:count]]
    users = self._users[chosen]
    distinct, place = np.unique(users, return_inverse=True)
    affinities = self._affinity_of(distinct)[place]
    return Draw(
      [self._ratings.users.ids[user] for user in users],
      [self.films.by_row[int(row)] for row in self._items[chosen]],
      affinities,
      affinities,
    )

  def _spread(self, rows: np.ndarray) -> np.ndarray:
    """About _POOL rows, spread evenly over users."""
    if len(rows) <= self._POOL:
      return rows
    users = self._ratings.users.codes[rows]
    numbers = pair_order.pair_numbers(
      self._ratings.users, self._ratings.items, self._seed, rows
    )
    turn = pair_order.rank_within(users, numbers, len(self._ratings.users.ids))
    upto = np.searchsorted(np.cumsum(np.bincount(turn)), self._POOL)
    return rows[turn <= upto]


def split_of(
  ids: Sequence[str], shares: Sequence[float], seed: int
) -> np.ndarray:
  """int [len(ids)], a split for each id, from id and seed alone."""
  numbers = pair_order.id_numbers(ids, f'judged {seed}')
  bounds = np.cumsum(shares)[:-1] / sum(shares)
  return np.searchsorted(bounds, numbers / 2.0**64, side='right')
