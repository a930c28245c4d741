"""Columns of delimited text files, with errors that name file and line.

Arrow parses in parallel and fails without a line number. Then the file is read
once more, row by row, until the first row that Arrow could not take: the
common case stays fast and the message stays exact.
"""

from __future__ import annotations

import csv
import dataclasses
import difflib
import itertools
import re
from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa
import pyarrow.csv

from p4lm.data import progress
from p4lm.data.archives import FileSource
from p4lm.data.byte_blocks import UTF8_BOM, check_not_utf16
from p4lm.errors import UserError

_BLOCK_BYTES = 4 << 20
_INTEGER = re.compile(r'-?[0-9]{1,18}')
_NUMBER = re.compile(
  r'[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf|infinity)',
  re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class RowFormat:
  """How the rows of a file are written.

  Attributes:
    delimiter: one character.
    encoding: of the text.
    header: names of all columns when the file has no header line; '' for a
      column to skip.
    quoted: whether values may be quoted (and then hold delimiters and ends of
      line).
  """

  delimiter: str = ','
  encoding: str = 'utf-8'
  header: tuple[str, ...] | None = None
  quoted: bool = True


def read_columns(
  source: FileSource,
  name: str,
  columns: Mapping[str, pa.DataType],
  row_format: RowFormat = RowFormat(),
  *,
  may_be_empty: bool = False,
) -> pa.Table:
  """Reads some columns of a delimited file into Arrow.

  Columns are found by name; case and underscores do not matter (`userId`,
  `user_id` and `USERID` are one), other columns are skipped.

  Args:
    source: directory or archive.
    name: file within it.
    columns: {name: type} to read; ID_TYPE for ids.
    row_format: delimiter, encoding, header.
    may_be_empty: accept a file with a header and no rows.
  Returns:
    Table with `columns` in that order.
  Raises:
    UserError: a missing column, a row that does not parse, a wrong encoding,
      an empty file; names the file, and the line where there is one.
  """
  header = row_format.header or _read_header(source, name, row_format)
  found = _match(source.describe(name), columns, header)
  unique = [f'{i}' for i in range(len(header))]
  wanted = {column: unique[found[column]] for column in columns}
  try:
    what, size = f'reading {name}', source.size(name)
    with (
      source.open(name) as opened,
      progress.watched(opened, what, size) as file,
    ):
      table = pa.csv.read_csv(
        file,
        read_options=pa.csv.ReadOptions(
          column_names=unique,
          skip_rows=0 if row_format.header else 1,
          block_size=_BLOCK_BYTES,
          encoding=row_format.encoding,
        ),
        parse_options=pa.csv.ParseOptions(
          delimiter=row_format.delimiter,
          quote_char='"' if row_format.quoted else False,
          newlines_in_values=row_format.quoted and _has_text(columns),
        ),
        convert_options=pa.csv.ConvertOptions(
          include_columns=list(wanted.values()),
          column_types={wanted[c]: t for c, t in columns.items()},
          null_values=[],
          strings_can_be_null=False,
        ),
      )
  except (pa.ArrowInvalid, pa.ArrowKeyError, UnicodeError) as error:
    if 'Empty CSV' in str(error) and may_be_empty:
      return pa.table({c: pa.array([], t) for c, t in columns.items()})
    _explain(source, name, columns, row_format, str(error))
  if not len(table) and not may_be_empty:
    raise UserError(f'{source.describe(name)} has a header but no rows')
  return table.rename_columns(list(columns))


def find_row(
  source: FileSource,
  name: str,
  columns: Mapping[str, pa.DataType],
  row_format: RowFormat,
  is_wanted: Callable[[dict[str, str]], bool],
) -> tuple[int, dict[str, str]] | None:
  """Line number and values of the first row that `is_wanted` accepts.

  Slow (one Python object a value): for messages only.
  """
  header = row_format.header or _read_header(source, name, row_format)
  found = _match(source.describe(name), columns, header)
  for line, values in _rows(source, name, row_format):
    row = {c: values[i] for c, i in found.items() if i < len(values)}
    if len(row) == len(found) and is_wanted(row):
      return line, row
  return None


def decoded_lines(
  source: FileSource, name: str, encoding: str = 'utf-8'
) -> Iterator[str]:
  """The lines of a text file, a byte order mark removed.

  Raises:
    UserError: bytes of another encoding; names the line.
  """
  with source.open(name) as file:
    for number, line in enumerate(file, 1):
      if number == 1:
        check_not_utf16(source.describe(name), line)
        line = line.removeprefix(UTF8_BOM)
      try:
        yield line.decode(encoding)
      except UnicodeDecodeError as error:
        raise UserError(
          f'{source.describe(name)}, line {number}: the text is not '
          f'{encoding} (byte {error.object[error.start]:#04x}); save the file '
          f'as {encoding}'
        ) from error


def _has_text(columns: Mapping[str, pa.DataType]) -> bool:
  return any(pa.types.is_string(t) for t in columns.values())


def _read_header(source, name, row_format) -> tuple[str, ...]:
  with source.open(name) as file:
    start = file.read(1 << 16)
  check_not_utf16(source.describe(name), start)
  if not start.removeprefix(UTF8_BOM).strip():
    raise UserError(f'{source.describe(name)} is empty')
  first = start.removeprefix(UTF8_BOM).splitlines()[0]
  text = first.decode(row_format.encoding, errors='replace')
  return tuple(next(csv.reader([text], delimiter=row_format.delimiter)))


def _normalised(name: str) -> str:
  return name.strip().lower().replace('_', '')


def _match(where, columns, header) -> dict[str, int]:
  """{column: position in the header}, first match wins."""
  positions = {}
  for index, name in reversed(list(enumerate(header))):
    positions[_normalised(name)] = index
  found = {}
  for column in columns:
    index = positions.get(_normalised(column))
    if index is None:
      near = difflib.get_close_matches(column, header, n=1)
      hint = f' (is {near[0]!r} meant?)' if near else ''
      raise UserError(
        f'{where}: column {column!r} is missing; found '
        f'{", ".join(header)}{hint}. The first line must name the columns '
        f'{", ".join(columns)}'
      )
    found[column] = index
  return found


def _rows(source, name, row_format) -> Iterator[tuple[int, list[str]]]:
  """(line number of the row's end, values), the header left out."""
  lines = decoded_lines(source, name, row_format.encoding)
  quoting = csv.QUOTE_MINIMAL if row_format.quoted else csv.QUOTE_NONE
  reader = csv.reader(lines, delimiter=row_format.delimiter, quoting=quoting)
  rows = itertools.islice(reader, 0 if row_format.header else 1, None)
  for values in rows:
    if values:
      yield reader.line_num, values


def _explain(source, name, columns, row_format, message: str) -> None:
  """Raises a UserError for the first row that does not parse."""
  where = source.describe(name)
  if 'Empty CSV' in message:
    with source.open(name) as file:
      empty = not file.read(4).removeprefix(UTF8_BOM).strip()
    what = 'is empty' if empty else 'has a header but no rows'
    raise UserError(f'{where} {what}')
  header = row_format.header or _read_header(source, name, row_format)
  found = _match(where, columns, header)
  for line, values in _rows(source, name, row_format):
    if len(values) != len(header):
      raise UserError(
        f'{where}, line {line}: {len(values)} values where the header has '
        f'{len(header)}; the row is {row_format.delimiter.join(values)[:80]!r}'
      )
    for column, index in found.items():
      wanted = _unparsed(columns[column], values[index])
      if wanted:
        raise UserError(
          f'{where}, line {line}: {column} must be {wanted}, '
          f'got {values[index][:40]!r}'
        )
  raise UserError(f'{where}: {message.splitlines()[0]}')


def _unparsed(type_: pa.DataType, value: str) -> str | None:
  """What `value` should have been, or None when Arrow can parse it."""
  if pa.types.is_integer(type_) and not _INTEGER.fullmatch(value.strip()):
    return 'a whole number'
  if pa.types.is_floating(type_) and not _NUMBER.fullmatch(value.strip()):
    return 'a number'
  return None
