"""Ranking metrics against ir_measures and hand-made lists."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.evaluation import ranking
from p4lm.evaluation.ranking import (
  ItemLists,
  evaluate_lists,
  top_items,
  top_of_scores,
)


def lists(rows, num_users=None):
  users = [u for u, items in enumerate(rows) for _ in items]
  items = [i for row in rows for i in row]
  return ItemLists.from_pairs(users, items, num_users or len(rows))


def test_agrees_with_ir_measures_on_ties_short_and_empty_lists():
  ir = pytest.importorskip(
    'ir_measures', reason="pip install ir-measures, or 'p4lm[test]'"
  )
  generator = np.random.default_rng(0)
  users, items = 40, 30
  scores = generator.integers(0, 6, (users, items)).astype(np.float32)
  excluded = generator.random((users, items)) < 0.5
  excluded[0] = True  # an empty list
  excluded[1, 2:] = True  # a list of two
  scores[excluded] = -np.inf
  truth_rows = [
    np.flatnonzero(generator.random(items) < 0.15) for _ in range(users)
  ]
  truth_rows[2] = np.array([], int)
  top = top_of_scores(scores, 20)
  found = evaluate_lists(top, lists(truth_rows), [1, 5, 20])
  # Ranks as scores leave the library no ties to break its own way.
  run = [
    ir.ScoredDoc(str(u), str(i), float(-rank))
    for u in range(users)
    for rank, i in enumerate(top[u])
    if i >= 0
  ]
  qrels = [
    ir.Qrel(str(u), str(i), 1) for u in range(users) for i in truth_rows[u]
  ]
  names = {'ndcg': ir.nDCG, 'recall': ir.R, 'precision': ir.P, 'mrr': ir.RR}
  theirs = {
    (str(r.measure), r.query_id): r.value
    for r in ir.iter_calc(
      [m @ k for m in names.values() for k in (1, 5, 20)], qrels, run
    )
  }
  checked = 0
  for name, measure in names.items():
    for k in (1, 5, 20):
      for u in range(users):
        value = found.values[f'{name}@{k}'][u]
        if len(truth_rows[u]) == 0:
          assert math.isnan(value)
          continue
        expected = theirs.get((str(measure @ k), str(u)), 0.0)
        assert value == pytest.approx(expected, abs=1e-6)
        checked += 1
  assert checked > 400
  empty = sum(len(row) == 0 for row in truth_rows)
  assert found.users_without_truth == empty >= 1


def test_literal_values():
  top = np.array([[4, 7, 2], [1, -1, -1]])
  found = evaluate_lists(top, lists([[2, 7, 9, 11], [5]]), [2, 3])
  two = {name: v[0] for name, v in found.values.items()}
  assert two['recall@2'] == 1 / 4
  assert two['recall_truncated@2'] == 1 / 2
  assert two['precision@3'] == 2 / 3
  assert two['mrr@3'] == 1 / 2
  assert two['hr@2'] == 1.0
  ideal = 1 + 1 / math.log2(3)
  assert two['ndcg@2'] == pytest.approx((1 / math.log2(3)) / ideal)
  assert all(v[1] == 0 for v in found.values.values())
  assert found.means()['recall@2'] == 1 / 8


@pytest.mark.parametrize(
  ('rank', 'value'), [(1, 1.0), (2, 0.63093), (20, 0.22767)]
)
def test_ndcg_of_one_relevant_item(rank, value):
  top = np.arange(20)[None, :]
  found = evaluate_lists(top, lists([[rank - 1]]), [20])
  assert found.values['ndcg@20'][0] == pytest.approx(value, abs=1e-5)


def test_random_ranking_expectation():
  """Mean over all ranks of one relevant item among 10,533."""
  catalogue = 10_533
  top = np.arange(20)[None, :].repeat(21, 0)
  truth = lists([[rank] for rank in range(20)] + [[999]])
  found = evaluate_lists(top, truth, [20])
  means = {
    name: np.sum(found.values[f'{name}@20'][:20]) / catalogue
    for name in ('ndcg', 'mrr', 'recall', 'precision')
  }
  assert means['ndcg'] == pytest.approx(0.000668, abs=1e-6)
  assert means['mrr'] == pytest.approx(0.000342, abs=1e-6)
  assert means['recall'] == pytest.approx(0.00190, abs=1e-5)
  assert means['precision'] == pytest.approx(means['recall'] / 20)


def test_top_items_excludes_and_breaks_ties_by_row(monkeypatch):
  monkeypatch.setattr(ranking, '_BATCH_SCORES', 25)  # batches of five users
  generator = np.random.default_rng(1)
  users = generator.integers(-1, 2, (13, 3)).astype(np.float32)
  items = generator.integers(-1, 2, (5, 3)).astype(np.float32)
  offsets = generator.integers(0, 2, 5)
  rated = [np.flatnonzero(generator.random(5) < 0.4) for _ in range(13)]
  top = top_items(users, items, 4, exclude=lists(rated), item_offsets=offsets)
  for u in range(13):
    scores = users[u] @ items.T + offsets
    left = [i for i in range(5) if i not in rated[u]]
    expected = sorted(left, key=lambda i: (-scores[i], i))[:4]
    assert top[u].tolist() == expected + [-1] * (4 - len(expected))


def test_more_than_the_catalogue():
  assert top_items(np.ones((1, 2)), np.ones((2, 2)), 4).tolist() == [
    [0, 1, -1, -1]
  ]
  assert top_of_scores([[np.nan, 1.0]], 2).tolist() == [[1, -1]]


def test_duplicate_truth_counts_once():
  truth = ItemLists.from_pairs([0, 0], [3, 3], 1)
  assert truth[0].tolist() == [3]


def test_intervals_and_bad_input():
  top = np.tile(np.arange(3), (30, 1))
  truth = lists([[u % 5] for u in range(30)])
  found = evaluate_lists(top, truth, [3])
  interval = found.intervals(samples=300)['hr@3']
  assert interval.low < interval.estimate == 0.6 < interval.high
  with pytest.raises(UserError, match='cut-off 5'):
    evaluate_lists(top, truth, [5])
  with pytest.raises(UserError, match='29 ranked lists'):
    evaluate_lists(top[:29], truth, [3])
  assert doctest.testmod(ranking).failed == 0
