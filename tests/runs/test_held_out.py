"""Ranking problems of small data directories, counted by hand."""

import dataclasses
import doctest
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from p4lm.cf import recency
from p4lm.cf.biases import Biases
from p4lm.cf.tables import CFTables
from p4lm.data import tables
from p4lm.errors import UserError
from p4lm.evaluation.item_lists import ItemLists
from p4lm.runs import held_out
from p4lm.runs.held_out import read_held_out
from p4lm.runs.rankers import (
  Fit,
  popularity_ranker,
  random_lists,
  ranker_of_tables,
  same_splits,
)

DAY = 86400
# user, item, rating, day, split
ROWS = [
  ('ann', 'a', 5.0, 0, 'train'),
  ('ann', 'b', 4.0, 1, 'train'),
  ('bob', 'b', 3.0, 2, 'train'),
  ('bob', 'c', 2.0, 3, 'train'),
  ('cat', 'b', 5.0, 4, 'train'),
  ('ann', 'c', 1.0, 5, 'validation'),
  ('bob', 'new', 4.0, 5, 'validation'),
  ('dan', 'a', 5.0, 6, 'validation'),
  ('ann', 'd', 5.0, 7, 'test'),
  ('bob', 'a', 2.0, 8, 'test'),
  ('bob', 'newer', 4.0, 8, 'test'),
  ('dan', 'b', 5.0, 9, 'test'),
  ('eve', 'a', 5.0, 9, 'test'),
  ('eve', 'b', 1.0, 9, 'test'),
]


def write(directory, rows):
  columns = list(zip(*rows))
  table = pa.table(
    {
      'user_id': columns[0],
      'item_id': columns[1],
      'rating': pa.array(columns[2], pa.float32()),
      'timestamp': pa.array([DAY * day for day in columns[3]], pa.int64()),
      'split': columns[4],
    }
  )
  pq.write_table(table, directory / 'ratings.parquet')
  return str(directory)


@pytest.fixture
def directory(tmp_path):
  return write(tmp_path, ROWS)


def named(found):
  """{user: set of item ids}, with 'cold' for the rows of cold items."""
  names = [*found.item_ids]
  return {
    user: {names[row] if row < len(names) else 'cold' for row in rows}
    for user, rows in zip(
      found.user_ids, map(found.truth.__getitem__, range(9))
    )
  }


def seen(found):
  return {
    user: {found.item_ids[row] for row in found.seen[place]}
    for place, user in enumerate(found.user_ids)
  }


def test_a_fit_of_the_training_ratings(directory):
  found = read_held_out(directory)
  assert list(found.item_ids) == ['a', 'b', 'c']
  assert named(found) == {'ann': {'cold'}, 'bob': {'a', 'cold'}}
  # What was rated in validation is excluded too, where it is a candidate.
  assert seen(found) == {'ann': {'a', 'b', 'c'}, 'bob': {'b', 'c'}}
  assert (found.cold_users, found.cold_user_ratings) == (2, 3)
  assert found.users_without_truth == 1  # cat
  assert found.cold_item_ratings == 2
  facts = ' '.join(map(str, found.facts().values()))
  assert '3 ratings of test, 2 of them of cold items' in facts
  assert '2 cold users (3 ratings), 1 with nothing held out' in facts
  assert '3 items less those that the user rated in train + validation' in facts


def test_a_fit_of_training_and_validation_ratings(directory):
  found = read_held_out(directory, fitted_splits=('train', 'validation'))
  assert list(found.item_ids) == ['a', 'b', 'c', 'new']
  assert named(found) == {
    'ann': {'cold'}, 'bob': {'a', 'cold'}, 'dan': {'b'},
  }  # fmt: skip
  assert seen(found)['bob'] == {'b', 'c', 'new'}
  assert (found.cold_users, found.cold_user_ratings) == (1, 2)


def test_validation_judges_and_test_stays_unread(directory):
  found = read_held_out(directory, split='validation')
  assert named(found) == {'ann': {'c'}, 'bob': {'cold'}}
  assert seen(found) == {'ann': {'a', 'b'}, 'bob': {'b', 'c'}}


def test_low_ratings_can_be_irrelevant(directory):
  found = read_held_out(directory, relevant_rating=4.0)
  assert named(found) == {'ann': {'cold'}, 'bob': {'cold'}}
  # What is irrelevant was not rated before and may stand in a list.
  assert seen(found)['bob'] == {'b', 'c'}
  assert found.cold_user_ratings == 2


@pytest.mark.parametrize(
  'options, message',
  [
    (dict(split='train'), "no split 'train' to judge by"),
    (dict(split='later'), "no split 'later' to judge by"),
    (
      dict(split='validation', fitted_splits=('train', 'validation')),
      "read the ratings of 'validation', so 'validation' cannot judge",
    ),
    (dict(fitted_splits=('test',)), "read the ratings of 'test'"),
    (dict(fitted_splits=('early',)), "ratings of 'early'"),
    (dict(relevant_rating=6.0), 'no test rating is >= relevant_rating 6'),
  ],
)
def test_bad_problems(directory, options, message):
  with pytest.raises(UserError, match=message):
    read_held_out(directory, **options)


