"""Events of users in REGEN's files and in files like them.

A file holds one user a line: an object with the user's id and a list of events
(`history`), or the bare list of events, each with the user's id. One JSON
document that holds such a list, written over many lines, is read too.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import json
import re
from collections.abc import Iterator, Mapping, Sequence

from p4lm.data.archives import FileSource
from p4lm.data.byte_blocks import read_blocks
from p4lm.data.json_rows import Column, Kind, convert, parse_value
from p4lm.errors import UserError

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
_LAST_MILLISECOND = 4_102_444_800_000  # 2100; more is another unit
_DOCUMENT_BYTES = 1 << 30
_HISTORIES = ('history', 'events', 'items', 'purchases')
# The event that a file holds back: it comes after the history.
_HELD_OUT = 'heldout'
_USER = Column(Kind.ID, ('user_id', 'reviewer_id', 'reviewerID'), True)
_COLUMNS = {
  'item': Column(Kind.ID, ('parent_asin', 'asin', 'item_id'), True),
  'rating': Column(Kind.NUMBER, ('rating', 'overall'), True),
  'title': Column(Kind.TEXT, ('title',)),
  'categories': Column(Kind.TEXTS, ('category', 'categories', 'main_category')),
  'price': Column(Kind.PRICE, ('price',)),
  'brand': Column(Kind.TEXT, ('brand', 'store')),
  'review_title': Column(Kind.TEXT, ('review_title', 'summary')),
  'review': Column(Kind.TEXT, ('review', 'review_full', 'text')),
}
_PRODUCT = 'product'
_CLOCKS = {'timestamp_ms': 1, 'timestamp': 1, 'unixReviewTime': 1000}
_DATE = 'purchase_date'
_DATES = (
  re.compile(r'(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})'),
  re.compile(r'(?P<year>\d{4})-(?P<month>\d{1,2})-(?P<day>\d{1,2})'),
)
_EVENT_KEYS = {key for column in _COLUMNS.values() for key in column.keys}
_EVENT_KEYS |= {*_USER.keys, *_CLOCKS, _DATE, _PRODUCT}
_USER_KEYS = {*_USER.keys, *_HISTORIES, _HELD_OUT}


@dataclasses.dataclass(frozen=True)
class Event:
  """A user bought and rated an item.

  Attributes:
    user, item: ids.
    rating: in [1, 5].
    time: milliseconds since 1970; a date is its midnight in UTC.
    title, categories, price, brand: of the item, as the file has them.
    review_title, review: what the user wrote, '' for nothing.
    narratives: {key: text} that stands in the event.
    about_user: {key: text} that stands beside the history.
  """

  user: str
  item: str
  rating: float
  time: int
  title: str
  categories: list[str] | None
  price: str | float | None
  brand: str
  review_title: str
  review: str
  narratives: Mapping[str, str]
  about_user: Mapping[str, str]


def read_events(
  source: FileSource,
  name: str,
  narratives: Sequence[str],
  unknown_keys: collections.Counter[str],
) -> Iterator[Event]:
  """The events of a file in its order.

  Args:
    source: directory or archive.
    name: file within it, plain or gzip.
    narratives: keys whose strings are narratives.
    unknown_keys: counts the objects that have a key nobody reads.
  Raises:
    UserError: bad input; names the file and the line (of a document: the
      entry).
  """
  is_empty = True
  event_keys = _EVENT_KEYS | set(narratives)
  user_keys = _USER_KEYS | set(narratives)
  for where, value in _values(source, name):
    for user in _users(where, value):
      about_user = _texts(where, user, narratives)
      unknown_keys.update(user.keys() - user_keys)
      for record in _history(where, user):
        is_empty = False
        record = _with_product(where, record)
        unknown_keys.update(record.keys() - event_keys)
        yield Event(
          user=convert(where, _USER, {**user, **record}),
          time=_time(where, record),
          narratives=_texts(where, record, narratives),
          about_user=about_user,
          **_values_of(where, record),
        )
  if is_empty:
    raise UserError(
      f'{source.describe(name)} holds no events; each line must be JSON like '
      '{"user_id": "A", "history": [{"asin": "B", "rating": 5, ...}]}'
    )


def _values(source: FileSource, name: str) -> Iterator[tuple[str, object]]:
  """(place for messages, JSON value) of each line, or of the document."""
  where = source.describe(name)
  document, is_first = None, True
  for block in read_blocks(source, name):
    if document is not None:
      document += block.data
      if len(document) > _DOCUMENT_BYTES:
        raise UserError(
          f'{where} is one JSON document of more than '
          f'{_DOCUMENT_BYTES >> 30} GiB; save it as JSON lines, one user a line'
        )
      continue
    last = block.first_line + block.data.count(b'\n') - 1
    for number, line in block.lines():
      if is_first and line.strip() in (b'[', b'{'):
        # Nobody breaks a line there but who indents.
        document = bytearray(b'\n' * (block.first_line - 1) + block.data)
        break
      is_first = False
      is_cut = block.is_unended and number == last
      here = f'{where}, line {number}'
      yield here, parse_value(here, line, is_cut=is_cut)
  if document is not None:
    yield where, _parse_document(where, bytes(document))


def _parse_document(where: str, data: bytes) -> object:
  try:
    return json.loads(data.decode('utf-8'))
  except UnicodeDecodeError as error:
    line = data.count(b'\n', 0, error.start) + 1
    raise UserError(
      f'{where}, line {line}: the text is not utf-8 '
      f'(byte {data[error.start]:#04x}); save the file as utf-8'
    ) from error
  except json.JSONDecodeError as error:
    raise UserError(
      f'{where}, line {error.lineno} is no JSON ({error.msg}); mend it, or get '
      'the file again'
    ) from error
  except (ValueError, RecursionError) as error:
    raise UserError(f'{where} is no JSON ({error}); mend it') from error


def _users(where: str, value: object) -> Iterator[Mapping]:
  """The users of a value; bare events are one user's who has nothing else."""
  if isinstance(value, dict) and _is_event(value):
    raise UserError(
      f'{where}: this is one event and no user; give one user a line, with all '
      'events in a list'
    )
  entries = [value] if isinstance(value, dict) else value
  if not isinstance(entries, list) or not all(
    isinstance(entry, dict) for entry in entries
  ):
    raise UserError(
      f'{where}: expected a user (a JSON object) or a list of events; mend or '
      'remove the line'
    )
  if entries and all(_is_event(entry) for entry in entries):
    yield {_HISTORIES[0]: entries}
  else:
    yield from entries


