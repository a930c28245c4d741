"""The types that Arrow reads REGEN's files with, learnt from their values.

Only keys that a file has are in the schema: what Arrow takes for a row grows
with the columns, and the keys that might be there are many.
"""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence

import pyarrow as pa

from p4lm.data.json_rows import Column, Kind
from p4lm.data.regen_format import (
  CLOCKS,
  COLUMNS,
  DATE,
  HELD_OUT,
  HISTORIES,
  PRODUCT,
  USER,
)

_STRING, _STRINGS = pa.string(), pa.list_(pa.string())
# {what Arrow says of values: the type to read them as}, of what is the same to
# `regen_lines`; the first is that of a column without values.
TYPES = {
  Kind.ID: {_STRING: _STRING, pa.int64(): pa.int64()},
  Kind.NUMBER: {pa.int64(): pa.float64(), pa.float64(): pa.float64()},
  Kind.INTEGER: {pa.int64(): pa.int64()},
  Kind.TEXT: {_STRING: _STRING},
  Kind.TEXTS: {
    _STRING: _STRING,
    _STRINGS: _STRINGS,
    pa.list_(pa.null()): _STRINGS,
  },
  Kind.PRICE: {
    _STRING: _STRING,
    pa.int64(): pa.float64(),
    pa.float64(): pa.float64(),
  },
}

# Where ids are keys every block has others: the schema would grow without end.
_MAX_TYPES = 1000


class Unfit(Exception):
  """Lines that Arrow cannot read as Python would."""


@dataclasses.dataclass(frozen=True)
class Level:
  """What the keys of an object may have for values.

  Attributes:
    kinds: {key: kinds of what it may be}.
    objects: {key: level of the object, or of the objects in a list}.
  """

  kinds: Mapping[str, Sequence[Kind]]
  objects: Mapping[str, Level]


def user_level(narratives: Sequence[str]) -> Level:
  """What a line may have for values."""
  texts = [Column(Kind.TEXT, (key,)) for key in narratives]
  times = [Column(Kind.INTEGER, (key,)) for key in CLOCKS]
  kinds = _kinds([USER, *COLUMNS.values(), *times, DATE, *texts])
  event = Level(kinds, {PRODUCT: Level(kinds, {})})
  return Level(
    _kinds([USER, *texts]), dict.fromkeys([*HISTORIES, HELD_OUT], event)
  )


def _kinds(columns: Iterable[Column]) -> dict[str, list[Kind]]:
  kinds: dict[str, list[Kind]] = collections.defaultdict(list)
  for column in columns:
    for key in column.keys:
      kinds[key].append(column.kind)
  return dict(kinds)


def learn(data: bytes, known: pa.Schema, level: Level) -> pa.Schema:
  """The types that were known and those in some lines.

  Args:
    data: one JSON object a line.
    known: types that other lines had.
    level: what the objects may have for values.
  Raises:
    Unfit: the lines have other types, or such as were known already.
  """
  try:
    values = [json.loads(line) for line in data.split(b'\n')[:-1]]
    found = pa.schema(list(pa.infer_type(values)))
  except (ValueError, RecursionError, pa.ArrowException) as error:
    raise Unfit from error
  try:
    found = pa.unify_schemas([known, found], promote_options='permissive')
  except pa.ArrowException:
    pass  # A key has another type from here on.
  schema = pa.schema(_settled_fields(found, level))
  if schema == known or _num_types(schema) > _MAX_TYPES:
    raise Unfit
  return schema


def _num_types(schema: pa.Schema) -> int:
  types, number = list(schema.types), 0
  while types:
    type_ = types.pop()
    types += [type_.field(place).type for place in range(type_.num_fields)]
    number += 1
  return number


def _settled_fields(fields: Iterable[pa.Field], level: Level) -> list[pa.Field]:
  """The fields with the types to read them as."""
  settled = []
  for field in fields:
    type_ = field.type
    if not pa.types.is_null(type_):
      for kind in level.kinds.get(field.name, ()):
        if type_ not in TYPES[kind]:
          raise Unfit
        type_ = TYPES[kind][type_]
      if field.name in level.objects:
        type_ = _settled_object(type_, level.objects[field.name])
    settled.append(pa.field(field.name, type_))
  return settled


def _settled_object(type_: pa.DataType, level: Level) -> pa.DataType:
  if pa.types.is_list(type_):
    return pa.list_(_settled_object(type_.value_type, level))
  if pa.types.is_struct(type_):
    return pa.struct(_settled_fields(type_, level))
  return type_
