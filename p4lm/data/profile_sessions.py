"""Sessions for profiles of users: a short history, and the item that follows.

LangPTune (Gao et al. 2024) writes a user's profile from the user's first four
reviews and ranks all items for what the user reviews next. Two modes:

AS_PUBLISHED does what the published preparation does:
1. every review counts, repeats of a user and an item too; users and items with
   fewer than five are removed until none is left (the 5-core);
2. users who ever reviewed an item with a too long text, or whose prompt is too
   long, are removed (there four of five users); then the 5-core again;
3. users are ordered by their *first* review (a remark there says by the last);
   the last fifth is held out;
4. held-out reviews of items that no training user ever reviewed are removed,
   then held-out users with fewer than five;
5. the first four reviews are the history; the target is the first later item
   that is not in the history, and users without one are removed;
6. held-out users are divided at random (there without a seed) into halves.
Two of its three training scripts choose their model on the test half, so
`selection_split` is 'test'. Where reviews are of one moment the order there is
that of an unstable sort; here it is that of the rows.

CORRECTED differs where that misleads:
1. of a user's reviews of an item the latest counts, in the 5-core as elsewhere;
2. reviews of items with too long texts are removed, not their users; prompts
   and 5-core are looked at until both hold;
3. users are ordered by the time of their target: every validation target is
   newer than all that training saw, every test target newer than all
   validation targets, and no moment is divided;
4. the items that a held-out user may meet are those that training users
   reviewed before the first held-out target: those after it are not known yet;
5. the target is the fifth review, since nothing repeats;
6. the older half of the held-out users is validation, the newer one test, and
   `selection_split` is 'validation'.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable, Collection

import numpy as np
import pyarrow as pa

from p4lm.data import pair_order, rating_data, split_rules, tables
from p4lm.data.rating_data import count
from p4lm.data.session_events import MadeSessions, SessionEvents
from p4lm.data.split_rules import TEST, TRAIN, VALIDATION
from p4lm.errors import UserError


class Mode(enum.Enum):
  """Whose mistakes are in the sessions; say which a result used."""

  AS_PUBLISHED = 'as published'
  CORRECTED = 'corrected'


@dataclasses.dataclass(frozen=True)
class SessionRule:
  """How sessions are made.

  Attributes:
    mode: see the module.
    history_length: reviews that the profile is written from.
    min_events: of the core; more than history_length.
    held_out_share: of the users, in (0, 1); half of them is test.
    seed: AS_PUBLISHED: of the random halves.
  """

  mode: Mode = Mode.CORRECTED
  history_length: int = 4
  min_events: int = 5
  held_out_share: float = 0.2
  seed: int = 0

  def __post_init__(self):
    if not 0 < self.history_length < self.min_events:
      raise UserError(
        f'history_length={self.history_length} must be positive and below '
        f'min_events={self.min_events}: an item must follow the history'
      )
    if not 0 < self.held_out_share < 1:
      raise UserError(
        f'held_out_share={self.held_out_share} must be between 0 and 1'
      )


@dataclasses.dataclass(frozen=True)
class Sessions:
  """One session a user.

  Attributes:
    table: user_id; history (item ids, oldest first); history_rows (their rows
      in the given ratings); target (item id); target_row; later (item ids after
      the target, in training none that came after the first held-out target);
      split. Ordered by user as the mode orders them.
    candidates: ids of the items to rank, those that training users reviewed.
    selection_split: the split on which models are chosen.
    dropped: {reason: events or users}, the reason says which.
  """

  table: pa.Table
  candidates: list[str]
  selection_split: str
  dropped: dict[str, int]


def build_sessions(
  ratings: pa.Table,
  rule: SessionRule = SessionRule(),
  *,
  long_items: Collection[str] = (),
  prompt_fits: Callable[[np.ndarray], bool] | None = None,
) -> Sessions:
  """Makes a session of every user who has enough events.

  Args:
    ratings: user_id, item_id, timestamp. AS_PUBLISHED wants the repeats
      (`read_amazon(keep_repeats=True)`). Rows of one user and moment count as
      being in order of time.
    rule: mode and sizes.
    long_items: items whose text the ranking encoder cannot take whole.
    prompt_fits: told the rows of a history (int64 [history_length]), whether
      the language model can take its prompt; None for always.
  Raises:
    UserError: a split is left empty, or there are too few moments to divide
      users by time.
  """
  events = SessionEvents(
    users=tables.encode_ids(ratings['user_id']),
    items=tables.encode_ids(ratings['item_id']),
    times=ratings['timestamp'].to_numpy(),
    history_length=rule.history_length,
    min_events=rule.min_events,
    long_items=frozenset(long_items),
    prompt_fits=prompt_fits or (lambda rows: True),
  )
  divide, selection_split = {
    Mode.AS_PUBLISHED: (_as_published, 'test'),
    Mode.CORRECTED: (_corrected, 'validation'),
  }[rule.mode]
  made, splits, known = divide(events, rule)
  for code, name in enumerate(tables.SPLITS):
    if not (splits == code).any():
      raise UserError(
        f'no {name} sessions are left of {len(ratings)} ratings (dropped: '
        f'{events.dropped}); give more ratings'
      )
  return Sessions(
    table=_table(events, made, splits),
    candidates=[events.items.ids[code] for code in known],
    selection_split=selection_split,
    dropped=events.dropped,
  )


def _as_published(events: SessionEvents, rule: SessionRule):
  """(sessions, int8 split of each, codes of the candidates)."""
  rows = events.core(events.by_time())
  rows = events.without_users(
    rows,
    events.user(rows)[events.is_long(rows)],
    'user of an item whose text is too long',
  )
  rows = events.core(events.with_fitting_prompts(rows))
  users, first = np.unique(events.user(rows), return_index=True)
  users = users[np.argsort(first)]
  num_train = len(users) - math.ceil(rule.held_out_share * len(users))
  is_train = np.isin(events.user(rows), users[:num_train])
  known = events.items_of(rows[is_train])
  held_out = events.with_known_items(rows[~is_train], known)
  rows = events.by_time(np.concatenate([rows[is_train], held_out]))
  # The prompts are looked at once more when they become tokens.
  rows = events.with_fitting_prompts(rows)
  made = events.sessions(rows, users)
  made = made.only(made.targets >= 0)
  lost = len(events.users_of(rows)) - len(made.users)
  count(events.dropped, 'user who met nothing but the history again', lost)
  splits = np.full(len(made.users), TRAIN, np.int8)
  held = np.flatnonzero(np.isin(made.users, users[num_train:]))
  ids = [events.users.ids[code] for code in made.users[held]]
  order = np.argsort(pair_order.id_numbers(ids, f'half {rule.seed}'))
  splits[held] = VALIDATION
  splits[held[order[: math.ceil(len(held) / 2)]]] = TEST
  return made, splits, known


def _corrected(events: SessionEvents, rule: SessionRule):
  """(sessions, int8 split of each, codes of the candidates)."""
  is_latest = rating_data.latest(events.users, events.items, events.times)
  rows = events.by_time(np.flatnonzero(is_latest))
  count(
    events.dropped,
    'duplicate (user, item), an older event',
    (~is_latest).sum(),
  )
  is_long = events.is_long(rows)
  count(
    events.dropped, 'event of an item whose text is too long', is_long.sum()
  )
  rows, before = rows[~is_long], -1
  while len(rows) != before:
    rows = events.core(rows)
    before = len(rows)
    rows = events.with_fitting_prompts(rows)
  users, times = events.target_times(rows)
  cut = split_rules.first_moment(np.sort(times), rule.held_out_share, 'users')
  is_train = np.isin(events.user(rows), users[times < cut])
  is_late = is_train & (events.times[rows] >= cut)
  count(
    events.dropped,
    'training event after the first held-out target',
    is_late.sum(),
  )
  train = rows[is_train & ~is_late]
  known = events.items_of(train)
  held_out = events.with_known_items(rows[~is_train], known)
  held_out = events.with_fitting_prompts(held_out)
  rows = events.by_time(np.concatenate([train, held_out]))
  users, times = events.target_times(rows)
  held_times = np.sort(times[times >= cut])
  half = split_rules.first_moment(held_times, 0.5, 'held-out users')
  order = np.argsort(times, kind='stable')
  made = events.sessions(rows, users[order])
  splits = np.full(len(made.users), TRAIN, np.int8)
  splits[times[order] >= cut] = VALIDATION
  splits[times[order] >= half] = TEST
  return made, splits, known


def _table(
  events: SessionEvents, made: MadeSessions, splits: np.ndarray
) -> pa.Table:
  ids = pa.array(events.items.ids, pa.string())
  items = lambda rows: ids.take(pa.array(events.item(rows)))
  lists = lambda offsets, values: pa.ListArray.from_arrays(
    pa.array(offsets, pa.int32()), values
  )
  length = made.history.shape[1]
  offsets = np.arange(len(made.users) + 1) * length
  history = made.history.reshape(-1)
  target_rows = made.rows[made.targets]
  is_later = np.arange(len(made.rows)) > made.targets[made.session]
  num_later = np.bincount(made.session[is_later], minlength=len(made.users))
  return pa.table(
    {
      'user_id': [events.users.ids[code] for code in made.users],
      'history': lists(offsets, items(history)),
      'history_rows': lists(offsets, pa.array(history, pa.int64())),
      'target': items(target_rows),
      'target_row': pa.array(target_rows, pa.int64()),
      'later': lists(
        np.append(0, np.cumsum(num_later)), items(made.rows[is_later])
      ),
      'split': [tables.SPLITS[code] for code in splits],
    }
  )
