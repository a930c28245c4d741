"""Steps from the events of many users to one session a user."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from p4lm.data.rating_data import count, stable_order
from p4lm.data.tables import EncodedIds
from p4lm.errors import UserError


@dataclasses.dataclass(frozen=True)
class MadeSessions:
  """S sessions over N of the events.

  Attributes:
    users: int64 [S], code of the session's user.
    rows: int64 [N], rows of events, by session and then time.
    session: int64 [N], ascending.
    history: int64 [S, history_length], rows.
    targets: int64 [S], place in `rows` of the first later event with an item
      that is not in the history, -1 where there is none.
  """

  users: np.ndarray
  rows: np.ndarray
  session: np.ndarray
  history: np.ndarray
  targets: np.ndarray

  def only(self, keep: np.ndarray) -> MadeSessions:
    """Some of the sessions, bool [S]."""
    stays = keep[self.session]
    place = np.cumsum(stays) - 1
    number = np.cumsum(keep) - 1
    targets = self.targets[keep]
    return MadeSessions(
      self.users[keep],
      self.rows[stays],
      number[self.session[stays]],
      self.history[keep],
      np.where(targets < 0, -1, place[targets]),
    )


@dataclasses.dataclass(frozen=True)
class SessionEvents:
  """Events, and what is done with some of them.

  Methods take and give rows of events in order of time.

  Attributes:
    users, items: ids and codes [M].
    times: int64 [M].
    history_length: events of a history.
    min_events: that a user and an item need.
    long_items: items whose text is too long.
    prompt_fits: whether the prompt of a history (its rows) is not.
    dropped: {reason: events or users}, added to.
  """

  users: EncodedIds
  items: EncodedIds
  times: np.ndarray
  history_length: int
  min_events: int
  long_items: frozenset[str]
  prompt_fits: Callable[[np.ndarray], bool]
  dropped: dict[str, int] = dataclasses.field(default_factory=dict)

  def user(self, rows: np.ndarray) -> np.ndarray:
    return self.users.codes[rows]

  def item(self, rows: np.ndarray) -> np.ndarray:
    return self.items.codes[rows]

  def by_time(self, rows: np.ndarray | None = None) -> np.ndarray:
    """Rows (all by default) by time; those of one moment keep their order."""
    rows = np.arange(len(self.times)) if rows is None else np.sort(rows)
    return rows[stable_order(self.times[rows])]

  def core(self, rows: np.ndarray) -> np.ndarray:
    """Removes users and items with too few events until none has.

    Raises:
      UserError: nothing is left.
    """
    least, first, before = self.min_events, len(rows), -1
    while len(rows) != before:
      before = len(rows)
      for codes in (self.users.codes, self.items.codes):
        rows = rows[np.bincount(codes[rows])[codes[rows]] >= least]
        if not len(rows):
          raise UserError(
            f'nothing is left of the {least}-core of these ratings: give more '
            'of them, or a smaller min_events'
          )
    count(self.dropped, f'event outside the {least}-core', first - len(rows))
    return rows

  def users_of(self, rows: np.ndarray) -> np.ndarray:
    """Their distinct codes, ascending."""
    return np.flatnonzero(np.bincount(self.user(rows)))

  def items_of(self, rows: np.ndarray) -> np.ndarray:
    """Their distinct codes, ascending."""
    return np.flatnonzero(np.bincount(self.item(rows)))

  def is_long(self, rows: np.ndarray) -> np.ndarray:
    """bool, whether the item's text is too long."""
    long = np.array([id_ in self.long_items for id_ in self.items.ids], bool)
    return long[self.item(rows)]

  def without_users(
    self, rows: np.ndarray, codes: np.ndarray, reason: str
  ) -> np.ndarray:
    """Removes all events of some users, who are counted."""
    gone = np.zeros(len(self.users.ids), bool)
    gone[codes] = True
    count(self.dropped, reason, gone.sum())
    return rows[~gone[self.user(rows)]]

  def with_fitting_prompts(self, rows: np.ndarray) -> np.ndarray:
    """Removes users whose history makes too long a prompt."""
    codes, starts, ordered = self._by_user(rows)
    too_long = [
      code
      for code, start in zip(codes, starts)
      if not self.prompt_fits(ordered[start : start + self.history_length])
    ]
    return self.without_users(
      rows, np.array(too_long, np.int64), 'user whose prompt is too long'
    )

  def with_known_items(self, rows: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Removes held-out events of other items, then users with too few left."""
    counts = lambda rows: np.bincount(
      self.user(rows), minlength=len(self.users.ids)
    )
    had = counts(rows)
    is_known = np.isin(self.item(rows), known)
    reason = 'held-out event of an item that training does not know'
    count(self.dropped, reason, (~is_known).sum())
    rows = rows[is_known]
    few = np.flatnonzero((had > 0) & (counts(rows) < self.min_events))
    reason = f'held-out user with fewer than {self.min_events} events left'
    return self.without_users(rows, few, reason)

  def target_times(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Users in order of code, and the time of what follows their history."""
    codes, starts, ordered = self._by_user(rows)
    return codes, self.times[ordered[starts + self.history_length]]

  def sessions(self, rows: np.ndarray, users: np.ndarray) -> MadeSessions:
    """One session of each of these users that has rows, in the users' order.

    Every user with rows must be among `users`.
    """
    users = users[np.isin(users, self.users_of(rows))]
    rank = np.zeros(len(self.users.ids), np.int64)
    rank[users] = np.arange(len(users))
    session = rank[self.user(rows)]
    order = stable_order(session)
    rows, session = rows[order], session[order]
    starts = np.searchsorted(session, np.arange(len(users)))
    place = np.arange(len(rows)) - starts[session]
    history = rows[place < self.history_length]
    history = history.reshape(-1, self.history_length)
    met = self.item(history)[session]
    is_new = (self.item(rows)[:, None] != met).all(axis=1)
    later = np.flatnonzero((place >= self.history_length) & is_new)
    targets = np.full(len(users), -1, np.int64)
    # From the end, so that the first one is written last.
    targets[session[later[::-1]]] = later[::-1]
    return MadeSessions(users, rows, session, history, targets)

  def _by_user(self, rows: np.ndarray):
    """(codes, where each begins, rows by user and then time)."""
    ordered = rows[stable_order(self.user(rows))]
    counts = np.bincount(self.user(ordered))
    codes = np.flatnonzero(counts)
    return codes, (np.cumsum(counts) - counts)[codes], ordered
