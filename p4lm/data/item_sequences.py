"""Next-item events with their splits: a history of items and what came next.

Some preparations of Amazon data give no ratings and times but, in
`train.jsonl`, `valid.jsonl` and `test.jsonl`, one event a line: `user_id`,
`history` (item ids, oldest first) and `target`; `items.jsonl` describes the
items by `item_id`. The splits are those of the files.

Each of these rules has its count in the result: items without a title leave the
histories; an event is dropped when its target is such an item, when its history
is empty, or when it was read before (in an earlier file too).
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import PurePosixPath

import pyarrow as pa

from p4lm.data import amazon_items
from p4lm.data.amazon_release import FORMATS
from p4lm.data.archives import FileSource, open_source
from p4lm.data.byte_blocks import read_blocks
from p4lm.data.json_rows import Column, Kind, convert, parse_object
from p4lm.data.rating_data import count
from p4lm.errors import UserError

_SPLITS = {
  'train': 'train',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
}
_USER = Column(Kind.ID, ('user_id',), required=True)
_TARGET = Column(Kind.ID, ('target',), required=True)
_HISTORY = 'history'
_SCHEMA = pa.schema(
  [
    ('user_id', pa.string()),
    ('history', pa.list_(pa.string())),
    ('target', pa.string()),
    ('split', pa.string()),
  ]
)


@dataclasses.dataclass(frozen=True)
class SequenceData:
  """What was read.

  Attributes:
    events: user_id, history (item ids, oldest first), target, split; in the
      order of train, validation and test and of the files.
    items: the `items` schema with brand and price.
    dropped: {reason: events, items of histories or items}.
  """

  events: pa.Table
  items: pa.Table
  dropped: dict[str, int]


def read_sequences(data_dir: str | os.PathLike) -> SequenceData:
  """Reads a directory (or zip) of such files; see the module for the rules.

  Raises:
    UserError: a file is missing, or bad input: names file and line.
  """
  source = open_source(data_dir)
  files = {
    PurePosixPath(name).name.split('.')[0]: name
    for name in source.names()
    if name.lower().endswith(('.jsonl', '.jsonl.gz'))
  }
  found = [
    (split, files[stem]) for stem, split in _SPLITS.items() if stem in files
  ]
  if not found or 'items' not in files:
    raise UserError(
      f'{source.describe()} must hold items.jsonl and train.jsonl, valid.jsonl '
      f'or test.jsonl; found {", ".join(files.values()) or "no such files"}'
    )
  dropped: dict[str, int] = {}
  events = [
    (user, history, target, split)
    for split, name in found
    for user, history, target in _read_events(source, name)
  ]
  named = {
    id_ for _, history, target, _ in events for id_ in (*history, target)
  }
  items, _ = amazon_items.read_items(
    source, [files['items']], FORMATS['amazon-2018'].items, named, dropped
  )
  kept = list(_kept(events, set(items['item_id'].to_pylist()), dropped))
  if not kept:
    raise UserError(f'{source.describe()}: no event is of items with titles')
  columns = zip(_SCHEMA.names, zip(*kept))
  return SequenceData(pa.table(dict(columns), schema=_SCHEMA), items, dropped)


def _read_events(
  source: FileSource, name: str
) -> Iterator[tuple[str, tuple[str, ...], str]]:
  """(user, history, target) of each line."""
  is_empty = True
  for block in read_blocks(source, name):
    for number, line in block.lines():
      where, is_empty = f'{source.describe(name)}, line {number}', False
      record = parse_object(where, line)
      entries = record.get(_HISTORY)
      if not isinstance(entries, list):
        raise UserError(
          f'{where}: {_HISTORY} must be a list of item ids, got '
          f'{entries!r:.60}; mend or remove the line'
        )
      item = Column(Kind.ID, (_HISTORY,), required=True)
      history = tuple(convert(where, item, {_HISTORY: id_}) for id_ in entries)
      yield (
        convert(where, _USER, record),
        history,
        convert(where, _TARGET, record),
      )
  if is_empty:
    raise UserError(f'{source.describe(name)} is empty')


def _kept(events, titled: set[str], dropped) -> Iterator[tuple]:
  seen = set()
  for user, history, target, split in events:
    if (user, history, target) in seen:
      count(dropped, 'repeated event')
      continue
    seen.add((user, history, target))
    if target not in titled:
      count(dropped, 'event whose target has no title')
      continue
    known = [id_ for id_ in history if id_ in titled]
    count(
      dropped, 'item of a history without a title', len(history) - len(known)
    )
    if known:
      yield user, known, target, split
    else:
      count(dropped, 'event without a history')
