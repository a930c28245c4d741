"""Whole groups of linked rows go to one split, by content alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4lm.data import group_splits
from p4lm.data.group_splits import Shares
from p4lm.errors import UserError

PAIRS = st.lists(
  st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=1, max_size=60
)


def reachable(pairs):
  """Row -> rows linked to it, by following texts until nothing is new."""
  found = []
  for start in range(len(pairs)):
    rows, texts = {start}, set(pairs[start])
    while True:
      more = {r for r, pair in enumerate(pairs) if texts & set(pair)}
      if more <= rows:
        break
      rows |= more
      texts |= {text for row in rows for text in pairs[row]}
    found.append(rows)
  return found


@given(PAIRS)
def test_rows_are_linked_over_any_number_of_steps(pairs):
  columns = [[str(pair[side]) for pair in pairs] for side in (0, 1)]
  groups = group_splits.linked(columns)
  for row, rows in enumerate(reachable(pairs)):
    assert set(np.flatnonzero(groups == groups[row])) == rows
  # Numbered in the order of first appearance, without gaps.
  assert list(dict.fromkeys(groups.tolist())) == list(range(groups.max() + 1))


@given(st.permutations(range(40)), st.integers(0, 3))
def test_the_order_of_rows_changes_nothing(order, seed):
  names = [f'text {i // 2}' for i in range(40)]
  shares = Shares(test=0.2, validation=0.2, judge=0.1)
  groups = group_splits.linked([names])
  splits = group_splits.split_groups(
    groups, list(dict.fromkeys(names)), shares, seed
  )
  assert group_splits.counts(splits) == {
    'train': 20, 'judge': 4, 'validation': 8, 'test': 8,
  }  # fmt: skip
  mixed = [names[i] for i in order]
  again = group_splits.split_groups(
    group_splits.linked([mixed]), list(dict.fromkeys(mixed)), shares, seed
  )
  assert again == [splits[i] for i in order]
  assert group_splits.split_hash([mixed], again) == group_splits.split_hash(
    [names], splits
  )


def test_another_seed_gives_another_split():
  names = [f'text {i}' for i in range(40)]
  groups = np.arange(40)
  first, second = (
    group_splits.split_groups(groups, names, Shares(), seed) for seed in (0, 1)
  )
  assert first != second
  assert group_splits.split_hash([names], first) != group_splits.split_hash(
    [names], second
  )


def test_a_huge_group_is_trained_on():
  groups = np.repeat(np.arange(21), [60, *[2] * 20])
  names = [f'text {i}' for i in range(21)]
  for seed in range(5):
    splits = group_splits.split_groups(groups, names, Shares(0.3, 0.1), seed)
    assert splits[0] == 'train'
    assert splits.count('test') == 30 and splits.count('validation') == 10


def test_shares_that_cannot_be_had_are_told():
  groups = np.repeat(np.arange(3), 10)
  names = ['a', 'b', 'c']
  with pytest.raises(UserError, match='fits into validation_share 0.1 of 30'):
    group_splits.split_groups(groups, names, Shares(0.4, 0.1), 0)
  with pytest.raises(UserError, match='fits into test_share'):
    group_splits.split_groups(groups[:10], names[:1], Shares(0.5, 0.0), 0)


@pytest.mark.parametrize('shares', [(0.5, 0.5), (-0.1, 0.1), (0.6, 0.2, 0.3)])
def test_shares_leave_something_to_train_on(shares):
  with pytest.raises(UserError, match='leave a share to train on'):
    Shares(*shares)


def test_a_text_in_two_splits_is_found():
  premises, hypotheses = ['a', 'b', 'c'], ['x', 'y', 'a']
  said = group_splits.check([premises, hypotheses], ['test', 'train', 'test'])
  assert said.startswith('none of 5 texts')
  with pytest.raises(ValueError, match="'a' is in the splits test and train"):
    group_splits.check([premises, hypotheses], ['test', 'train', 'train'])
