"""Splits by user, their hash, held-out pairs, leakage."""

import collections

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.data import pair_order, splits, tables
from p4lm.errors import UserError


def _ratings(pairs, stars=None):
  return pa.table(
    {
      'user_id': pa.array([u for u, _ in pairs], pa.string()),
      'item_id': pa.array([i for _, i in pairs], pa.string()),
      'rating': pa.array(stars or [4.0] * len(pairs), pa.float32()),
      'timestamp': pa.array([0] * len(pairs), pa.int64()),
    }
  )


def _items(ids, plots=None):
  return pa.table(
    {
      'item_id': list(ids),
      'plot': plots or ['a plot'] * len(ids),
    }
  )


def _split_of(ratings):
  names = ('user_id', 'item_id', 'split')
  rows = zip(*(ratings[name].to_pylist() for name in names))
  return {(user, item): split for user, item, split in rows}


PAIRS = st.lists(
  st.tuples(st.sampled_from('abc'), st.sampled_from('uvwxyz12345')),
  unique=True,
  min_size=1,
)


@settings(deadline=None)
@given(PAIRS, st.integers(0, 3), st.randoms())
def test_the_order_of_rows_does_not_matter(pairs, seed, random):
  split = splits.split_ratings(_ratings(pairs), seed=seed)
  shuffled = random.sample(pairs, len(pairs))
  again = splits.split_ratings(_ratings(shuffled), seed=seed)
  assert _split_of(split) == _split_of(again)
  assert splits.split_hash(split) == splits.split_hash(again)


@settings(deadline=None)
@given(PAIRS, st.integers(0, 3))
def test_a_user_is_split_without_the_others(pairs, seed):
  split = _split_of(splits.split_ratings(_ratings(pairs), seed=seed))
  for user in {user for user, _ in pairs}:
    own = [pair for pair in pairs if pair[0] == user]
    alone = _split_of(splits.split_ratings(_ratings(own), seed=seed))
    assert alone == {pair: split[pair] for pair in own}


@settings(deadline=None)
@given(PAIRS, st.integers(0, 3))
def test_the_hash_follows_every_split(pairs, seed):
  ratings = splits.split_ratings(_ratings(pairs), seed=seed)
  codes = splits.split_codes(ratings)
  for row in range(len(pairs)):
    other = codes.copy()
    other[row] = (other[row] + 1) % 3
    changed = splits.with_splits(ratings, other)
    assert splits.split_hash(changed) != splits.split_hash(ratings)


@pytest.mark.parametrize(
  ('count', 'train', 'validation', 'test'),
  [(1, 1, 0, 0), (2, 2, 0, 0), (3, 2, 0, 1), (5, 3, 1, 1), (10, 7, 1, 2),
   (20, 14, 2, 4), (1000, 700, 100, 200)],
)  # fmt: skip
def test_shares_of_a_user(count, train, validation, test):
  ratings = _ratings([('u', str(i)) for i in range(count)])
  found = np.bincount(
    splits.split_codes(splits.split_ratings(ratings, seed=0)), minlength=3
  )
  assert found.tolist() == [train, validation, test]


def test_every_user_keeps_something_to_train_on():
  ratings = _ratings([('u', '1'), ('v', '1'), ('v', '2')])
  split = splits.split_ratings(
    ratings, seed=0, test_share=0.5, validation_share=0.49
  )
  trained = [u for (u, _), s in _split_of(split).items() if s == 'train']
  assert sorted(trained) == ['u', 'v']


def test_seeds_give_different_splits_and_test_items_are_random():
  pairs = [(str(u), str(i)) for u in range(50) for i in range(20)]
  one = _split_of(splits.split_ratings(_ratings(pairs), seed=0))
  two = _split_of(splits.split_ratings(_ratings(pairs), seed=1))
  same = sum(one[p] == 'test' and two[p] == 'test' for p in pairs)
  # 200 test ratings each; 40 in common if the seeds are independent.
  assert 15 < same < 70
  by_item = collections.Counter(i for (_, i), s in one.items() if s == 'test')
  assert len(by_item) == 20 and max(by_item.values()) < 25


@pytest.mark.parametrize('shares', [(0.6, 0.5), (-0.1, 0.2), (1.0, 0.0)])
def test_shares_that_leave_nothing_are_told(shares):
  with pytest.raises(UserError, match='leave a share to train on'):
    splits.split_ratings(
      _ratings([('u', '1')]),
      seed=0,
      test_share=shares[0],
      validation_share=shares[1],
    )


def test_an_unknown_split_is_told():
  table = _ratings([('u', '1')]).append_column('split', pa.array(['dev']))
  with pytest.raises(UserError, match="no split 'dev'"):
    splits.split_codes(table)


@settings(deadline=None)
@given(
  st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2**64 - 1)), min_size=1)
)
def test_order_within_equals_a_sort_by_two_keys(rows):
  groups = np.array([g for g, _ in rows])
  numbers = np.array([n for _, n in rows], np.uint64)
  order = pair_order.order_within(groups, numbers, 5)
  assert [(int(groups[i]), int(numbers[i])) for i in order] == sorted(rows)
  rank = pair_order.rank_within(groups, numbers, 5)
  seen = collections.Counter()
  for row in order:
    assert rank[row] == seen[groups[row]]
    seen[groups[row]] += 1


def test_numbers_equal_in_their_upper_bits_are_still_ordered():
  numbers = np.array([3, 1, 2, 0], np.uint64)
  order = pair_order.order_within(np.zeros(4, np.int64), numbers, 2**20)
  assert order.tolist() == [3, 1, 2, 0]