def test_no_rating_or_no_user_to_judge_by(tmp_path):
  train = [row for row in ROWS if row[4] == 'train']
  path = write(tmp_path, train)
  with pytest.raises(UserError, match="no rating of split 'test' to judge by"):
    read_held_out(path)
  path = write(tmp_path, [*train, ('eve', 'a', 5.0, 9, 'test')])
  with pytest.raises(UserError, match='none of the 1 users with test ratings'):
    read_held_out(path)


def test_popularity_counts_and_forgets(directory):
  found = read_held_out(directory, fitted_splits=('train', 'validation'))
  ranker = popularity_ranker(found)
  assert ranker.item_embeddings.ravel().tolist() == [2, 3, 2, 1]
  # bob rated b, c and new: a alone is left.
  assert ranker.top(found, 2).tolist()[1] == [0, -1]
  # With a half-life of a day, b's newest rating is two days before a's.
  recent = popularity_ranker(found, half_life_days=1.0)
  np.testing.assert_allclose(
    recent.item_embeddings.ravel(),
    [2**-6 + 1, 2**-5 + 2**-4 + 2**-2, 2**-3 + 2**-1, 2**-1],
  )
  assert recent.unknown_users == 0


def test_tables_are_read_by_id(directory):
  """Tables in another order, without item b and without bob."""
  found = read_held_out(directory)
  tables_ = CFTables(
    np.array([[1.0]]), np.array([[3.0], [1.0], [9.0]]), ['ann'],
    ['c', 'a', 'zzz'], scale='raw',
  )  # fmt: skip
  ranker = ranker_of_tables(found, tables_)
  assert ranker.is_known.tolist() == [True, False]
  assert ranker.unknown_users == 1
  free = ItemLists(np.zeros(3, np.int64), np.zeros(0, np.int64))
  unseen = dataclasses.replace(found, seen=free)
  assert ranker.top(unseen, 3).tolist() == [[2, 0, -1], [-1, -1, -1]]
  # An explicit fit's item biases are part of its scores.
  biased = ranker_of_tables(found, tables_, np.array([0.0, 5.0, 0.0]))
  assert biased.top(unseen, 3).tolist()[0] == [0, 2, -1]


def test_random_lists_are_uniform_seeded_and_leave_out():
  seen_items = ItemLists.from_pairs([0, 0, 2], [1, 3, 0], 3)
  counts = np.zeros(6)
  for seed in range(600):
    top = random_lists(seen_items, 6, 2, seed=seed)
    assert not set(top[0].tolist()) & {1, 3} and 0 not in top[2]
    assert all(len(set(row)) == 2 for row in top.tolist())
    counts += np.bincount(top[1], minlength=6)
  # 600 lists of 2 among 6: 200 each, standard deviation 11.5.
  assert np.abs(counts - 200).max() < 4 * 11.6
  again = random_lists(seen_items, 6, 2, seed=5)
  np.testing.assert_array_equal(again, random_lists(seen_items, 6, 2, seed=5))
  short = random_lists(seen_items, 6, 9, seed=0)
  assert sorted(short[0].tolist()) == [-1] * 5 + [0, 2, 4, 5]
  with pytest.raises(UserError, match='cut-off k is 0'):
    random_lists(seen_items, 6, 0, seed=0)


def save_fit(path, sha256, mode='implicit', **about):
  CFTables(np.ones((1, 2)), np.ones((2, 2)), ['ann'], ['a', 'b']).save(path)
  about |= {'ratings_sha256': sha256, 'factorization': {'mode': mode}}
  (path / 'config.json').write_text(json.dumps(about))


def test_directories_of_fits(directory, tmp_path):
  sha256 = tables.hash_file(f'{directory}/ratings.parquet')
  path = tmp_path / 'cf'
  save_fit(path, sha256)
  assert Fit.load(path, sha256).splits == ('train',)
  with pytest.raises(UserError, match='was fitted on other ratings'):
    Fit.load(path, 'f' * 64)
  save_fit(path, sha256, splits=['train', 'validation'])
  late = Fit.load(path, sha256)
  assert late.item_biases is None
  save_fit(path, sha256, mode='explicit')
  with pytest.raises(UserError, match='biases.npz is missing'):
    Fit.load(path, sha256)
  Biases(3.0, np.zeros(1), np.array([1.0, 2.0])).save(path)
  early = Fit.load(path, sha256)
  assert early.item_biases.tolist() == [1.0, 2.0]
  assert same_splits({'x': late}) == ('train', 'validation')
  with pytest.raises(UserError, match=r'x: train \+ validation; y: train\)'):
    same_splits({'x': late, 'y': early})
  for text in ('{}', '[]', '{"ratings_sha256": 1', '{"factorization": 3}'):
    (path / 'config.json').write_text(text)
    with pytest.raises(UserError, match='does not say how its CF tables'):
      Fit.load(path, sha256)
  with pytest.raises(UserError, match='no finished CF tables'):
    Fit.load(tmp_path / 'nothing', sha256)


@pytest.mark.parametrize('half_life', [0, -3.0, float('nan')])
def test_a_bad_half_life(half_life):
  with pytest.raises(UserError, match='half_life_days is .* positive number'):
    recency.recency_weights([0, DAY], half_life)


def test_old_ratings_keep_a_trace():
  weights = recency.recency_weights([0, 100 * DAY], half_life_days=1.0)
  assert weights.tolist() == [2.0**-60, 1.0]
  assert len(recency.recency_weights([], 1.0)) == 0


def test_examples():
  for module in (held_out, recency):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed
