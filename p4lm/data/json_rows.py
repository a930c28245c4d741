"""Columns of JSON-lines files, with errors that name file and line.

Arrow parses a block of lines at once. It is asked only where the block looks
like one object a line, and its answer counts only where every row fits the
columns; any other block is read line by line in Python, which says what a line
means and what is wrong with it. So the common case is fast, and what is read
does not depend on how it was read.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from p4lm.data import ahead
from p4lm.data.archives import FileSource
from p4lm.data.byte_blocks import Block, read_blocks
from p4lm.errors import UserError


class Kind(enum.Enum):
  """What a value may be."""

  ID = 'a string or a whole number, never empty'
  NUMBER = 'a number'
  INTEGER = 'a whole number'
  TEXT = 'a string; null and a missing key are an empty one'
  LABEL = 'a string or a whole number; null and a missing key are an empty one'
  TEXTS = 'strings, one string, or null'
  PRICE = 'a string, a number, or null'
  FLAG = 'true, false, or null'


# The types that a column may have, that of the slow way first.
_ARROW_TYPES = {
  # Once read, ids become dictionaries: 4 bytes a row.
  Kind.ID: (pa.string(),),
  Kind.NUMBER: (pa.float64(),),
  Kind.INTEGER: (pa.int64(),),
  Kind.TEXT: (pa.string(),),
  Kind.LABEL: (pa.string(),),
  Kind.TEXTS: (pa.list_(pa.string()),),
  Kind.PRICE: (pa.string(), pa.float64()),
  Kind.FLAG: (pa.bool_(),),
}
_EXPECTED = {
  Kind.ID: 'an id (a string or a whole number)',
  Kind.NUMBER: 'a number',
  Kind.INTEGER: 'a whole number',
  Kind.TEXT: 'a string',
  Kind.LABEL: 'a label (a string or a whole number)',
  Kind.TEXTS: 'a list of strings',
  Kind.PRICE: 'a string or a number',
  Kind.FLAG: 'true or false',
}


_EMPTY_FOR_NONE = (Kind.TEXT, Kind.LABEL)


@dataclasses.dataclass(frozen=True)
class Column:
  """A column to read.

  Attributes:
    kind: of its values.
    keys: its names in the file; the first that is there and not null counts.
    required: whether a line without a value is an error.
  """

  kind: Kind
  keys: tuple[str, ...]
  required: bool = False


@dataclasses.dataclass(frozen=True)
class Rows:
  """Some consecutive rows of a file.

  Attributes:
    table: the wanted columns; ids are dictionaries. Optional values may be
      null; texts and labels are '' then.
    where: how messages call the file.
    block: the lines they come from.
  """

  table: pa.Table
  where: str
  block: Block

  def fail(self, row: int, problem: str) -> None:
    """Raises a UserError that names the line of a row of `table`."""
    for index, (line, _) in enumerate(self.block.lines()):
      if index == row:
        raise UserError(f'{self.where}, line {line}: {problem}')
    raise IndexError(row)


def read_rows(
  source: FileSource, name: str, columns: Mapping[str, Column]
) -> Iterator[Rows]:
  """Reads some keys of a file of JSON objects, one a line.

  Blank lines and other keys are skipped.

  Args:
    source: directory or archive.
    name: file within it, plain or gzip.
    columns: {name in the result: what to read}.
  Yields:
    The rows of a block, in the file's order; never an empty table.
  Raises:
    UserError: a line that is no JSON object, a missing key, a value of
      another kind, another encoding, a damaged or an empty file; the message
      names the line.
  """
  where = source.describe(name)
  num_rows, last_fit = 0, 0

  def parse(block: Block) -> Rows:
    nonlocal last_fit
    table, last_fit = _parse_fast(block, columns, last_fit)
    if table is None:
      table = _parse_lines(where, block, columns)
    return Rows(table, where, block)

  for rows in ahead.in_order(read_blocks(source, name), parse):
    num_rows += len(rows.table)
    if len(rows.table):
      yield rows
  if not num_rows:
    raise UserError(f'{where} is empty; it must hold one JSON object a line')


def parse_object(where: str, line: bytes, *, is_cut: bool = False) -> dict:
  """One line as a JSON object.

  Args:
    where: file and line, for messages.
    line: its bytes.
    is_cut: whether to say that the file may end too early.
  Raises:
    UserError: another encoding, no JSON, no object.
  """
  value = parse_value(where, line, is_cut=is_cut)
  if not isinstance(value, dict):
    raise UserError(
      f'{where}: expected a JSON object, got {_excerpt(value)}; mend or remove '
      'the line'
    )
  return value


def parse_value(where: str, line: bytes, *, is_cut: bool = False) -> object:
  """One line as any JSON value; see `parse_object`."""
  try:
    text = line.decode('utf-8')
  except UnicodeDecodeError as error:
    raise UserError(
      f'{where}: the text is not utf-8 (byte {line[error.start]:#04x}); save '
      'the file as utf-8'
    ) from error
  try:
    return json.loads(text)
  except (ValueError, RecursionError) as error:
    mend = 'mend or remove the line'
    if is_cut:
      mend = 'the file seems to be cut here: get it again, or remove the line'
    raise UserError(
      f'{where} is no JSON ({error}): {text.strip()[:60]!r}; {mend}'
    ) from error


def convert(where: str, column: Column, record: Mapping) -> object:
  """The value of a column in one object, None where there is none.

  Raises:
    UserError: a required value is missing, or one is of another kind.
  """
  key = next((k for k in column.keys if record.get(k) is not None), None)
  if key is None:
    if column.required:
      given = next((k for k in column.keys if k in record), None)
      names = ' or '.join(repr(k) for k in column.keys)
      found = ', '.join(map(str, record)) or 'none'
      what = (
        f'{given} is null'
        if given
        else f'key {names} is missing; found {found[:200]}'
      )
      raise UserError(f'{where}: {what}; mend or remove the line')
    return '' if column.kind in _EMPTY_FOR_NONE else None
  value = _CONVERSIONS[column.kind](record[key])
  if value is None:
    raise UserError(
      f'{where}: {key} must be {_EXPECTED[column.kind]}, got '
      f'{_excerpt(record[key])}; mend or remove the line'
    )
  return value


def storable(text: str) -> str:
  """The text with `?` for half surrogates, which no table can hold."""
  return text.encode('utf-8', 'replace').decode('utf-8')


def has_empty(values: pa.Array) -> bool:
  """Whether a string is empty or white space."""
  return bool(pc.any(pc.equal(pc.utf8_trim_whitespace(values), '')).as_py())


def _parse_lines(where, block: Block, columns) -> pa.Table:
  """A block line by line; defines what a line means."""
  values: dict[str, list] = {name: [] for name in columns}
  last = block.first_line + block.data.count(b'\n') - 1
  for number, line in block.lines():
    here = f'{where}, line {number}'
    is_cut = block.is_unended and number == last
    record = parse_object(here, line, is_cut=is_cut)
    for name, column in columns.items():
      value = convert(here, column, record)
      if column.kind is Kind.PRICE and value is not None:
        value = str(value)
      values[name].append(value)
  arrays = {
    name: pa.array(values[name], _ARROW_TYPES[column.kind][0])
    for name, column in columns.items()
  }
  for name, column in columns.items():
    if column.kind is Kind.ID:
      arrays[name] = arrays[name].dictionary_encode()
  return pa.table(arrays)


def _parse_fast(block: Block, columns, variant: int):
  """(the block by Arrow or None, which types did fit)."""
  num_rows = num_lines_within(block.data, '{', '}')
  if num_rows is not None:
    variants = range(max(len(_ARROW_TYPES[c.kind]) for c in columns.values()))
    for index in sorted(variants, key=lambda index: index != variant):
      table = _parse_by_arrow(block.data, num_rows, columns, index)
      if table is not None:
        return table, index
  return None, variant


def num_lines_within(data: bytes, opening: str, closing: str) -> int | None:
  """How many lines there are, if each begins and ends with these characters.

  For `{` and `}`, together with as many rows as lines, this leaves only whole
  objects, one a line: behind a `}` no object goes on with `{`. Arrow itself
  would take two objects on a line or one over several, and dies of a `null` at
  the start.
  """
  if not data.startswith(opening.encode()):
    return None
  characters = np.frombuffer(data, np.uint8)
  ends = np.flatnonzero(characters == ord('\n'))
  last = characters[ends - 1]
  before_return = characters[ends - 2]
  is_closed = last == ord(closing)
  is_closed |= (last == ord('\r')) & (before_return == ord(closing))
  is_opened = characters[ends[:-1] + 1] == ord(opening)
  return len(ends) if is_closed.all() and is_opened.all() else None


def _parse_by_arrow(
  data: bytes, num_rows: int, columns, variant: int
) -> pa.Table | None:
  schema = pa.schema(
    [
      (key, (_ARROW_TYPES[column.kind] * 2)[variant])
      for column in columns.values()
      for key in column.keys
    ]
  )
  try:
    # Arrow looks at the encoding of the wanted values alone.
    if not data.isascii():
      data.decode('utf-8')
    table = pa.json.read_json(
      pa.BufferReader(data),
      # One chunk: larger than the data, or Arrow splits objects.
      read_options=pa.json.ReadOptions(block_size=len(data) + 1),
      parse_options=pa.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior='ignore'
      ),
    )
  except (pa.ArrowException, UnicodeDecodeError):
    return None
  if len(table) != num_rows:
    return None
  found = {}
  for name, column in columns.items():
    values = _first_value(table, column)
    if column.required and values.null_count:
      return None
    if column.kind is Kind.ID:
      values = values.combine_chunks().dictionary_encode()
      if has_empty(values.dictionary):
        return None
    found[name] = (
      pc.fill_null(values, '') if column.kind in _EMPTY_FOR_NONE else values
    )
  return pa.table(found)


def _first_value(table: pa.Table, column: Column) -> pa.ChunkedArray:
  values = table[column.keys[0]]
  for key in column.keys[1:]:
    if not values.null_count:
      break
    values = pc.coalesce(values, table[key])
  return values


def _id(value: object) -> str | None:
  if isinstance(value, bool) or not isinstance(value, (int, str)):
    return None
  text = storable(str(value))
  return text if text.strip() else None


def _number(value: object) -> float | None:
  if isinstance(value, bool) or not isinstance(value, (int, float)):
    return None
  try:
    return float(value)
  except OverflowError:
    return math.inf


def _integer(value: object) -> int | None:
  number = _number(value)
  if number is None or not abs(number) < 2.0**63 or number != int(number):
    return None
  return int(value)


def _text(value: object) -> str | None:
  return storable(value) if isinstance(value, str) else None


def _label(value: object) -> str | None:
  if isinstance(value, bool) or not isinstance(value, (int, str)):
    return None
  return storable(str(value))


def _texts(value: object, depth: int = 0) -> list[str] | None:
  if isinstance(value, str):
    return [storable(value)]
  # Old releases nest once: [[category, ...], ...].
  if not isinstance(value, list) or depth > 1:
    return None
  texts = []
  for part in value:
    part = [''] if part is None else _texts(part, depth + 1)
    if part is None:
      return None
    texts += part
  return texts


def _price(value: object) -> str | float | None:
  return storable(value) if isinstance(value, str) else _number(value)


_CONVERSIONS = {
  Kind.ID: _id,
  Kind.NUMBER: _number,
  Kind.INTEGER: _integer,
  Kind.TEXT: _text,
  Kind.LABEL: _label,
  Kind.TEXTS: _texts,
  Kind.PRICE: _price,
  Kind.FLAG: lambda value: value if isinstance(value, bool) else None,
}


def _excerpt(value: object) -> str:
  text = repr(value)
  return text if len(text) <= 60 else f'{text[:60]}...'
