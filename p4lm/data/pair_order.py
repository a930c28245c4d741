"""A random order of (user, item) rows that depends on their ids alone.

Numbers are hashes, so an order drawn by them is the same however the rows are
arranged, and adding a user leaves the others' orders as they were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np

from p4lm.data.tables import EncodedIds


def mix(numbers: np.ndarray) -> np.ndarray:
  """Stirs uint64 numbers, one to one (the finaliser of SplitMix64)."""
  numbers = numbers.astype(np.uint64, copy=True)
  for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
    numbers ^= numbers >> np.uint64(shift)
    numbers *= np.uint64(factor)
  return numbers ^ (numbers >> np.uint64(31))


def id_numbers(ids: Sequence[str], salt: str) -> np.ndarray:
  """uint64 [len(ids)], from each id and the salt."""
  digests = b''.join(
    hashlib.blake2b(f'{salt} {id_}'.encode(), digest_size=8).digest()
    for id_ in ids
  )
  return np.frombuffer(digests, '<u8')


def pair_numbers(
  users: EncodedIds, items: EncodedIds, seed: int, rows=slice(None)
) -> np.ndarray:
  """uint64 for each of `rows`, from seed, user id and item id alone."""
  user_numbers = id_numbers(users.ids, f'user {seed}')
  item_numbers = id_numbers(items.ids, f'item {seed}')
  numbers = mix(user_numbers[users.codes[rows]])
  numbers += item_numbers[items.codes[rows]]
  return mix(numbers)


def order_within(
  groups: np.ndarray, numbers: np.ndarray, num_groups: int
) -> np.ndarray:
  """int64 [M], rows sorted by group, then by number.

  Args:
    groups: int [M] in [0, num_groups).
    numbers: uint64 [M].
    num_groups: for the width of a group's number.
  """
  # One sort of one integer a row is several times faster than two keys.
  shift = max(num_groups - 1, 1).bit_length()
  combined = numbers >> np.uint64(shift)
  combined |= groups.astype(np.uint64) << np.uint64(64 - shift)
  order = np.argsort(combined)
  ordered = combined[order]
  if (ordered[1:] == ordered[:-1]).any():
    # Numbers that agree in their upper bits: let all their bits decide.
    order = np.lexsort((numbers, groups))
  return order


def rank_within(
  groups: np.ndarray, numbers: np.ndarray, num_groups: int
) -> np.ndarray:
  """int32 [M], the row's place (0, 1, ...) among its group by number."""
  order = order_within(groups, numbers, num_groups)
  counts = np.bincount(groups, minlength=num_groups)
  starts = np.cumsum(counts) - counts
  rank = np.empty(len(order), np.int32)
  rank[order] = np.arange(len(order)) - np.repeat(starts, counts)
  return rank


def round_robin(
  groups: np.ndarray, tiers: np.ndarray, numbers: np.ndarray
) -> np.ndarray:
  """Rows tier by tier; within a tier each group has a turn before any two.

  Args:
    groups: int [M].
    tiers: int [M], lower first.
    numbers: uint64 [M], the order among equals.
  Returns:
    int64 [M], all rows.
  """
  order = np.lexsort((numbers, tiers, groups))
  grouped = groups[order] * (int(tiers.max(initial=0)) + 1) + tiers[order]
  first = np.append(True, grouped[1:] != grouped[:-1])[: len(grouped)]
  starts = np.flatnonzero(first)
  turn = np.empty(len(order), np.int64)
  turn[order] = np.arange(len(order)) - np.repeat(
    starts, np.diff(np.append(starts, len(order)))
  )
  return np.lexsort((numbers, turn, tiers))
