"""Reads the events of REGEN's files; see `regen_format` for what these hold.

Arrow reads blocks of lines in threads ahead where every line fits its columns;
any other block is read line by line in Python. What is read does not depend on
how it was read.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from p4lm.data import ahead, regen_lines
from p4lm.data.archives import FileSource
from p4lm.data.byte_blocks import Block, read_blocks
from p4lm.data.regen_arrow import ArrowReader
from p4lm.data.regen_format import Events
from p4lm.errors import UserError

_DOCUMENT_BYTES = 1 << 30


def read_events(
  source: FileSource, name: str, narratives: Sequence[str]
) -> Iterator[Events]:
  """The events of a file in its order; HTML entities of reviews are decoded.

  Args:
    source: directory or archive.
    name: file within it, plain or gzip.
    narratives: keys whose strings are narratives.
  Raises:
    UserError: bad input; names the file and the line (of a document: the
      file).
  """
  where = source.describe(name)
  reader = ArrowReader(narratives)

  def read(block: Block | _Document) -> Events:
    if isinstance(block, _Document):
      events = regen_lines.read_document(where, block.data, narratives)
    else:
      events = reader.read(block.data)
    if events is None:
      events = regen_lines.read_lines(where, block, narratives)
    return dataclasses.replace(events, reviews=_unescaped(events.reviews))

  is_empty = True
  for events in ahead.in_order(_blocks(source, name), read):
    is_empty = is_empty and not len(events.ratings)
    yield events
  if is_empty:
    raise UserError(
      f'{where} holds no events; each line must be JSON like '
      '{"user_id": "A", "history": [{"asin": "B", "rating": 5, ...}]}'
    )


@dataclasses.dataclass(frozen=True)
class _Document:
  """A file that is one JSON value over many lines."""

  data: bytes


def _blocks(source: FileSource, name: str) -> Iterator[Block | _Document]:
  blocks = read_blocks(source, name)
  first = next((block for block in blocks if not block.data.isspace()), None)
  if first is None:
    return
  start = first.data.lstrip().partition(b'\n')[0].strip()
  if start in (b'[', b'{'):
    # Nobody breaks a line there but who indents.
    yield _document(source.describe(name), first, blocks)
  else:
    yield first
    yield from blocks


def _document(where: str, first: Block, more: Iterator[Block]) -> _Document:
  data = bytearray(b'\n' * (first.first_line - 1) + first.data)
  for block in more:
    data += block.data
    if len(data) > _DOCUMENT_BYTES:
      raise UserError(
        f'{where} is one JSON document of more than {_DOCUMENT_BYTES >> 30} '
        'GiB; save it as JSON lines, one user a line'
      )
  return _Document(bytes(data))


def _unescaped(texts: pa.Table) -> pa.Table:
  for index, name in enumerate(texts.column_names):
    column = texts[name].combine_chunks()
    has_entity = pc.match_substring(column, '&')
    rows = np.flatnonzero(has_entity.to_numpy(zero_copy_only=False))
    if len(rows):
      found = [html.unescape(text) for text in column.take(rows).to_pylist()]
      column = pc.replace_with_mask(column, has_entity, pa.array(found))
      texts = texts.set_column(index, name, column)
  return texts