def test_mix_is_one_to_one_and_known():
  # SplitMix64's first outputs for seed 0 (Steele et al. 2014): its state steps
  # by the golden gamma and is finalised by this function.
  gamma = np.uint64(0x9E3779B97F4A7C15)
  state = (gamma * np.arange(1, 3, dtype=np.uint64)).astype(np.uint64)
  assert pair_order.mix(state).tolist() == [
    0xE220A8397B1DCDAF,
    0x6E789E6AA1B965F4,
  ]
  many = pair_order.mix(np.arange(10_000, dtype=np.uint64))
  assert len(np.unique(many)) == 10_000


def test_round_robin_gives_each_group_a_turn_within_a_tier():
  groups = np.array([0, 0, 0, 1, 1, 2])
  tiers = np.array([0, 0, 1, 0, 1, 1])
  numbers = np.array([5, 1, 0, 3, 2, 4], np.uint64)
  order = pair_order.round_robin(groups, tiers, numbers)
  # Tier 0: a first turn for groups 0 (number 1) and 1 (3), a second for 0.
  # Tier 1: one row of each group, by number.
  assert order.tolist() == [1, 3, 0, 2, 4, 5]


def _world(num_users=30, num_items=40, seed=0):
  rng = np.random.default_rng(seed)
  pairs = [
    (f'u{u}', f'i{i}')
    for u in range(num_users)
    for i in rng.permutation(num_items)[: 10 + u]
  ]
  stars = (rng.integers(1, 11, len(pairs)) / 2).tolist()
  ratings = splits.split_ratings(_ratings(pairs, stars), seed=seed)
  return ratings, _items([f'i{i}' for i in range(num_items)])


def test_evaluation_pairs_meet_the_rule():
  ratings, items = _world()
  rule = splits.EvaluationRule(count=12, min_other_test_ratings=3)
  pairs = splits.choose_evaluation_pairs(ratings, items, seed=0, rule=rule)
  assert len(pairs) == 12
  users = pairs['user_id'].to_pylist()
  assert len(set(users)) == 12
  rows = {(r['user_id'], r['item_id']): r for r in ratings.to_pylist()}
  counts = collections.Counter(
    (r['user_id'], r['split']) for r in rows.values()
  )
  for pair in zip(users, pairs['item_id'].to_pylist()):
    assert rows[pair]['split'] == 'test' and rows[pair]['rating'] >= 4
    assert counts[pair[0], 'train'] >= rule.min_train_ratings
    assert counts[pair[0], 'test'] - 1 >= rule.min_other_test_ratings


def test_wishes_give_way_before_pairs_are_missing():
  ratings, items = _world()
  every = splits.choose_evaluation_pairs(
    ratings, items, seed=0, rule=splits.EvaluationRule(count=10_000)
  )
  qualified = sum(
    r['split'] == 'test' and r['rating'] >= 4 for r in ratings.to_pylist()
  )
  assert len(every) == qualified
  assert len(set(map(tuple, zip(*every.to_pydict().values())))) == qualified


def test_pairs_need_a_plot():
  ratings, items = _world()
  only = _items(
    items['item_id'].to_pylist(), ['a plot'] + [''] * (len(items) - 1)
  )
  pairs = splits.choose_evaluation_pairs(ratings, only, seed=0)
  assert set(pairs['item_id'].to_pylist()) == {'i0'}
  none = _items(items['item_id'].to_pylist(), [''] * len(items))
  with pytest.raises(UserError, match='no evaluation pairs can be chosen'):
    splits.choose_evaluation_pairs(ratings, none, seed=0)


def test_pairs_do_not_depend_on_the_order_of_rows():
  ratings, items = _world()
  reverse = ratings.take(np.arange(len(ratings))[::-1])
  assert splits.choose_evaluation_pairs(ratings, items, seed=4).equals(
    splits.choose_evaluation_pairs(reverse, items, seed=4)
  )


def test_whole_worlds_do_not_leak():
  ratings, items = _world()
  pairs = splits.choose_evaluation_pairs(ratings, items, seed=0)
  train = ratings.filter(pa.array(splits.split_codes(ratings) == splits.TRAIN))
  splits.check_leakage(ratings, pairs, {'texts': train})


@pytest.mark.parametrize('kind', ['twice', 'trained on', 'written about'])
def test_leaks_are_found(kind):
  ratings, items = _world()
  pairs = splits.choose_evaluation_pairs(ratings, items, seed=0)
  texts = {}
  if kind == 'twice':
    ratings = pa.concat_tables([ratings, ratings.slice(3, 1)])
    message = 'the splits overlap'
  elif kind == 'trained on':
    codes = np.zeros(len(ratings), np.int8)
    ratings = splits.with_splits(ratings, codes)
    message = 'is no test rating'
  else:
    texts = {'pairs': pairs.slice(1, 1)}
    message = 'table pairs is about evaluation pair'
  with pytest.raises(ValueError, match=message):
    splits.check_leakage(ratings, pairs, texts)


def test_a_million_ratings_are_split_in_seconds():
  rng = np.random.default_rng(0)
  codes = np.unique(rng.integers(0, 10_000 * 5000, 1_000_000))
  ids = lambda numbers, count: tables.decode_ids(
    numbers, [str(i) for i in range(count)]
  )
  ratings = pa.table(
    {
      'user_id': ids(codes // 5000, 10_000),
      'item_id': ids(codes % 5000, 5000),
    }
  )
  split = splits.split_ratings(ratings, seed=0)
  shares = np.bincount(splits.split_codes(split)) / len(codes)
  np.testing.assert_allclose(shares, [0.7, 0.1, 0.2], atol=0.002)
