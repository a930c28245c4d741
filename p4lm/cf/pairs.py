"""What a batch of (user, positive item) pairs takes from all the pairs.

How often an item is drawn as a negative, which candidates are positives of the
user all the same, and the other items of the user. Everything is numpy: it is
done while the devices work on the step before.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from p4lm.cf.rows import CompressedRows, Interactions, compress


class PositivePairs:
  """The positive pairs, grouped by user.

  Args:
    interactions: M entries, all of them positive; their values do not count.
  """

  def __init__(self, interactions: Interactions):
    self.user_rows = interactions.user_rows
    self.item_rows = interactions.item_rows
    self._by_user: CompressedRows = compress(
      interactions.user_rows,
      interactions.item_rows,
      interactions.num_users,
      interactions.num_items,
    )
    self.user_counts = self._by_user.counts
    self.item_counts = np.bincount(
      interactions.item_rows, minlength=interactions.num_items
    )
    self._place = np.full(interactions.num_items, -1, np.int64)

  def __len__(self) -> int:
    return len(self.user_rows)

  def known(self, user_rows, item_rows) -> np.ndarray:
    """Which candidates are positives of which user.

    Args:
      user_rows: int [B].
      item_rows: int [C]; an item may be there several times.
    Returns:
      bool [B, C].
    """
    users, user_of = np.unique(user_rows, return_inverse=True)
    items, item_of = np.unique(item_rows, return_inverse=True)
    self._place[items] = np.arange(len(items))
    counts = self.user_counts[users]
    found = self._place[self._by_user.columns[self._entries(users)]]
    rows = np.repeat(np.arange(len(users)), counts)
    self._place[items] = -1
    mask = np.zeros((len(users), len(items)), bool)
    mask[rows[found >= 0], found[found >= 0]] = True
    return mask[user_of][:, item_of]

  def histories(
    self, user_rows, item_rows, length: int, generator: np.random.Generator
  ) -> tuple[np.ndarray, np.ndarray]:
    """Positives of each user other than the pair's own item.

    A user with at most `length` positives has them all; of a longer history as
    many are drawn, with replacement, so that their mean is that of the history
    without bias.

      positives of u   3 5 8      item 5, length 4  ->  rows  3 5 8 .
                                                        mask  1 0 1 0
    Args:
      user_rows: int [B].
      item_rows: int [B], the pair's item.
      length: H.
      generator: of the draws.
    Returns:
      (rows int32 [B, H], mask bool [B, H]), rows 0 where the mask is False.
    """
    counts = self.user_counts[user_rows][:, None]
    places = np.broadcast_to(np.arange(length), (len(counts), length))
    drawn = generator.integers(0, np.maximum(counts, 1), places.shape)
    places = np.where(counts <= length, places, drawn)
    mask = places < counts
    entries = self._by_user.starts[user_rows][:, None] + places
    rows = self._by_user.columns[np.where(mask, entries, 0)]
    mask &= rows != np.asarray(item_rows)[:, None]
    return np.where(mask, rows, 0).astype(np.int32), mask

  def _entries(self, users) -> np.ndarray:
    """Positions of all entries of the users, one user after the other."""
    counts = self.user_counts[users]
    starts = self._by_user.starts[users] - (np.cumsum(counts) - counts)
    return np.repeat(starts, counts) + np.arange(counts.sum())


@dataclasses.dataclass(frozen=True)
class Negatives:
  """How negatives of an example are drawn, and how often to expect an item.

  The others of a batch of B pairs are B - 1 draws from the items' frequencies
  q; K further ones are drawn from r(i), proportional to n_i^exponent (mixed
  negative sampling, Yang et al. 2020). An item is then expected

    c(i) = (B - 1) q(i) + K r(i)

  times, and 1 / c(i) weighs its draws (the balance heuristic of Veach and
  Guibas 1995): the sum over all draws of f(i) / c(i) estimates sum_i f(i)
  without bias, whichever of the two a draw came from.

  Attributes:
    frequencies: float64 [I], q, sums to 1.
    extra: K.
    proposal: float64 [I], r, sums to 1.
  """

  frequencies: np.ndarray
  extra: int
  proposal: np.ndarray

  @classmethod
  def of(cls, item_counts, extra: int = 0, exponent: float = 0.0) -> Negatives:
    """From the positives of each item.

    Four others of a batch, of which item 0 is expected to be three, and two
    uniform draws:

    >>> negatives = Negatives.of([3, 1], extra=2)
    >>> print(np.exp(negatives.log_expected_counts([0, 1], batch_size=5)))
    [4. 2.]

    Args:
      item_counts: int [I], n; some item has one.
      extra: K.
      exponent: 0 draws all items alike, 1 by popularity. Items without
        positives are drawn with exponent 0 alone.
    """
    counts = np.asarray(item_counts, np.float64)
    shares = np.ones_like(counts) if exponent == 0 else counts**exponent
    return cls(counts / counts.sum(), extra, shares / shares.sum())

  def log_expected_counts(self, item_rows, batch_size: int) -> np.ndarray:
    """log c of each item, float32 [C]; finite for items that can be drawn."""
    rows = np.asarray(item_rows)
    expected = (batch_size - 1) * self.frequencies[rows]
    expected = expected + self.extra * self.proposal[rows]
    with np.errstate(divide='ignore'):
      return np.log(expected).astype(np.float32)

  def draw(self, generator: np.random.Generator) -> np.ndarray:
    """K items from r, int32 [K]."""
    ends = np.cumsum(self.proposal)
    places = np.searchsorted(
      ends, generator.random(self.extra) * ends[-1], side='right'
    )
    return np.minimum(places, len(ends) - 1).astype(np.int32)
