"""Observed entries of a users x items matrix, and one side of them by row."""

from __future__ import annotations

import dataclasses

import numpy as np

from p4lm.errors import UserError


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
