"""Each split rule against its definition, and the check against broken ones."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import split_rules, splits
from p4lm.errors import UserError

RULES = tuple(split_rules.RULES)


def make(rows):
  """A table of (user, item, timestamp) rows."""
  users, items, times = zip(*rows)
  return pa.table(
    {
      'user_id': pa.array(users, pa.string()),
      'item_id': pa.array(items, pa.string()),
      'rating': pa.array([4.0] * len(rows), pa.float32()),
      'timestamp': pa.array(times, pa.int64()),
    }
  )


def split_of(rows, rule, seed=0, **shares):
  table = splits.split_ratings(make(rows), rule=rule, seed=seed, **shares)
  return dict(zip([row[:2] for row in rows], table['split'].to_pylist()))


ROWS = st.lists(
  st.tuples(
    st.sampled_from('abcde'), st.sampled_from('uvwxyz123'), st.integers(0, 5)
  ),
  unique_by=lambda row: row[:2],
  min_size=1,
)


@pytest.mark.parametrize('rule', RULES)
@settings(deadline=None)
@given(rows=ROWS, seed=st.integers(0, 3), random=st.randoms())
def test_a_split_keeps_its_promise_whatever_the_order_of_rows(
  rule, rows, seed, random
):
  try:
    found = split_of(rows, rule, seed)
  except UserError as error:
    assert rule == 'global_time' and 'too few distinct' in str(error)
    return
  shuffled = random.sample(rows, len(rows))
  assert split_of(shuffled, rule, seed) == found
  table = splits.split_ratings(make(rows), rule=rule, seed=seed)
  about = dict(split_rule=rule, seed=seed, test_share=0.2, validation_share=0.1)
  assert splits.check_split(table, about)


def test_leave_one_out_takes_the_newest():
  rows = [
    *(('a', f'i{t}', t) for t in (30, 10, 20, 40)),
    ('b', 'i1', 7), ('b', 'i2', 8),
    ('c', 'i1', 1),
  ]  # fmt: skip
  assert split_of(rows, 'leave_one_out') == {
    ('a', 'i10'): 'train', ('a', 'i20'): 'train',
    ('a', 'i30'): 'validation', ('a', 'i40'): 'test',
    ('b', 'i1'): 'train', ('b', 'i2'): 'test',
    ('c', 'i1'): 'train',
  }  # fmt: skip


def test_ties_of_a_user_are_broken_by_the_seed():
  rows = [('a', f'i{k}', 5) for k in range(9)]
  held = {
    next(i for (_, i), s in split_of(rows, 'leave_one_out', seed).items()
         if s == 'test')
    for seed in range(20)
  }  # fmt: skip
  assert len(held) > 3


def test_global_time_cuts_between_moments():
  # 20 ratings at times 0..19: 2 validation, 4 test.
  rows = [(f'u{t % 3}', f'i{t}', t) for t in range(20)]
  found = split_of(rows, 'global_time')
  names = [found[f'u{t % 3}', f'i{t}'] for t in range(20)]
  assert names == ['train'] * 14 + ['validation'] * 2 + ['test'] * 4
  # Times 14 and 15, and 16 and 17, are one moment each: none is divided, and
  # no share is exceeded.
  merged = [(u, i, 16 if t == 17 else t) for u, i, t in rows]
  found = split_of(merged, 'global_time', test_share=0.15)
  names = [found[u, i] for u, i, _ in merged]
  assert names[16:] == ['validation'] * 2 + ['test'] * 2


def test_one_moment_cannot_be_cut():
  with pytest.raises(UserError, match='too few distinct timestamps'):
    split_of([('a', f'i{k}', 3) for k in range(10)], 'global_time')
  found = split_of([('a', 'i', 3)], 'global_time', test_share=0.0,
                   validation_share=0.0)  # fmt: skip
  assert set(found.values()) == {'train'}


def test_users_are_disjoint_in_their_shares_and_alone():
  rows = [(f'u{u}', f'i{k}', k) for u in range(4000) for k in range(2)]
  found = split_of(rows, 'user_disjoint')
  by_user = {}
  for (user, _), name in found.items():
    by_user.setdefault(user, set()).add(name)
  assert all(len(names) == 1 for names in by_user.values())
  share = np.mean([names == {'test'} for names in by_user.values()])
  # Four standard deviations of a share of 0.2 among 4000.
  assert abs(share - 0.2) < 4 * np.sqrt(0.2 * 0.8 / 4000)
  alone = split_of(rows[:200], 'user_disjoint')
  assert alone == {pair: found[pair] for pair in alone}


@pytest.mark.parametrize(
  'rule, names, problem',
  [
    ('user_disjoint', ['train', 'test', 'train'], 'user is in two splits'),
    ('global_time', ['test', 'train', 'train'], 'older than one of'),
    ('leave_one_out', ['test', 'train', 'train'], 'not the newest'),
    ('leave_one_out', ['train', 'test', 'test'], 'two ratings in one'),
    ('random_by_user', ['test', 'test', 'test'], 'no training rating'),
  ],
)
def test_broken_splits_are_found(rule, names, problem):
  table = make([('a', f'i{t}', t) for t in range(3)])
  codes = np.array([splits.SPLITS.index(name) for name in names], np.int8)
  table = splits.with_splits(table, codes)
  about = dict(split_rule=rule, seed=0, test_share=0.2, validation_share=0.1)
  with pytest.raises(ValueError, match=problem):
    splits.check_split(table, about)


def test_an_unknown_rule_is_told():
  with pytest.raises(UserError, match="'by_time' is unknown; .*global_time"):
    split_of([('a', 'i', 0)], 'by_time')
