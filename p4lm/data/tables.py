"""The Parquet tables of a data directory: schemas, reading, writing.

`manifest.json` is written last and names every file with its hash, so a
directory that has it is complete. Ids are strings everywhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from p4lm.data import progress
from p4lm.data.atomic import atomic_directory
from p4lm.errors import UserError

MANIFEST = 'manifest.json'
SPLITS = ('train', 'validation', 'test')

# A dictionary of ids instead of a string a row: 4 bytes each.
ID_TYPE = pa.dictionary(pa.int32(), pa.string())
_STRINGS = pa.list_(pa.string())
_HASH_BYTES = 1 << 20


def _schema(**columns: pa.DataType) -> pa.Schema:
  return pa.schema(list(columns.items()))


_PAIR = {'user_id': pa.string(), 'item_id': pa.string()}

SCHEMAS: Mapping[str, pa.Schema] = {
  'items': _schema(
    item_id=pa.string(),
    title=pa.string(),
    year=pa.int32(),
    genres=_STRINGS,
    tags=_STRINGS,
    keywords=_STRINGS,
    plot=pa.string(),
  ),
  'ratings': _schema(
    **_PAIR, rating=pa.float32(), timestamp=pa.int64(), split=pa.string()
  ),
  'users': _schema(
    user_id=pa.string(), preferences=_STRINGS, num_train_ratings=pa.int32()
  ),
  'texts': _schema(
    kind=pa.string(), **_PAIR, text=pa.string(), split=pa.string()
  ),
  'pairs': _schema(
    kind=pa.string(),
    **_PAIR,
    chosen=pa.string(),
    rejected=pa.string(),
    split=pa.string(),
  ),
  # Pairs between which the rater saw no difference; only where there are any.
  'ties': _schema(
    kind=pa.string(),
    **_PAIR,
    first=pa.string(),
    second=pa.string(),
    split=pa.string(),
  ),
  'entailment': _schema(
    item_id=pa.string(),
    premise=pa.string(),
    hypothesis=pa.string(),
    label=pa.int32(),
    split=pa.string(),
  ),
  'relevance': _schema(
    **_PAIR, text=pa.string(), target=pa.float32(), split=pa.string()
  ),
  'evaluation_pairs': _schema(
    **_PAIR, preferences=_STRINGS, writer_text=pa.string()
  ),
  'rl_prompts': _schema(**_PAIR),
}


@dataclasses.dataclass(frozen=True)
class EncodedIds:
  """A column of ids as positions in a list.

  Attributes:
    codes: int32 [M], position of each row's id in `ids`.
    ids: the distinct ids, in order of first appearance.
  """

  codes: np.ndarray
  ids: list[str]


def encode_ids(column: pa.ChunkedArray | pa.Array) -> EncodedIds:
  """Positions and distinct values of a string (or dictionary) column.

  >>> encode_ids(pa.array(['b', 'a', 'b'])).codes.tolist()
  [0, 1, 0]
  """
  if isinstance(column, pa.ChunkedArray):
    if not pa.types.is_dictionary(column.type):
      column = column.dictionary_encode()
    column = column.unify_dictionaries().combine_chunks()
    if isinstance(column, pa.ChunkedArray):
      empty = pa.array([], pa.dictionary(pa.int32(), pa.string()))
      column = column.chunk(0) if column.num_chunks else empty
  elif not pa.types.is_dictionary(column.type):
    column = column.dictionary_encode()
  codes = column.indices.to_numpy(zero_copy_only=False).astype(np.int32)
  return EncodedIds(codes, column.dictionary.to_pylist())


def decode_ids(codes: np.ndarray, ids: Sequence[str]) -> pa.DictionaryArray:
  """The inverse of `encode_ids`, kept as a dictionary column."""
  return pa.DictionaryArray.from_arrays(
    pa.array(codes, pa.int32()), pa.array(ids, pa.string())
  )


def read_table(
  data_dir: str | os.PathLike, name: str, columns: Sequence[str] | None = None
) -> pa.Table:
  """Reads the table `name` (a key of SCHEMAS), or some of its columns.

  Raises:
    UserError: no such table, an unreadable file, or a column that is missing
      or of another type.
  """
  schema, path = _schema_of(name), existing_file(data_dir, name)
  wanted = list(schema.names if columns is None else columns)
  try:
    found = pq.read_schema(path)
    for column in wanted:
      _check_column(path, schema, found, column)
    table = pq.read_table(path, columns=wanted)
  except (pa.ArrowInvalid, OSError) as error:
    raise UserError(
      f'{path} is no readable Parquet file ({first_line(error)}); '
      'run make_data again in a new OUTPUT_DIR'
    ) from error
  return table.cast(pa.schema([schema.field(column) for column in wanted]))


def drop_unused(encoded: EncodedIds) -> EncodedIds:
  """Drops the ids that no row has (a filter keeps the whole dictionary)."""
  counts = np.bincount(encoded.codes, minlength=len(encoded.ids))
  if counts.all():
    return encoded
  kept = np.flatnonzero(counts)
  position = np.cumsum(counts > 0, dtype=np.int32) - 1
  return EncodedIds(
    position[encoded.codes], [encoded.ids[code] for code in kept]
  )


def write_tables(
  data_dir: str | os.PathLike,
  tables: Mapping[str, pa.Table],
  manifest: Mapping[str, object],
) -> dict:
  """Writes tables and manifest into a new directory, all or nothing.

  Args:
    data_dir: directory to make; it may exist, but without other files.
    tables: {key of SCHEMAS: table with at least that schema's columns}.
    manifest: JSON values; hashes, sizes and row counts are added.
  Returns:
    The manifest as written.
  Raises:
    UserError: a table or column is unknown or missing, or the directory
      cannot be written or holds something else.
  """
  with atomic_directory(data_dir) as staging:
    save_tables(staging, tables)
    return save_manifest(staging, manifest)


def save_tables(
  directory: str | os.PathLike, tables: Mapping[str, pa.Table]
) -> None:
  """Writes one Parquet file a table into an existing directory."""
  for name, table in tables.items():
    schema, path = _schema_of(name), Path(directory) / f'{name}.parquet'
    for column in schema.names:
      if column not in table.column_names:
        raise UserError(
          f'table {name}: no column {column!r}; '
          f'it has {", ".join(table.column_names)}'
        )
    # Dictionary columns are written as they are: without the Arrow schema in
    # the file they come back as plain strings, which every reader expects.
    pq.write_table(
      _cast(name, table.select(schema.names), schema),
      path,
      compression='zstd',
      store_schema=False,
    )


def save_manifest(
  directory: str | os.PathLike, manifest: Mapping[str, object]
) -> dict:
  """Adds `files` (sha256 and bytes of each file) and writes manifest.json."""
  directory = Path(directory)
  files = {}
  for path in sorted(p for p in directory.rglob('*') if p.is_file()):
    name = path.relative_to(directory).as_posix()
    if name != MANIFEST:
      files[name] = {'sha256': hash_file(path), 'bytes': path.stat().st_size}
  complete = {**manifest, 'files': files}
  text = json.dumps(complete, indent=1, ensure_ascii=False, sort_keys=True)
  (directory / MANIFEST).write_text(text + '\n', encoding='utf-8')
  return complete


def read_manifest(data_dir: str | os.PathLike) -> dict:
  """Reads `manifest.json`; a directory without it is not complete.

  Raises:
    UserError: the directory or the file is missing or broken.
  """
  path = Path(data_dir) / MANIFEST
  try:
    manifest = json.loads(path.read_text(encoding='utf-8'))
  except OSError as error:
    raise UserError(
      f'{path}: {error.strerror}; DATA_DIR must be a directory that '
      'make_data finished'
    ) from error
  except ValueError as error:
    raise UserError(f'{path} is no JSON ({error})') from error
  if not isinstance(manifest, dict):
    raise UserError(f'{path} holds no JSON object')
  return manifest


def hash_file(path: str | os.PathLike) -> str:
  """sha256 of a file's bytes, in hexadecimal."""
  digest = hashlib.sha256()
  size = os.stat(path).st_size
  with (
    open(path, 'rb') as opened,
    progress.watched(opened, f'hashing {Path(path).name}', size) as file,
  ):
    while more := file.read(_HASH_BYTES):
      digest.update(more)
  return digest.hexdigest()


def _schema_of(name: str) -> pa.Schema:
  if name not in SCHEMAS:
    raise UserError(f'no table {name!r}; tables: {", ".join(SCHEMAS)}')
  return SCHEMAS[name]


def existing_file(data_dir: str | os.PathLike, name: str) -> Path:
  path = Path(data_dir) / f'{name}.parquet'
  if not path.is_file():
    raise UserError(
      f'{path} does not exist; DATA_DIR must be a directory that make_data '
      'wrote'
    )
  return path


def _check_column(path, schema, found, column: str) -> None:
  if column not in schema.names:
    raise UserError(
      f'{path}: no column {column!r} in this table; '
      f'it has {", ".join(schema.names)}'
    )
  if column not in found.names:
    raise UserError(
      f'{path}: column {column!r} is missing; found {", ".join(found.names)}'
    )


def _cast(name: str, table: pa.Table, schema: pa.Schema) -> pa.Table:
  fields = [
    pa.field(field.name, table[field.name].type)
    if pa.types.is_dictionary(table[field.name].type)
    else field
    for field in schema
  ]
  try:
    return table.cast(pa.schema(fields))
  except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
    raise UserError(f'table {name}: {first_line(error)}') from error


def first_line(error: Exception) -> str:
  return str(error).splitlines()[0] if str(error) else type(error).__name__
