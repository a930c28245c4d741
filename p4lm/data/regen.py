"""REGEN: histories of users with their reviews and narratives (Sayana et al.).

`regen_format` says what files hold; an error names file and line. Of that

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
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from p4lm.data import amazon_items, rating_data, split_rules, tables
from p4lm.data.amazon_release import ENDINGS
from p4lm.data.archives import DirectorySource, open_source
from p4lm.data.rating_data import GrowingIds, count, select
from p4lm.data.regen_events import read_events
from p4lm.data.regen_format import NARRATIVES, Events
from p4lm.data.regen_narratives import Narratives
from p4lm.errors import UserError

MAX_HISTORY = 50
_TAKEN_ROWS = 1 << 20
_MAX_TEXT_BYTES = 1 << 31  # of a string column's piece


@dataclasses.dataclass(frozen=True)
class RegenData:
  """What was read.

  Attributes:
    ratings: user_id, item_id (dictionary columns), rating, timestamp (seconds),
      review_title, review; users in order of first appearance, the events of
      each in order of time.
    items: the `items` schema with brand, price and average_rating (null); the
      title is the first that an event has.
    narratives: user_id, item_id (dictionary columns), kind (its key), text (a
      large string); item_id is '' for what is said of the whole user or stands
      in several events of the user. They come in the order of the first events
      that have them in the file, what stands in an event before what is beside
      its history, and then in that of the kinds.
    splits: user_id, split of each user of `ratings`.
    dropped: {reason: events}.
    unknown_keys: {key: objects that have a value for it}, which nobody read.
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
  columns = _read_columns(path, narratives)
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
    narratives=columns.narratives.table(columns.users, columns.items, rows),
    splits=pa.table(
      {'user_id': users, 'split': [tables.SPLITS[code] for code in codes]}
    ),
    dropped=dropped,
    unknown_keys=dict(sorted(columns.unknown_keys.items())),
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


@dataclasses.dataclass(frozen=True)
class _Columns:
  """M events in the file's order.

  Attributes:
    users, items: ids and codes [M].
    ratings: float32 [M].
    times: int64 [M], milliseconds.
    reviews: table [M], review_title and review.
    records: {item: its record for `amazon_items.item_table`}.
    narratives: of the events.
    unknown_keys: {key: objects that have it}, which nobody reads.
  """

  users: tables.EncodedIds
  items: tables.EncodedIds
  ratings: np.ndarray
  times: np.ndarray
  reviews: pa.Table
  records: Mapping[str, dict]
  narratives: Narratives
  unknown_keys: Mapping[str, int]


def _read_columns(path: Path, narratives: Sequence[str]) -> _Columns:
  users, items, described = GrowingIds(), GrowingIds(), _ItemRecords()
  ratings, times, reviews = [], [], []
  told, size = Narratives(narratives), 0
  unknown_keys: collections.Counter[str] = collections.Counter()
  source = DirectorySource(path.parent)
  for events in read_events(source, path.name, narratives):
    users.add(pa.chunked_array([events.users]))
    items.add(pa.chunked_array([events.items]))
    described.add(events)
    ratings.append(events.ratings)
    times.append(events.times)
    reviews.append(events.reviews)
    for narrative in events.narratives:
      told.add(narrative, size)
    size += len(events.ratings)
    unknown_keys += events.unknown_keys
  return _Columns(
    users=users.encoded(),
    items=items.encoded(),
    ratings=np.concatenate(ratings),
    times=np.concatenate(times),
    reviews=pa.concat_tables(reviews),
    records=described.records,
    narratives=told,
    unknown_keys=unknown_keys,
  )


class _ItemRecords:
  """What events say of their items: the first one, or the first with a title.

  Attributes:
    records: {item: record}, in order of first appearance.
  """

  def __init__(self):
    self.records: dict[str, dict] = {}
    self._titled: set[str] = set()

  def add(self, events: Events) -> None:
    ids = events.items.dictionary.to_pylist()
    if self._titled.issuperset(ids):
      return
    is_open = np.array([id_ not in self._titled for id_ in ids], bool)
    codes = events.items.indices.to_numpy()
    rows = np.flatnonzero(is_open[codes])
    # One of the events that say the same title of an item is enough.
    titles = events.described['title'].take(pa.array(rows))
    titles = tables.encode_ids(titles)
    keys = codes[rows].astype(np.int64) * len(titles.ids) + titles.codes
    rows = rows[np.sort(np.unique(keys, return_index=True)[1])]
    described = events.described.take(pa.array(rows)).to_pylist()
    for row, record in zip(rows, described, strict=True):
      self._add(ids[codes[row]], record)

  def _add(self, item: str, described: Mapping) -> None:
    title = amazon_items.clean_title(described['title']) or ''
    known = self.records.get(item)
    if known is None or (title and not known['title']):
      self.records[item] = _item_record(item, title, described)
      if title:
        self._titled.add(item)


def _item_record(item: str, title: str, described: Mapping) -> dict:
  # REGEN writes the path of categories as ' Paper - Labels - Round'.
  categories = amazon_items.clean_texts(described['categories'])
  if len(categories) == 1:
    categories = categories[0].split(' - ')
  return {
    'item_id': item,
    'title': title,
    'genres': categories,
    'brand': amazon_items.clean_text(described['brand']),
    'price': amazon_items.parse_price(described['price']),
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
  chosen = _take(columns.reviews, rows)
  for name in chosen.column_names:
    table = table.append_column(name, chosen[name])
  return table


def _take(texts: pa.Table, rows: np.ndarray) -> pa.Table:
  """Some rows, in their order.

  Arrow makes one piece of all that it takes from, which may be more text than
  fits; so it takes from the part of the file where some users are.
  """
  pieces = []
  for start in range(0, len(rows), _TAKEN_ROWS):
    some = rows[start : start + _TAKEN_ROWS]
    low, high = some.min(), some.max() + 1
    part = texts.slice(low, high - low)
    if part.nbytes > _MAX_TEXT_BYTES:
      part = part.cast(_schema_of(part, pa.large_string()))
    taken = part.take(pa.array(some - low))
    pieces.append(taken.cast(texts.schema))
  return pa.concat_tables(pieces)


def _schema_of(texts: pa.Table, type_: pa.DataType) -> pa.Schema:
  return pa.schema([(name, type_) for name in texts.column_names])
