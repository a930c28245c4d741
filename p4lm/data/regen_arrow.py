"""The common lines of REGEN's files, parsed by Arrow.

Arrow takes a block of lines where it knows the type of every key in it, which
is many times as fast as Python. The types are learnt: of a block that does not
fit, Python reads the values and Arrow says of what types they are. A block that
does not fit then either, or whose values are not what `regen_lines` would take
as they are, is left to that.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import threading
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from p4lm.data.json_rows import Column, Kind, has_empty, num_lines_within
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
from p4lm.data.regen_types import TYPES, Unfit, learn, user_level

# Columns of as many objects, without those that have no value, by key.
_Arrays = Mapping[str, pa.Array]


class ArrowReader:
  """Reads blocks of a file; several threads may ask it at once."""

  def __init__(self, narratives: Sequence[str]):
    self._narratives = tuple(narratives)
    self._level = user_level(narratives)
    self._schema = pa.schema([])
    self._lock = threading.Lock()

  def read(self, data: bytes) -> Events | None:
    """The events of some lines, None where they are not of the common kind."""
    try:
      return self._events(self._parse(data))
    except (Unfit, pa.ArrowException, UnicodeDecodeError):
      return None

  def _parse(self, data: bytes) -> pa.Table:
    """One row a line."""
    if not data.isascii():
      data.decode('utf-8')
    data, num_lines, is_bare = _as_objects(data)
    table = _parse_as(self._schema, data, num_lines)
    if table is None:
      table = self._parse_learning(data, num_lines)
    if is_bare and len(_arrays(table)) > 1:
      # `[], "user_id": "u", "x": []` begins and ends as a list does.
      raise Unfit
    return table

  def _parse_learning(self, data: bytes, num_lines: int) -> pa.Table:
    """One row a line, by what other threads have learnt or by these lines."""
    with self._lock:
      table = _parse_as(self._schema, data, num_lines)
      if table is None:
        self._schema = learn(data, self._schema, self._level)
        table = _parse_as(self._schema, data, num_lines)
    if table is None:
      raise Unfit
    return table

  def _events(self, table: pa.Table) -> Events:
    lines, events = _events_of(table)
    about_user, stated = _arrays(table), _arrays(events)
    product = {}
    if PRODUCT in stated:
      product = _with_values(_fields(stated[PRODUCT]))
    if any(key in stated and _is_list(stated[key]) for key in HISTORIES):
      raise Unfit  # Bare entries with such a list are users.
    read = functools.partial(_first, (stated, product), len(lines))
    values = {name: read(column) for name, column in COLUMNS.items()}
    return Events(
      users=_users((stated, product), about_user, lines),
      items=_encoded(values['item']),
      ratings=_ratings(values['rating']),
      times=_times(read),
      described=_select(values, 'title', 'categories', 'price', 'brand'),
      reviews=_select(values, 'review_title', 'review'),
      narratives=(
        *self._narratives_of((stated, product), False),
        *self._narratives_of((about_user,), True, lines),
      ),
      unknown_keys=self._unknown_keys(about_user, stated, product),
    )

  def _narratives_of(
    self, levels: Sequence[_Arrays], is_of_user: bool, rows=None
  ) -> Iterator[Narrative]:
    """Narratives of some objects, or of `rows` of them [M]."""
    for kind in self._narratives:
      found = [level[kind] for level in levels if kind in level]
      if not found:
        continue
      texts = pc.coalesce(*found).dictionary_encode()
      if rows is not None:
        texts = texts.take(pa.array(rows))
      blank = pc.equal(pc.utf8_trim_whitespace(texts.dictionary), '')
      # The last is that of code -1: no text.
      is_said = np.append(~blank.to_numpy(zero_copy_only=False), False)
      codes = pc.fill_null(texts.indices, -1).to_numpy()
      said = np.flatnonzero(is_said[codes])
      if len(said):
        yield Narrative(
          kind, is_of_user, said.astype(np.int32), texts.take(pa.array(said))
        )

  def _unknown_keys(
    self, about_user: _Arrays, stated: _Arrays, product: _Arrays
  ) -> collections.Counter[str]:
    counts: collections.Counter[str] = collections.Counter()
    for key in about_user.keys() - USER_KEYS - set(self._narratives):
      counts[key] += len(about_user[key]) - about_user[key].null_count
    keys = stated.keys() | product.keys()
    for key in keys - EVENT_KEYS - set(self._narratives):
      found = [level[key] for level in (stated, product) if key in level]
      is_there = functools.reduce(pc.or_, [array.is_valid() for array in found])
      counts[key] += pc.sum(is_there).as_py()
    return counts


def _as_objects(data: bytes) -> tuple[bytes, int, bool]:
  """(lines that are objects, their number, whether they were bare lists)."""
  num_lines = num_lines_within(data, '{', '}')
  if num_lines is not None:
    return data, num_lines, False
  num_lines = num_lines_within(data, '[', ']')
  if num_lines is None:
    raise Unfit
  start = b'{"%b": ' % HISTORIES[0].encode()
  lines = data[:-1].replace(b'\n', b'}\n' + start)
  return start + lines + b'}\n', num_lines, True


def _parse_as(schema: pa.Schema, data: bytes, num_rows: int) -> pa.Table | None:
  """The table if all keys and values are of the schema."""
  try:
    table = pa.json.read_json(
      pa.BufferReader(data),
      # One chunk: larger than the data, or Arrow splits objects.
      read_options=pa.json.ReadOptions(block_size=len(data) + 1),
      # Not 'infer': that dies of deep objects, and takes strings for dates.
      parse_options=pa.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior='error'
      ),
    )
  except pa.ArrowException:
    return None
  return table if len(table) == num_rows else None


def _events_of(table: pa.Table) -> tuple[np.ndarray, pa.Table]:
  """(line of each event [M], events), in order."""
  users = _arrays(table)
  used = [key for key in HISTORIES if key in users]
  if (
    len(used) != 1 or users[used[0]].null_count or not _is_list(users[used[0]])
  ):
    raise Unfit
  history = users[used[0]]
  sizes = history.value_lengths().to_numpy()
  lines = np.repeat(np.arange(len(sizes)), sizes)
  events = _table_of(history.flatten())
  if HELD_OUT in users:
    held = users[HELD_OUT]
    holders = np.flatnonzero(held.is_valid().to_numpy(zero_copy_only=False))
    more = _table_of(held.take(pa.array(holders)))
    events = pa.concat_tables([events, more], promote_options='permissive')
    lines = np.concatenate([lines, holders])
    order = np.argsort(lines, kind='stable')
    lines, events = lines[order], events.take(pa.array(order))
  return lines, events


def _is_list(array: pa.Array) -> bool:
  return pa.types.is_list(array.type)


def _table_of(objects: pa.Array) -> pa.Table:
  """Their columns; null objects lack what is required, and fail by that."""
  table = pa.table(_fields(objects))
  if len(table) != len(objects):
    raise Unfit  # Not one of them has a key.
  return table


def _fields(objects: pa.Array) -> dict[str, pa.Array]:
  """Their columns; a value is null where the object is."""
  if pa.types.is_null(objects.type):
    return {}
  if not pa.types.is_struct(objects.type):
    raise Unfit
  names = [field.name for field in objects.type]
  return dict(zip(names, objects.flatten(), strict=True))


def _with_values(columns: Mapping[str, pa.Array]) -> dict[str, pa.Array]:
  return {
    key: array
    for key, array in columns.items()
    if array.null_count < len(array)
  }


def _arrays(table: pa.Table) -> dict[str, pa.Array]:
  columns = zip(table.column_names, table.columns, strict=True)
  return _with_values({key: _one_chunk(column) for key, column in columns})


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
  return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _first(levels: Sequence[_Arrays], size: int, column: Column) -> pa.Array:
  """The column [size]: per row the first key with a value, of levels the first.

  Raises:
    Unfit: a required value is missing.
  """
  found = [
    _of_one_type(column.kind, level[key])
    for key in column.keys
    for level in levels
    if key in level
  ]
  values = pa.nulls(size, next(iter(TYPES[column.kind].values())))
  if found:
    values = found[0]
    if values.null_count and len(found) > 1:
      if any(array.type != values.type for array in found):
        raise Unfit
      values = pc.coalesce(*found)
  if values.null_count and column.required:
    raise Unfit
  if values.null_count and column.kind is Kind.TEXT:
    values = pc.fill_null(values, '')
  return values


def _of_one_type(kind: Kind, values: pa.Array) -> pa.Array:
  """The values with the type that this kind has here, but for prices."""
  if kind is Kind.ID:
    return values.cast(pa.string())
  if kind is Kind.TEXTS and not _is_list(values):
    return _as_lists(values)
  return values


def _as_lists(values: pa.Array) -> pa.Array:
  """Each string as a list of one."""
  ends = np.cumsum(values.is_valid().to_numpy(zero_copy_only=False))
  starts = np.append(0, ends).astype(np.int32)
  return pa.ListArray.from_arrays(
    pa.array(starts), values.drop_null(), mask=values.is_null()
  )


def _select(values: Mapping[str, pa.Array], *names: str) -> pa.Table:
  return pa.table({name: values[name] for name in names})


def _encoded(ids: pa.Array) -> pa.DictionaryArray:
  """Ids as a dictionary."""
  encoded = ids.dictionary_encode()
  if has_empty(encoded.dictionary):
    raise Unfit
  return encoded


def _users(
  levels: Sequence[_Arrays], about_user: _Arrays, lines: np.ndarray
) -> pa.DictionaryArray:
  """The user of each event: per key whom the event names, else its line."""
  if any(key in level for key in USER.keys for level in levels):
    rows = pa.array(lines)
    of_line = {
      key: about_user[key].take(rows) for key in USER.keys if key in about_user
    }
    return _encoded(_first((*levels, of_line), len(lines), USER))
  holders, holder_of_event = np.unique(lines, return_inverse=True)
  of_line = {
    key: about_user[key].take(pa.array(holders))
    for key in USER.keys
    if key in about_user
  }
  ids = _encoded(_first((of_line,), len(holders), USER))
  return ids.take(pa.array(holder_of_event))


def _ratings(values: pa.Array) -> np.ndarray:
  ratings = values.to_numpy()
  low, high = RATING_RANGE
  # A NaN fails both comparisons.
  if not ((ratings >= low) & (ratings <= high)).all():
    raise Unfit
  return ratings.astype(np.float32)


def _times(read) -> np.ndarray:
  """Milliseconds since 1970, by the first clock or by the date."""
  clocks = [
    pc.multiply_checked(read(Column(Kind.INTEGER, (key,))), tick)
    for key, tick in CLOCKS.items()
  ]
  times = pc.coalesce(*clocks)
  if times.null_count:
    without = times.is_null()
    dates = read(dataclasses.replace(DATE, required=False)).filter(without)
    dates = dates.dictionary_encode()
    parsed = [parse_date(text) for text in dates.dictionary.to_pylist()]
    found = pa.array(parsed, pa.int64()).take(dates.indices)
    times = pc.replace_with_mask(times, without, found)
  if times.null_count:
    raise Unfit
  milliseconds = times.to_numpy()
  if not ((milliseconds >= 0) & (milliseconds < LAST_MILLISECOND)).all():
    raise Unfit
  return milliseconds
