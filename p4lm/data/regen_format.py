"""REGEN's files: the keys that they have, and the columns made of them.

A file holds one user a line: an object with the user's id and a list of events
(`history`), or the bare list of events, each with the user's id. One JSON
document that holds such a list, written over many lines, is read too.

`regen_lines` says what a line means; `regen_arrow` reads the common ones fast.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import functools
import re

import numpy as np
import pyarrow as pa

from p4lm.data.json_rows import Column, Kind

# Of these only `long_summary` was seen in the files; the other names follow
# the paper's headings.
NARRATIVES = (
  'long_summary',
  'short_summary',
  'purchase_reason',
  'purchase_reason_explanation',
  'product_endorsement',
  'user_profile',
  'critique',
)
RATING_RANGE = (1.0, 5.0)
LAST_MILLISECOND = 4_102_444_800_000  # 2100; more is another unit
HISTORIES = ('history', 'events', 'items', 'purchases')
# The event that a file holds back: it comes after the history.
HELD_OUT = 'heldout'
# What an event says of its item in an object of its own.
PRODUCT = 'product'
USER = Column(Kind.ID, ('user_id', 'reviewer_id', 'reviewerID'), True)
COLUMNS = {
  'item': Column(Kind.ID, ('parent_asin', 'asin', 'item_id'), True),
  'rating': Column(Kind.NUMBER, ('rating', 'overall'), True),
  'title': Column(Kind.TEXT, ('title',)),
  'categories': Column(Kind.TEXTS, ('category', 'categories', 'main_category')),
  'price': Column(Kind.PRICE, ('price',)),
  'brand': Column(Kind.TEXT, ('brand', 'store')),
  'review_title': Column(Kind.TEXT, ('review_title', 'summary')),
  'review': Column(Kind.TEXT, ('review', 'review_full', 'text')),
}
# {key: milliseconds of a tick}; the first that is there counts, then DATE.
CLOCKS = {'timestamp_ms': 1, 'timestamp': 1, 'unixReviewTime': 1000}
DATE = Column(Kind.TEXT, ('purchase_date',), True)
_DATES = (
  re.compile(r'(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})'),
  re.compile(r'(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})'),
)
EVENT_KEYS = frozenset(
  {key for column in COLUMNS.values() for key in column.keys}
  | {*USER.keys, *CLOCKS, *DATE.keys, PRODUCT}
)
USER_KEYS = frozenset({*USER.keys, *HISTORIES, HELD_OUT})


@dataclasses.dataclass(frozen=True)
class Narrative:
  """Narratives of one kind in some events, N of them, none blank.

  Attributes:
    kind: their key.
    is_of_user: whether they stand beside the history; every event of the
      history has them then.
    rows: int32 [N], the events that have one, ascending.
    texts: dictionary of strings [N].
  """

  kind: str
  is_of_user: bool
  rows: np.ndarray
  texts: pa.DictionaryArray


@dataclasses.dataclass(frozen=True)
class Events:
  """Some consecutive events of a file, M of them: users bought and rated items.

  Attributes:
    users, items: ids, dictionaries of strings [M] in order of appearance.
    ratings: float32 [M], in [1, 5].
    times: int64 [M], milliseconds since 1970; a date is its midnight in UTC.
    described: table [M] of the item as the event has it: title and brand
      (strings), categories (strings or null), price (string, number or null).
    reviews: table [M] of what the user wrote, review_title and review, '' for
      nothing.
    narratives: by kind, first those in events, then those of users.
    unknown_keys: counts the objects that have a key nobody reads; a null
      counts as absent, here as everywhere.
  """

  users: pa.DictionaryArray
  items: pa.DictionaryArray
  ratings: np.ndarray
  times: np.ndarray
  described: pa.Table
  reviews: pa.Table
  narratives: tuple[Narrative, ...]
  unknown_keys: collections.Counter[str]


# Files have a few thousand dates, and many events on each.
@functools.lru_cache(maxsize=1 << 16)
def parse_date(text: str) -> int | None:
  """Milliseconds since 1970 at the midnight of a date; None for no date.

  >>> parse_date('01/02/1970'), parse_date(' 1970-1-2'), parse_date('2/30/1970')
  (86400000, 86400000, None)
  """
  for pattern in _DATES:
    if match := pattern.fullmatch(text.strip()):
      numbers = {name: int(part) for name, part in match.groupdict().items()}
      try:
        date = datetime.datetime(**numbers, tzinfo=datetime.UTC)
      except ValueError:
        return None
      return int(date.timestamp()) * 1000
  return None
