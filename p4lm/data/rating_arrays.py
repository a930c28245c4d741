"""Ratings as arrays, read from the table part by part.

A fit's memory begins with these: 20 bytes a rating, and while they are read one
part of the file.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from p4lm.data.tables import (
  SCHEMAS,
  SPLITS,
  EncodedIds,
  drop_unused,
  encode_ids,
  existing_file,
  first_line,
)
from p4lm.errors import UserError

_READ_ROWS = 1 << 20


@dataclasses.dataclass(frozen=True)
class RatingArrays:
  """Ratings as arrays: no Python object a row, 20 bytes a rating.

  Attributes:
    users, items: the ids behind the codes.
    ratings: float32 [M].
    timestamps: int64 [M], seconds since 1970.
  """

  users: EncodedIds
  items: EncodedIds
  ratings: np.ndarray
  timestamps: np.ndarray


def read_ratings(
  data_dir: str | os.PathLike, splits: Sequence[str] = SPLITS
) -> RatingArrays:
  """Reads the ratings of some splits without a Python object a row.

  Codes of users and items cover the rows of the chosen splits alone; ids keep
  the order of the file.

  Args:
    data_dir: directory that `make_data` wrote.
    splits: some of 'train', 'validation', 'test'.
  Raises:
    UserError: the table is missing or broken, or a split is unknown.
  """
  unknown = sorted(set(splits) - set(SPLITS))
  if unknown:
    raise UserError(f'no split {unknown[0]!r}; splits: {", ".join(SPLITS)}')
  path = existing_file(data_dir, 'ratings')
  try:
    return _read_rating_arrays(path, splits)
  except (pa.ArrowInvalid, OSError, KeyError) as error:
    raise UserError(f'{path}: {first_line(error)}') from error
  finally:
    pa.default_memory_pool().release_unused()


def _read_rating_arrays(path: Path, splits: Sequence[str]) -> RatingArrays:
  """Part after part into arrays that are allocated once."""
  names = SCHEMAS['ratings'].names
  wanted = pa.array(splits, pa.string())
  ids = ['user_id', 'item_id']
  with pq.ParquetFile(path, read_dictionary=[*ids, 'split']) as file:
    missing = [name for name in names if name not in file.schema_arrow.names]
    if missing:
      raise KeyError(f'no column {missing[0]!r}')
    size, num_rows = file.metadata.num_rows, 0
    # Pages that no row is written into take no memory.
    columns = {
      'user_id': np.empty(size, np.int32),
      'item_id': np.empty(size, np.int32),
      'rating': np.empty(size, np.float32),
      'timestamp': np.empty(size, np.int64),
    }
    merged = {name: _MergedIds() for name in ids}
    for part in file.iter_batches(_READ_ROWS, columns=names):
      split = part['split']
      kept = pc.is_in(split.dictionary, wanted).take(split.indices)
      rows = slice(num_rows, num_rows + kept.true_count)
      for name, column in columns.items():
        values = part[name].filter(kept)
        column[rows] = (
          merged[name].codes(values) if name in ids else values.to_numpy()
        )
      num_rows = rows.stop
  found = {name: column[:num_rows] for name, column in columns.items()}
  return RatingArrays(
    *(
      drop_unused(EncodedIds(found[name], merged[name].ids.to_pylist()))
      for name in ids
    ),
    found['rating'],
    found['timestamp'],
  )


class _MergedIds:
  """Ids of columns that come in parts, in order of first appearance.

  Attributes:
    ids: those so far.
  """

  def __init__(self):
    self.ids = pa.array([], pa.string())
    self._last, self._places = self.ids, np.zeros(0, np.int32)

  def codes(self, part: pa.DictionaryArray) -> np.ndarray:
    """int32 [len(part)], places in `ids`, which grow by what is new."""
    if not part.dictionary.equals(self._last):
      known = pc.index_in(part.dictionary, self.ids)
      new = part.dictionary.filter(known.is_null())
      self.ids = pa.concat_arrays([self.ids, new])
      places = pc.index_in(part.dictionary, self.ids)
      self._last, self._places = part.dictionary, places.to_numpy()
    return self._places[part.indices.to_numpy()]


def from_table(table: pa.Table) -> RatingArrays:
  """The columns of a table of ratings as arrays; ids without rows go."""
  return RatingArrays(
    drop_unused(encode_ids(table['user_id'])),
    drop_unused(encode_ids(table['item_id'])),
    table['rating'].to_numpy().astype(np.float32, copy=False),
    table['timestamp'].to_numpy().astype(np.int64, copy=False),
  )
