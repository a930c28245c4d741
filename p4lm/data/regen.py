"""REGEN: histories of users with their reviews and narratives (Sayana et al.).

`regen_events` reads the files; an error names file and line. Of what they hold

- an item without a title in any event (or with a script for one) is left out
  with its events;
- repeats are treated as `amazon` treats them: events with the same user, item,
  rating and time are one, and of a user's other events with an item the latest
  is kept;
- the latest 50 events of a user are kept, as in the paper, in the order of time
  and, at one moment, of the file; a user's lines are one history;
- users are divided by a hash of their ids: no user is in two splits, and
  neither order nor machine nor other users matter.

Each of the first three has its count in the drop report.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from p4lm.data import amazon_items, rating_data, split_rules, tables
from p4lm.data.amazon_release import ENDINGS
from p4lm.data.archives import DirectorySource, open_source
from p4lm.data.rating_data import GrowingIds, count, select
from p4lm.data.regen_events import (
  NARRATIVES,
  Event,
  read_events,
)
from p4lm.errors import UserError

MAX_HISTORY = 50
_FLUSH = 20_000
_NARRATIVE = ('user_id', 'item_id', 'kind', 'text')


@dataclasses.dataclass(frozen=True)
class RegenData:
  """What was read.

  Attributes:
    ratings: user_id, item_id (dictionary columns), rating, timestamp (seconds),
      review_title, review; users in order of first appearance, the events of
      each in order of time.
    items: the `items` schema with brand, price and average_rating (null); the
      title is the first that an event has.
    narratives: user_id, item_id, kind (its key), text; item_id is '' for what
      is said of the whole user or stands in several events of the user.
    splits: user_id, split of each user of `ratings`.
    dropped: {reason: events}.
    unknown_keys: {key: objects that have it}, which nobody read.
  """

  ratings: pa.Table
  items: pa.Table
  narratives: pa.Table
  splits: pa.Table
  dropped: dict[str, int]
  unknown_keys: dict[str, int]


def read_regen(
  path: str | os.PathLike,
  *,
  max_history: int = MAX_HISTORY,
  narratives: Sequence[str] = NARRATIVES,
  seed: int = 0,
  test_share: float = 0.1,
  validation_share: float = 0.1,
) -> RegenData:
  """Reads a file of histories; see the module for the rules.

  Args:
    path: JSON lines or a JSON document, plain or gzip.
    max_history: events of a user to keep.
    narratives: keys whose strings are narratives.
    seed: of the division of users.
    test_share: probability that a user is in test.
    validation_share: likewise.
  Raises:
    UserError: bad input; the message names the file and the line.
  """
  path = Path(path)
  if not path.is_file():
    raise UserError(f'{path} does not exist; give a file of histories')
  unknown_keys: collections.Counter[str] = collections.Counter()
  source, events = DirectorySource(path.parent), _Events()
  for event in read_events(source, path.name, narratives, unknown_keys):
    events.add(event)
  columns = events.finish()
  dropped: dict[str, int] = {}
  rows = _kept_rows(columns, max_history, dropped)
  if not len(rows):
    raise UserError(f'{path}: no event is of an item with a title')
  ratings = _rating_table(columns, rows)
  rated = set(tables.encode_ids(ratings['item_id']).ids)
  users = tables.encode_ids(ratings['user_id']).ids
  codes = split_rules.user_codes(users, seed, test_share, validation_share)
  return RegenData(
    ratings=ratings,
    items=amazon_items.item_table(
      [columns.records[id_] for id_ in columns.records if id_ in rated]
    ),
    narratives=_narrative_table(events.narratives, columns, rows),
    splits=pa.table(
      {'user_id': users, 'split': [tables.SPLITS[code] for code in codes]}
    ),
    dropped=dropped,
    unknown_keys=dict(sorted(unknown_keys.items())),
  )


def find_file(data_dir: str | os.PathLike) -> Path:
  """The one file of histories in a directory (or the file itself).

  Raises:
    UserError: there is none, or more than one.
  """
  path = Path(data_dir)
  if path.is_file():
    return path
  source = open_source(path)
  found = [f for f in source.names() if f.lower().endswith(ENDINGS)]
  if len(found) != 1:
    raise UserError(
      f'{path} must hold one file of histories (.json or .jsonl, perhaps .gz), '
      f'found {", ".join(found[:5]) or "none"}; name the file in DATA_DIR'
    )
  return path / found[0]


class _Events:
  """Columns of events that grow; reviews are in Arrow, not in Python.

  Attributes:
    narratives: {(user, kind, text): rows where it stands, None beside the
      history}.
  """

  def __init__(self):
    self._users, self._items = GrowingIds(), GrowingIds()
    self._pending: list[Event] = []
    self._pieces: list[pa.Table] = []
    self._records: dict[str, dict] = {}
    self._size = 0
    self.narratives: dict[tuple[str, str, str], list[int | None]] = {}

  def add(self, event: Event) -> None:
    for texts, row in (
      (event.narratives, self._size),
      (event.about_user, None),
    ):
      for kind, text in texts.items():
        self.narratives.setdefault((event.user, kind, text), []).append(row)
    title = amazon_items.clean_title(event.title)
    known = self._records.get(event.item)
    if known is None or (title and not known['title']):
      self._records[event.item] = _item_record(event, title or '')
    self._size += 1
    self._pending.append(event)
    if len(self._pending) == _FLUSH:
      self._flush()

  def finish(self) -> _Columns:
    self._flush()
    table = pa.concat_tables(self._pieces)
    return _Columns(
      users=self._users.encoded(),
      items=self._items.encoded(),
      ratings=table['rating'].to_numpy(),
      times=table['time'].to_numpy(),
      reviews=table.select(['review_title', 'review']),
      records=self._records,
    )

  def _flush(self) -> None:
    events, self._pending = self._pending, []
    self._users.add(_strings(event.user for event in events))
    self._items.add(_strings(event.item for event in events))
    columns = {
      'rating': pa.array([event.rating for event in events], pa.float32()),
      'time': pa.array([event.time for event in events], pa.int64()),
    }
    for name in ('review_title', 'review'):
      columns[name] = _strings(
        html.unescape(getattr(event, name)) for event in events
      )
    self._pieces.append(pa.table(columns))


@dataclasses.dataclass(frozen=True)
class _Columns:
  """M events in the file's order.

  Attributes:
    users, items: ids and codes [M].
    ratings: float32 [M].
    times: int64 [M], milliseconds.
    reviews: review_title, review.
    records: {item: its record for `amazon_items.item_table`}.
  """

  users: tables.EncodedIds
  items: tables.EncodedIds
  ratings: np.ndarray
  times: np.ndarray
  reviews: pa.Table
  records: dict[str, dict]


def _strings(values: Iterable[str]) -> pa.ChunkedArray:
  return pa.chunked_array([pa.array(list(values), pa.string())])


def _item_record(event: Event, title: str) -> dict:
  # REGEN writes the path of categories as ' Paper - Labels - Round'.
  categories = amazon_items.clean_texts(event.categories)
  if len(categories) == 1:
    categories = categories[0].split(' - ')
  return {
    'item_id': event.item,
    'title': title,
    'genres': categories,
    'brand': amazon_items.clean_text(event.brand),
    'price': amazon_items.parse_price(event.price),
  }


def _kept_rows(columns: _Columns, max_history: int, dropped) -> np.ndarray:
  """Rows that stay, by user, then time, then place in the file."""
  has_title = np.array(
    [bool(columns.records[id_]['title']) for id_ in columns.items.ids], bool
  )
  keep = has_title[columns.items.codes]
  count(dropped, 'event with an item without a title', (~keep).sum())
  keep &= rating_data.without_repeats(
    columns.users, columns.items, columns.ratings, columns.times,
    among=keep, noun='event', dropped=dropped,
  )  # fmt: skip
  rows = np.flatnonzero(keep)
  users = columns.users.codes[rows]
  order = rating_data.by_user_and_time(users, columns.times[rows])
  rows, users = rows[order], users[order]
  counts = np.bincount(users, minlength=len(columns.users.ids))
  from_end = np.cumsum(counts)[users] - np.arange(len(rows))
  is_recent = from_end <= max_history
  count(
    dropped,
    f'event before the latest {max_history} of its user',
    (~is_recent).sum(),
  )
  return rows[is_recent]


def _rating_table(columns: _Columns, rows: np.ndarray) -> pa.Table:
  table = rating_data.rating_table(
    select(columns.users, rows),
    select(columns.items, rows),
    columns.ratings[rows],
    columns.times[rows] // 1000,
  )
  chosen = columns.reviews.take(pa.array(rows, pa.int64()))
  for name in chosen.column_names:
    table = table.append_column(name, chosen[name])
  return table


def _narrative_table(narratives, columns: _Columns, rows) -> pa.Table:
  kept = set(rows.tolist())
  users = set(columns.users.codes[rows].tolist())
  ids = {columns.users.ids[code] for code in users}
  records = []
  for (user, kind, text), places in narratives.items():
    places = [place for place in places if place is None or place in kept]
    if not places or user not in ids:
      continue
    is_of_user = None in places or len(places) > 1
    item = (
      '' if is_of_user else columns.items.ids[columns.items.codes[places[0]]]
    )
    records.append(dict(zip(_NARRATIVE, (user, item, kind, text))))
  return pa.Table.from_pylist(
    records, schema=pa.schema([(name, pa.string()) for name in _NARRATIVE])
  )
