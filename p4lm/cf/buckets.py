"""Rows of like length share a padded length and thus a compiled program.

The rows of a ratings matrix have very different lengths, and XLA compiles one
program a shape. So rows of similar length share a padded length (a bucket),
and lengths are chosen so that padding and compiling together cost least:

  counts  3 1 7 2 12        buckets  4: rows 0 1 3      (padded 3 1 2 -> 4)
                                    12: rows 2 4        (padded 7 12 -> 12)

Rows without interactions are in no bucket. Rows longer than `LONGEST` are read
by a loop inside the program, a segment of that length at a time; what is left
of them is what they share a padded length by:

  counts  600 850 300       segments and rest  2 + 88   3 + 82   1 + 44
                            padded to          2 + 128  3 + 128  1 + 64
"""

from __future__ import annotations

import dataclasses

import numpy as np

LONGEST = 256
# Compiling one more shape takes about 0.4 s, 1.5e10 multiply-adds of a core,
# but later fits find it compiled. A fit has some 15 epochs.
_SHAPE_COST = 1e10 / 15
# A factorization runs at about a fifth of the rate of a matrix product.
_CHOLESKY_COST = 5.0
# Floats of the largest array of a batch: 1 MiB keeps it in cache on a CPU.
_BATCH_FLOATS = 1 << 18


@dataclasses.dataclass(frozen=True)
class Bucket:
  """Rows that are padded alike.

  Attributes:
    length: padded number of entries, of the rest where there are segments.
    rows: int [n], row indices by falling number of entries.
    segment: entries of a segment; 0 for rows that need none.
  """

  length: int
  rows: np.ndarray
  segment: int = 0

  def batch_size(self, width: int) -> int:
    """Rows of a batch at E = width."""
    longest = max(self.length, self.segment)
    square = min(longest, width) ** 2
    return max(1, _BATCH_FLOATS // max(longest * width, square))


def plan_buckets(counts, width: int, *, longest: int = LONGEST) -> list[Bucket]:
  """Groups rows so that solving plus compiling costs least.

  Candidate lengths are four to the octave, 8, 10, 12, 14, 16, 20, ... up to
  `longest`; dynamic programming picks the subset with the smallest sum of
  multiply-adds, padded, plus a price for each compiled shape. The rests of
  longer rows have one, two or four lengths.

  Args:
    counts: int [R], entries of each row.
    width: E.
    longest: rows with more entries are read in segments of this length.
  Returns:
    Buckets by rising length, then those with segments; each row with entries is
    in exactly one.
  """
  counts = np.asarray(counts)
  by_count = np.argsort(-counts, kind='stable')
  ordered = counts[by_count]
  buckets, shorter = [], 0
  within = counts[(counts > 0) & (counts <= longest)]
  for length in _choose_lengths(within, longest, width):
    rows = by_count[(ordered > shorter) & (ordered <= length)]
    buckets.append(Bucket(length, rows))
    shorter = length
  longer = by_count[ordered > longest]
  rests = (counts[longer] - 1) % longest + 1
  grain = _choose_grain(len(longer), longest, width)
  padded = -(-rests // grain) * grain
  for length in np.unique(padded).tolist():
    buckets.append(Bucket(length, longer[padded == length], longest))
  return buckets


def row_cost(length: int, width: int) -> float:
  """Multiply-adds of solving one row, a Cholesky's weighed by its rate.

  A row of n entries is solved in its n entries or in its E factors, whichever
  system is smaller: n E min(n, E) for the system and min(n, E)^3 / 6 for the
  factorization.

  >>> row_cost(2, 12)
  54.66666666666667
  """
  size = min(length, width)
  return length * width * size + _CHOLESKY_COST * size**3 / 6


def solves_in_entries(length: int, width: int) -> bool:
  """Whether rows this short are solved in their entries, not in factors."""
  return length < width


def _candidates(most: int, longest: int) -> list[int]:
  lengths = [min(8, longest)]
  while lengths[-1] < min(most, longest):
    quarter = 1 << (lengths[-1].bit_length() - 3)
    lengths.append(min(lengths[-1] + quarter, longest))
  return lengths


def _choose_lengths(counts, longest: int, width: int) -> tuple[int, ...]:
  if not len(counts):
    return ()
  candidates = _candidates(int(counts.max()), longest)
  within = np.searchsorted(np.sort(counts), candidates, side='right')
  costs = [row_cost(length, width) for length in candidates]
  # best[j]: cheapest cover of all rows up to candidates[j], which is chosen.
  best: list[tuple[float, tuple[int, ...]]] = []
  for j, length in enumerate(candidates):
    options = [(int(within[j]) * costs[j] + _SHAPE_COST, (length,))]
    for i in range(j):
      rows = int(within[j] - within[i])
      price = rows * costs[j] + _SHAPE_COST if rows else 0
      chosen = best[i][1] + ((length,) if rows else ())
      options.append((best[i][0] + price, chosen))
    best.append(min(options))
  return best[-1][1]


def _choose_grain(num_rows: int, longest: int, width: int) -> int:
  """What rests are padded to a multiple of: half of it is lost on a row."""
  return min(
    {max(1, longest // shapes): shapes for shapes in (1, 2, 4)}.items(),
    key=lambda option: (
      num_rows * option[0] / 2 * width**2 + option[1] * _SHAPE_COST
    ),
  )[0]
