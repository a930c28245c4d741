"""Interactions as compressed rows, cut into batches of few static shapes.

The rows of a ratings matrix have very different lengths, and XLA compiles one
program a shape. So rows of similar length share a padded length (a bucket), a
bucket is cut into batches of a fixed number of rows, and lengths are chosen so
that padding and compiling together cost least:

  counts  3 1 7 2 12        buckets  4: rows 0 1 3      (padded 3 1 2 -> 4)
                                    12: rows 2 4        (padded 7 12 -> 12)

Rows without interactions are in no bucket. Rows longer than `LONGEST` are read
in segments of that length by a loop inside the program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from p4lm.errors import UserError

LONGEST = 2048
# One more compiled shape takes about 0.25 s; a padded entry takes about 0.3 us
# an epoch at width 128 and less at smaller widths. Over some 15 epochs:
_SHAPE_COST_AT_128 = 60_000
# Floats of the largest array of a batch: 4 MiB keeps it in cache on a CPU,
# where it doubles the speed of the matrix products.
_BATCH_FLOATS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Interactions:
  """Observed entries of a users x items matrix, one a position.

  Attributes:
    user_rows: int32 [M], index of the user in [0, num_users).
    item_rows: int32 [M], index of the item in [0, num_items).
    values: float [M], ratings, or strengths in the implicit mode.
    num_users: U.
    num_items: I.
    weights: float [M] confidences c_ui, or None for the configuration's rule.
  """

  user_rows: np.ndarray
  item_rows: np.ndarray
  values: np.ndarray
  num_users: int
  num_items: int
  weights: np.ndarray | None = None

  def __post_init__(self):
    size = len(self.values)
    for name in ('user_rows', 'item_rows', 'weights'):
      array = getattr(self, name)
      if array is not None and np.shape(array) != (size,):
        raise UserError(
          f'{name} has shape {np.shape(array)} but there are {size} values; '
          'give one entry per interaction'
        )
    _check_rows('user_rows', self.user_rows, self.num_users)
    _check_rows('item_rows', self.item_rows, self.num_items)
    check_finite('values', self.values)
    if self.weights is not None:
      check_finite('weights', self.weights, at_least_zero=True)


@dataclasses.dataclass(frozen=True)
class CompressedRows:
  """One side of the interactions, sorted by row (a CSR matrix).

  Attributes:
    starts: int32 [R], position of each row's first entry.
    counts: int32 [R], entries of each row.
    columns: int32 [M], column of each entry.
    order: int64 [M], position of each entry in the unsorted input.
    num_columns: number of columns.
  """

  starts: np.ndarray
  counts: np.ndarray
  columns: np.ndarray
  order: np.ndarray
  num_columns: int

  @property
  def num_rows(self) -> int:
    return len(self.counts)


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Rows padded to one length, cut into equal batches.

  Attributes:
    length: padded number of entries a row (a segment's, if `segmented`).
    rows: int32 [K, R], row indices of K batches; padding holds the number of
      rows of the side, which no row has.
    segmented: whether rows may be longer than `length`.
  """

  length: int
  rows: np.ndarray
  segmented: bool = False


def compress(rows, columns, num_rows: int, num_columns: int) -> CompressedRows:
  """Sorts entries by row, keeping their order within a row.

  Args:
    rows: int [M], row of each entry.
    columns: int [M], column of each entry.
    num_rows: R.
    num_columns: number of columns.
  Returns:
    The compressed side.
  Raises:
    UserError: there are 2^31 entries or more, too many for 32-bit positions.
  """
  if len(rows) >= 2**31:
    raise UserError(
      f'{len(rows)} interactions do not fit 32-bit positions; '
      'split them over several processes'
    )
  order = np.argsort(rows, kind='stable')
  counts = np.bincount(rows, minlength=num_rows).astype(np.int32)
  starts = np.zeros(num_rows, np.int32)
  np.cumsum(counts[:-1], out=starts[1:])
  return CompressedRows(
    starts, counts, np.asarray(columns, np.int32)[order], order, num_columns
  )