def _is_event(entry: Mapping) -> bool:
  return not any(isinstance(entry.get(key), list) for key in _HISTORIES)


def _history(where: str, user: Mapping) -> list[Mapping]:
  key = next((key for key in _HISTORIES if key in user), None)
  if key is None:
    raise UserError(
      f'{where}: key {_HISTORIES[0]!r} is missing; found '
      f'{", ".join(user) or "none"}; mend or remove the line'
    )
  events = list(user[key])
  if user.get(_HELD_OUT) is not None:
    events.append(user[_HELD_OUT])
  for event in events:
    if not isinstance(event, dict):
      raise UserError(
        f'{where}: an event must be a JSON object, got {event!r:.60}; mend or '
        'remove it'
      )
  return events


def _with_product(where: str, event: Mapping) -> Mapping:
  """The event with what its `product` says; its own keys come first."""
  product = event.get(_PRODUCT)
  if product is None:
    return event
  if not isinstance(product, dict):
    raise UserError(
      f'{where}: {_PRODUCT} must be a JSON object, got {product!r:.60}; '
      'mend or remove it'
    )
  return {**product, **event}


def _texts(where, record: Mapping, keys: Sequence[str]) -> dict[str, str]:
  columns = {key: Column(Kind.TEXT, (key,)) for key in keys if key in record}
  texts = {key: convert(where, c, record) for key, c in columns.items()}
  return {key: text for key, text in texts.items() if text.strip()}


def _values_of(where: str, record: Mapping) -> dict[str, object]:
  values = {
    field: convert(where, column, record) for field, column in _COLUMNS.items()
  }
  low, high = RATING_RANGE
  if not low <= values['rating'] <= high:
    raise UserError(
      f'{where}: rating {values["rating"]:g} is outside [{low:g}, {high:g}]; '
      'mend or remove the event'
    )
  return values


def _time(where: str, event: Mapping) -> int:
  """Milliseconds since 1970."""
  key = next((k for k in _CLOCKS if event.get(k) is not None), None)
  if key is not None:
    ticks = convert(where, Column(Kind.INTEGER, (key,), True), event)
    time = ticks * _CLOCKS[key]
    if not 0 <= time < _LAST_MILLISECOND:
      raise UserError(
        f'{where}: {key} {ticks} is not between 1970 and 2100; mend or remove '
        'the event'
      )
    return time
  column = Column(Kind.TEXT, (_DATE,), True)
  text = convert(where, column, event).strip()
  for pattern in _DATES:
    if match := pattern.fullmatch(text):
      numbers = {name: int(part) for name, part in match.groupdict().items()}
      try:
        date = datetime.datetime(**numbers, tzinfo=datetime.UTC)
      except ValueError:
        break
      return int(date.timestamp()) * 1000
  raise UserError(
    f'{where}: {_DATE} must be a date like 07/22/2014, got {text!r:.40}; '
    'mend or remove the event'
  )
