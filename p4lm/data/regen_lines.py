"""What a line of REGEN's files means, and what is wrong with it.

Lines are read one by one in Python: the definition, for any line and any error.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa

from p4lm.data.byte_blocks import Block
from p4lm.data.json_rows import Column, Kind, convert, parse_value
from p4lm.data.regen_format import (
  CLOCKS,
  COLUMNS,
  DATE,
  EVENT_KEYS,
  HELD_OUT,
  HISTORIES,
  LAST_MILLISECOND,
  PRODUCT,
  RATING_RANGE,
  USER,
  USER_KEYS,
  Events,
  Narrative,
  parse_date,
)
from p4lm.errors import UserError

_TYPES = {
  'title': pa.string(),
  'categories': pa.list_(pa.string()),
  'price': pa.string(),
  'brand': pa.string(),
  'review_title': pa.string(),
  'review': pa.string(),
}


@dataclasses.dataclass(frozen=True)
class _Event:
  """One event.

  Attributes:
    user: id.
    time: milliseconds since 1970.
    values: {name in COLUMNS: value}.
    narratives: {key: text} that stands in the event.
    about_user: {key: text} that stands beside the history.
  """

  user: str
  time: int
  values: Mapping[str, object]
  narratives: Mapping[str, str]
  about_user: Mapping[str, str]


def read_lines(where: str, block: Block, narratives: Sequence[str]) -> Events:
  """The events of some lines.

  Args:
    where: how messages call the file.
    block: lines; blank ones are skipped.
    narratives: keys whose strings are narratives.
  Raises:
    UserError: bad input; names the file and the line.
  """
  last = block.first_line + block.data.count(b'\n') - 1

  def values() -> Iterator[tuple[str, object]]:
    for number, line in block.lines():
      is_cut = block.is_unended and number == last
      here = f'{where}, line {number}'
      yield here, parse_value(here, line, is_cut=is_cut)

  return _read(values(), narratives)


def read_document(where: str, data: bytes, narratives: Sequence[str]) -> Events:
  """The events of one JSON document; arguments and errors as `read_lines`."""
  return _read([(where, _parse_document(where, data))], narratives)


def _read(values: Iterable[tuple[str, object]], narratives) -> Events:
  """The events of JSON values, each with its place for messages."""
  unknown_keys: collections.Counter[str] = collections.Counter()
  events: list[_Event] = []
  for where, value in values:
    for user in _users(where, value):
      events += _events(where, user, narratives, unknown_keys)
  columns = {name: [event.values[name] for event in events] for name in COLUMNS}
  columns['price'] = [
    None if price is None else str(price) for price in columns['price']
  ]
  arrays = {name: pa.array(columns[name], t) for name, t in _TYPES.items()}
  table = pa.table(arrays)
  return Events(
    users=_ids(event.user for event in events),
    items=_ids(columns['item']),
    ratings=np.array(columns['rating'], np.float32),
    times=np.array([event.time for event in events], np.int64),
    described=table.select(['title', 'categories', 'price', 'brand']),
    reviews=table.select(['review_title', 'review']),
    narratives=(
      *_narratives([e.narratives for e in events], narratives, False),
      *_narratives([e.about_user for e in events], narratives, True),
    ),
    unknown_keys=unknown_keys,
  )


def _ids(values: Iterable[str]) -> pa.DictionaryArray:
  return pa.array(list(values), pa.string()).dictionary_encode()


def _narratives(
  texts: Sequence[Mapping[str, str]], kinds: Sequence[str], is_of_user: bool
) -> Iterator[Narrative]:
  for kind in kinds:
    rows = [row for row, said in enumerate(texts) if kind in said]
    if rows:
      said = _ids(texts[row][kind] for row in rows)
      yield Narrative(kind, is_of_user, np.array(rows, np.int32), said)


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
    yield {HISTORIES[0]: entries}
  else:
    yield from entries


def _is_event(entry: Mapping) -> bool:
  return not any(isinstance(entry.get(key), list) for key in HISTORIES)


def _events(
  where: str, user: Mapping, narratives: Sequence[str], unknown_keys
) -> Iterator[_Event]:
  about_user = _texts(where, user, narratives)
  unknown_keys.update(_keys(user) - USER_KEYS - set(narratives))
  for event in _history(where, user):
    record = _with_product(where, event)
    unknown_keys.update(_keys(record) - EVENT_KEYS - set(narratives))
    yield _Event(
      user=convert(where, USER, _first_values(record, user)),
      time=_time(where, record),
      values=_values_of(where, record),
      narratives=_texts(where, record, narratives),
      about_user=about_user,
    )


def _keys(record: Mapping) -> set[str]:
  return {key for key, value in record.items() if value is not None}


def _first_values(first: Mapping, second: Mapping) -> dict:
  """One object of two; where both have a value, that of the first counts."""
  more = {key: second[key] for key in _keys(second) - _keys(first)}
  return {**first, **more}


def _history(where: str, user: Mapping) -> list[Mapping]:
  key = next((key for key in HISTORIES if user.get(key) is not None), None)
  if key is None:
    raise UserError(
      f'{where}: key {HISTORIES[0]!r} is missing; found '
      f'{", ".join(user) or "none"}; mend or remove the line'
    )
  if not isinstance(user[key], list):
    raise UserError(
      f'{where}: {key} must be a list of events, got {user[key]!r:.60}; mend '
      'or remove the line'
    )
  events = list(user[key])
  if user.get(HELD_OUT) is not None:
    events.append(user[HELD_OUT])
  for event in events:
    if not isinstance(event, dict):
      raise UserError(
        f'{where}: an event must be a JSON object, got {event!r:.60}; mend or '
        'remove it'
      )
  return events


def _with_product(where: str, event: Mapping) -> Mapping:
  """The event with what its `product` says; its own values come first."""
  product = event.get(PRODUCT)
  if product is None:
    return event
  if not isinstance(product, dict):
    raise UserError(
      f'{where}: {PRODUCT} must be a JSON object, got {product!r:.60}; '
      'mend or remove it'
    )
  return _first_values(event, product)


def _texts(where, record: Mapping, keys: Sequence[str]) -> dict[str, str]:
  columns = {key: Column(Kind.TEXT, (key,)) for key in keys if key in record}
  texts = {key: convert(where, c, record) for key, c in columns.items()}
  return {key: text for key, text in texts.items() if text.strip()}


def _values_of(where: str, record: Mapping) -> dict[str, object]:
  values = {
    name: convert(where, column, record) for name, column in COLUMNS.items()
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
  key = next((k for k in CLOCKS if event.get(k) is not None), None)
  if key is not None:
    ticks = convert(where, Column(Kind.INTEGER, (key,), True), event)
    time = ticks * CLOCKS[key]
    if not 0 <= time < LAST_MILLISECOND:
      raise UserError(
        f'{where}: {key} {ticks} is not between 1970 and 2100; mend or remove '
        'the event'
      )
    return time
  text = convert(where, DATE, event).strip()
  time = parse_date(text)
  if time is None:
    raise UserError(
      f'{where}: {DATE.keys[0]} must be a date like 07/22/2014, got '
      f'{text!r:.40}; mend or remove the event'
    )
  return time
