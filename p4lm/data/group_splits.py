"""Splits of judged texts in which no text is on two sides.

Rows that share a text (a premise, an argument) or a named group (a topic) are
linked; everything that is linked, over however many steps, goes to one split.
A model is then never judged by a premise, an argument or a topic that it was
trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import scipy.sparse
from scipy.sparse import csgraph

from p4lm.data import pair_order
from p4lm.errors import UserError

# The order in which splits are filled; the rest is for training.
FILLED = ('test', 'validation', 'judge')
SPLITS = ('train', 'judge', 'validation', 'test')


@dataclasses.dataclass(frozen=True)
class Shares:
  """What share of the rows each split should have; the rest is `train`.

  Attributes:
    test: judges a finished model.
    validation: tunes it, and fits its temperature.
    judge: trains the models that judge what others were trained for.
  """

  test: float = 0.2
  validation: float = 0.1
  judge: float = 0.0

  def __post_init__(self):
    shares = [getattr(self, name) for name in FILLED]
    if not (all(0 <= share < 1 for share in shares) and sum(shares) < 1):
      raise UserError(
        'test_share, validation_share and judge_share must be in [0, 1) and '
        f'leave a share to train on, got {", ".join(map(str, shares))}'
      )


def linked(columns: Sequence[Sequence[str]]) -> np.ndarray:
  """Numbers rows so that rows which share a text have one number.

  A text counts whatever column it is in: the premise of one row may be the
  hypothesis of another.

  >>> linked([['a', 'b', 'c'], ['x', 'x', 'a']]).tolist()
  [0, 0, 0]
  >>> linked([['a', 'b', 'c'], ['x', 'y', 'a']]).tolist()
  [0, 1, 0]

  Args:
    columns: of M texts each.
  Returns:
    int64 [M], from 0 in order of first appearance.
  """
  codes: dict[str, int] = {}
  rows = len(columns[0])
  ends = [
    codes.setdefault(text, len(codes)) for column in columns for text in column
  ]
  starts = np.tile(np.arange(rows), len(columns))
  size = rows + len(codes)
  edges = scipy.sparse.coo_matrix(
    (np.ones(len(ends), bool), (starts, rows + np.array(ends, np.int64))),
    shape=(size, size),
  )
  _, labels = csgraph.connected_components(edges, directed=False)
  _, first, numbers = np.unique(
    labels[:rows], return_index=True, return_inverse=True
  )
  return np.argsort(np.argsort(first))[numbers]


def split_groups(
  groups: np.ndarray, names: Sequence[str], shares: Shares, seed: int
) -> list[str]:
  """A split for each row, whole groups at a time.

  Groups come in the order of a hash of their name and the seed. Test,
  validation and judge are filled in turn, each by the groups that still fit
  into its share, so that one huge group is trained on and never judges alone.

  Args:
    groups: int [M], 0..K-1.
    names: K, of the groups; by content, so that the order of the rows and the
      name of the file change nothing.
    shares: wanted.
    seed: other seeds give other splits.
  Returns:
    M names of splits.
  Raises:
    UserError: a share into which no group fits.
  """
  sizes = np.bincount(groups, minlength=len(names))
  order = np.argsort(pair_order.id_numbers(names, f'group {seed}'))
  split_of = np.full(len(names), 'train', dtype='<U10')
  for split in FILLED:
    room = wanted = getattr(shares, split) * len(groups)
    for group in order:
      if split_of[group] == 'train' and sizes[group] <= room:
        split_of[group] = split
        room -= sizes[group]
    if room == wanted > 0:
      raise UserError(
        f'no group of linked rows fits into {split}_share '
        f'{getattr(shares, split)} of {len(groups)} rows: the '
        f'{len(names)} groups have {int(sizes.min())} or more rows; raise it'
      )
  return split_of[groups].tolist()


def check(columns: Sequence[Sequence[str]], splits: Sequence[str]) -> str:
  """Looks that no text is in two splits; says so in a sentence.

  Raises:
    ValueError: one is; the message has it.
  """
  seen: dict[str, str] = {}
  for column in columns:
    for text, split in zip(column, splits):
      if seen.setdefault(text, split) != split:
        raise ValueError(
          f'{text[:60]!r} is in the splits {seen[text]} and {split}'
        )
  return f'none of {len(seen):,} texts and groups is in two splits'


def split_hash(columns: Sequence[Sequence[str]], splits: Sequence[str]) -> str:
  """sha256 over the set of rows with their splits, whatever their order."""
  rows = sorted(
    hashlib.sha256('\0'.join(row).encode()).digest()
    for row in zip(*columns, splits)
  )
  return hashlib.sha256(b''.join(rows)).hexdigest()


def counts(splits: Sequence[str]) -> Mapping[str, int]:
  """Rows of each split that has any, in the order of SPLITS."""
  found = {split: splits.count(split) for split in SPLITS}
  return {split: count for split, count in found.items() if count}
