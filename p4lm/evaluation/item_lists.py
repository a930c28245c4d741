"""A list of items for each user: what was seen, what is relevant."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class ItemLists:
  """A list of item rows for each user (a CSR matrix without values).

  Attributes:
    starts: int64 [U + 1]; user u has `rows[starts[u]:starts[u + 1]]`.
    rows: int64 [M], item rows, rising and distinct within a user.
  """

  starts: np.ndarray
  rows: np.ndarray

  @classmethod
  def from_pairs(cls, user_rows, item_rows, num_users: int) -> ItemLists:
    """Groups pairs by user; a pair given twice counts once.

    >>> ItemLists.from_pairs([1, 0, 1, 1], [5, 2, 3, 5], 3)[1].tolist()
    [3, 5]

    Args:
      user_rows: int [M], in [0, num_users).
      item_rows: int [M], at least 0.
      num_users: U; users without a pair have an empty list.
    """
    user_rows = np.asarray(user_rows, np.int64)
    item_rows = np.asarray(item_rows, np.int64)
    if not len(user_rows):
      return cls(np.zeros(num_users + 1, np.int64), item_rows)
    width = int(item_rows.max()) + 1
    users, items = np.divmod(np.unique(user_rows * width + item_rows), width)
    counts = np.bincount(users, minlength=num_users)
    return cls(np.concatenate([[0], np.cumsum(counts)]), items)

  def __len__(self) -> int:
    return len(self.starts) - 1

  def __getitem__(self, user: int) -> np.ndarray:
    return self.rows[self.starts[user] : self.starts[user + 1]]

  def counts(self) -> np.ndarray:
    """Items of each user, int64 [U]."""
    return np.diff(self.starts)

  def pairs(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """The pairs of users `first` to `last` (exclusive), both int64 [N].

    Returns:
      (user rows counted from `first`, item rows).
    """
    counts = np.diff(self.starts[first : last + 1])
    users = np.repeat(np.arange(last - first), counts)
    return users, self.rows[self.starts[first] : self.starts[last]]
