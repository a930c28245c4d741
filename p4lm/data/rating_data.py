"""What every reader of ratings gives back, and its rules for repeated rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pyarrow as pa

from p4lm.data import tables
from p4lm.data.tables import EncodedIds


@dataclasses.dataclass(frozen=True)
class RatingData:
  """Ratings and the items that they are of.

  Attributes:
    ratings: user_id, item_id (dictionary columns), rating, timestamp; no
      (user, item) twice unless a reader was asked to keep repeats.
    items: the `items` schema, perhaps with further columns.
    dropped: {reason: rows}.
  """

  ratings: pa.Table
  items: pa.Table
  dropped: dict[str, int]


class GrowingIds:
  """A column of ids that comes in pieces.

  Pieces are merged as soon as they name more ids than the column so far: an
  id's text is kept a few times at most, not once a row.
  """

  _FEW = 1 << 20

  def __init__(self):
    self._pieces: list[pa.DictionaryArray] = []
    self._merged = self._pending = 0

  def add(self, column: pa.ChunkedArray) -> None:
    """Appends ids (a string or dictionary column without nulls)."""
    piece = column.combine_chunks()
    if not pa.types.is_dictionary(piece.type):
      piece = piece.dictionary_encode()
    self._pieces.append(piece)
    self._pending += len(piece.dictionary)
    if self._pending > max(self._merged, self._FEW):
      merged = pa.chunked_array(self._pieces).unify_dictionaries()
      self._pieces = [merged.combine_chunks()]
      self._merged, self._pending = len(self._pieces[0].dictionary), 0

  def encoded(self) -> EncodedIds:
    """All of them; ids in order of first appearance."""
    return tables.encode_ids(
      pa.chunked_array(self._pieces, pa.dictionary(pa.int32(), pa.string()))
    )


def count(dropped: dict[str, int], reason: str, number: int = 1) -> None:
  """Adds to a drop report; nothing is written down for no rows."""
  if number:
    dropped[reason] = dropped.get(reason, 0) + int(number)


def exact_repeats(
  users: EncodedIds,
  items: EncodedIds,
  ratings: np.ndarray,
  timestamps: np.ndarray,
) -> np.ndarray:
  """bool [M], True on rows equal to an earlier one in all four columns."""
  repeat = np.zeros(len(ratings), bool)
  rows, keys = _repeated_pairs(users, items)
  # lexsort is stable: equal rows stay in their order, the first one first.
  order = np.lexsort((timestamps[rows], ratings[rows], keys))
  rows, keys = rows[order], keys[order]
  is_same = keys[1:] == keys[:-1]
  for column in (timestamps, ratings):
    is_same &= column[rows[1:]] == column[rows[:-1]]
  repeat[rows[1:][is_same]] = True
  return repeat


def latest(
  users: EncodedIds, items: EncodedIds, timestamps: np.ndarray
) -> np.ndarray:
  """bool [M], False on all but the latest row of a (user, item).

  Among equal times the later row wins.
  """
  keep = np.ones(len(timestamps), bool)
  rows, keys = _repeated_pairs(users, items)
  order = np.lexsort((timestamps[rows], keys))
  is_last = np.append(keys[order][1:] != keys[order][:-1], True)
  keep[rows[order[~is_last[: len(rows)]]]] = False
  return keep


def table_of_latest(
  users: EncodedIds,
  items: EncodedIds,
  ratings: np.ndarray,
  timestamps: np.ndarray,
  *,
  among: np.ndarray,
  dropped: dict[str, int],
) -> pa.Table:
  """The latest rating of each (user, item) as a table, in the rows' order.

  Args:
    users, items, ratings, timestamps: columns [M].
    among: bool [M]; other rows are left out, and not counted.
    dropped: {reason: rows}, added to.
  """
  is_latest = latest(users, items, timestamps)
  older = (among & ~is_latest).sum()
  count(dropped, 'duplicate (user, item), an older rating', older)
  keep = among & is_latest
  if not keep.all():
    users, items = select(users, keep), select(items, keep)
    ratings, timestamps = ratings[keep], timestamps[keep]
  return rating_table(users, items, ratings, timestamps)


def without_repeats(
  users: EncodedIds,
  items: EncodedIds,
  ratings: np.ndarray,
  timestamps: np.ndarray,
  *,
  among: np.ndarray,
  noun: str,
  dropped: dict[str, int],
) -> np.ndarray:
  """bool [M], one row of each (user, item) among those of a mask.

  Rows equal in all four columns are one, that of the first; then the latest
  row is kept.

  Args:
    users, items, ratings, timestamps: columns [M].
    among: bool [M], the rows to look at; the others are False.
    noun: what the drop report calls a row.
    dropped: {reason: rows}, added to.
  """
  rows = np.flatnonzero(among)
  # Most often few or none: the rest is about these alone.
  again, _ = _repeated_pairs(select(users, rows), select(items, rows))
  rows = rows[again]
  keep = among.copy()
  keep[rows] = False
  repeats = exact_repeats(
    select(users, rows), select(items, rows), ratings[rows], timestamps[rows]
  )
  rows = rows[~repeats]
  is_latest = latest(select(users, rows), select(items, rows), timestamps[rows])
  same = 'same user, item, rating and time'
  count(dropped, f'repeated {noun} ({same})', repeats.sum())
  older = (~is_latest).sum()
  count(dropped, f'duplicate (user, item), an older {noun}', older)
  keep[rows[is_latest]] = True
  return keep


def by_user_and_time(users: np.ndarray, times: np.ndarray) -> np.ndarray:
  """int64 [M], rows by user and then time; equal ones stay in their order.

  Args:
    users: int [M], codes.
    times: int64 [M].
  """
  if not len(users):
    return np.zeros(0, np.int64)
  first = int(times.min())
  width = (int(times.max()) - first).bit_length()
  if width + int(users.max()).bit_length() > 63:
    return np.lexsort((times, users))
  # One integer a row: half the time of sorting by one and then by the other.
  return stable_order((users.astype(np.int64) << width) | (times - first))


def stable_order(keys: np.ndarray) -> np.ndarray:
  """int64 [M], rows by key; equal ones stay in their order.

  Args:
    keys: int64 [M].
  """
  width = len(keys).bit_length()
  if not len(keys):
    return np.zeros(0, np.int64)
  least = int(keys.min())
  if (int(keys.max()) - least).bit_length() + width > 63:
    return np.argsort(keys, kind='stable')
  # Sorting numbers is faster than sorting rows by them.
  packed = (keys.astype(np.int64) - least << width) | np.arange(len(keys))
  packed.sort()
  return packed & ((1 << width) - 1)


def rating_table(
  users: EncodedIds,
  items: EncodedIds,
  ratings: np.ndarray,
  timestamps: np.ndarray,
) -> pa.Table:
  """The four columns as a table; ids without rows are left out."""
  users, items = tables.drop_unused(users), tables.drop_unused(items)
  return pa.table(
    {
      'user_id': tables.decode_ids(users.codes, users.ids),
      'item_id': tables.decode_ids(items.codes, items.ids),
      'rating': pa.array(ratings, pa.float32()),
      'timestamp': pa.array(timestamps, pa.int64()),
    }
  )


def select(encoded: EncodedIds, rows: np.ndarray) -> EncodedIds:
  """The ids of some rows (a mask or indices)."""
  return EncodedIds(encoded.codes[rows], encoded.ids)


def _repeated_pairs(
  users: EncodedIds, items: EncodedIds
) -> tuple[np.ndarray, np.ndarray]:
  """Rows whose (user, item) comes again, ascending, and a number of each."""
  keys = users.codes.astype(np.int64) * len(items.ids) + items.codes
  ordered = np.sort(keys)
  repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
  if not len(repeated):
    return np.zeros(0, np.int64), np.zeros(0, np.int64)
  position = np.searchsorted(repeated, keys).clip(max=len(repeated) - 1)
  rows = np.flatnonzero(repeated[position] == keys)
  return rows, keys[rows]