def plan_buckets(
  counts, width: int, *, num_devices: int = 1, longest: int = LONGEST
) -> list[Bucket]:
  """Groups rows by padded length so that padding plus compiling costs least.

  Candidate lengths are 8, 12, 16, 24, 32, 48, ... up to `longest`; dynamic
  programming picks the subset with the smallest sum of padded entries plus a
  fixed price for each compiled shape.

  Args:
    counts: int [R], entries of each row.
    width: E; together with the length it sets the rows of a batch.
    num_devices: the rows of a batch are a multiple of it.
    longest: rows with more entries go to one segmented bucket.
  Returns:
    Buckets by rising length; each row with entries is in exactly one.
  """
  counts = np.asarray(counts)
  within = counts[(counts > 0) & (counts <= longest)]
  lengths = _choose_lengths(within, longest, _SHAPE_COST_AT_128 * 128 // width)
  buckets, shorter = [], 0
  for length in lengths:
    rows = np.flatnonzero((counts > shorter) & (counts <= length))
    buckets.append(_cut(rows, length, width, len(counts), num_devices, False))
    shorter = length
  rows = np.flatnonzero(counts > longest)
  if len(rows):
    buckets.append(_cut(rows, longest, width, len(counts), num_devices, True))
  return buckets


def solves_dual(length: int, width: int) -> bool:
  """Whether rows this short are solved in their entries, not in factors.

  The n x n system costs n^2 E + n^3/3 against n E^2 + E^3/3 of the E x E one.
  """
  return 2 * length <= width


def check_finite(name: str, values, *, at_least_zero: bool = False) -> None:
  """Raises UserError at the first value that is not finite (or negative)."""
  bad = ~np.isfinite(values)
  if at_least_zero:
    bad |= np.asarray(values) < 0
  if bad.any():
    index = int(np.argmax(bad))
    wanted = 'finite and at least 0' if at_least_zero else 'finite'
    raise UserError(
      f'{name}[{index}] is {values[index]}; every entry must be {wanted}. '
      f'Drop or mend {int(bad.sum())} such entries'
    )


def _check_rows(name: str, rows, size: int) -> None:
  if len(rows) and (np.min(rows) < 0 or np.max(rows) >= size):
    bad = int(np.argmax((np.asarray(rows) < 0) | (np.asarray(rows) >= size)))
    raise UserError(
      f'{name}[{bad}] is {rows[bad]}; row indices must be in [0, {size})'
    )


def _choose_lengths(counts, longest: int, shape_cost: int) -> Sequence[int]:
  if not len(counts):
    return []
  candidates = [min(8, longest)]
  while candidates[-1] < min(int(counts.max()), longest):
    last = candidates[-1]
    power = 1 << (last.bit_length() - 1)
    candidates.append(
      min(power * 3 // 2 if last == power else 2 * power, longest)
    )
  within = np.searchsorted(np.sort(counts), candidates, side='right')
  # best[j]: cheapest cover of all rows up to candidates[j], which is chosen.
  best: list[tuple[int, tuple[int, ...]]] = []
  for j, length in enumerate(candidates):
    options = [(int(within[j]) * length + shape_cost, (length,))]
    for i in range(j):
      rows = int(within[j] - within[i])
      price = rows * length + shape_cost if rows else 0
      chosen = best[i][1] + ((length,) if rows else ())
      options.append((best[i][0] + price, chosen))
    best.append(min(options))
  return best[-1][1]


def _cut(rows, length, width, padding_row, num_devices, segmented) -> Bucket:
  largest = length if solves_dual(length, width) else max(width, length)
  per_row = width * largest
  per_batch = max(1, min(_BATCH_FLOATS // per_row, len(rows)))
  per_batch = -(-per_batch // num_devices) * num_devices
  batches = -(-len(rows) // per_batch)
  padded = np.full(batches * per_batch, padding_row, np.int32)
  padded[: len(rows)] = rows
  return Bucket(length, padded.reshape(batches, per_batch), segmented)
