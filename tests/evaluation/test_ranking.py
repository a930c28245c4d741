"""Ranking metrics against ir_measures and hand-made lists."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.errors import UserError
from p4lm.evaluation import ranking
from p4lm.evaluation.item_lists import ItemLists
from p4lm.evaluation.ranking import evaluate_lists
from p4lm.evaluation.top_items import top_of_scores

KS = (1, 5, 20)
_SCORES = st.one_of(st.just(-math.inf), st.integers(0, 4).map(float))


def lists(rows, num_users=None):
  users = [u for u, items in enumerate(rows) for _ in items]
  items = [i for row in rows for i in row]
  return ItemLists.from_pairs(users, items, num_users or len(rows))


@st.composite
def cases(draw):
  """Scores with ties and unranked items, and the relevant items of users.

  Relevant items may lie beyond the catalogue, as cold ones do.
  """
  users, items = draw(st.integers(1, 6)), draw(st.integers(1, 30))
  row = st.lists(_SCORES, min_size=items, max_size=items)
  scores = draw(st.lists(row, min_size=users, max_size=users))
  relevant = st.lists(st.integers(0, items + 2), max_size=25, unique=True)
  truth = draw(st.lists(relevant, min_size=users, max_size=users))
  return np.array(scores, np.float32), truth


@settings(max_examples=150, deadline=None)
@given(cases())
def test_agrees_with_ir_measures(case):
  ir = pytest.importorskip(
    'ir_measures', reason="pip install ir-measures, or 'p4lm[parity]'"
  )
  scores, truth = case
  top = top_of_scores(scores, max(KS))
  found = evaluate_lists(top, lists(truth), KS)
  # Ranks as scores leave the library no ties to break its own way.
  run = [
    ir.ScoredDoc(str(u), str(i), float(-rank))
    for u in range(len(truth))
    for rank, i in enumerate(top[u])
    if i >= 0
  ]
  qrels = [
    ir.Qrel(str(u), str(i), 1) for u, row in enumerate(truth) for i in row
  ]
  names = {
    'ndcg': ir.nDCG, 'recall': ir.R, 'precision': ir.P, 'mrr': ir.RR,
    'hr': ir.Success,
  }  # fmt: skip
  theirs = {}
  if run and qrels:
    wanted = [measure @ k for measure in names.values() for k in KS]
    theirs = {
      (str(result.measure), result.query_id): result.value
      for result in ir.iter_calc(wanted, qrels, run)
    }
  for name, measure in names.items():
    for k in KS:
      for u, row in enumerate(truth):
        value = found.values[f'{name}@{k}'][u]
        if not row:
          assert math.isnan(value)
        else:
          # It leaves out users with an empty list, who have no hit.
          expected = theirs.get((str(measure @ k), str(u)), 0.0)
          assert value == pytest.approx(expected, abs=1e-6)
  assert found.users_without_truth == sum(not row for row in truth)


@settings(max_examples=60, deadline=None)
@given(cases())
def test_what_no_library_has_agrees_with_its_definition(case):
  scores, truth = case
  num_items = scores.shape[1]
  top = top_of_scores(scores, max(KS))
  found = evaluate_lists(top, lists(truth), KS, num_items=num_items)
  for k in KS:
    shown = set()
    for u, row in enumerate(truth):
      listed = [i for i in top[u, :k].tolist() if i >= 0]
      assert all(np.isfinite(scores[u, i]) for i in listed)
      if row:
        hits = len(set(listed) & set(row))
        value = found.values[f'recall_truncated@{k}'][u]
        assert value == pytest.approx(hits / min(k, len(row)))
        shown |= set(listed)
    coverage = found.coverage[f'coverage@{k}']
    assert coverage == pytest.approx(len(shown) / num_items)


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


def test_duplicate_truth_counts_once():
  truth = ItemLists.from_pairs([0, 0], [3, 3], 1)
  assert truth[0].tolist() == [3]


def test_cold_items_are_misses_that_count():
  """Two relevant items, one of which no list can hold."""
  found = evaluate_lists(
    np.array([[4, 2]]), lists([[4, 900]]), [2], num_items=8
  )
  assert found.values['recall@2'][0] == 1 / 2
  assert found.values['ndcg@2'][0] == pytest.approx(1 / (1 + 1 / math.log2(3)))
  assert found.coverage == {'coverage@2': 2 / 8}


def test_coverage_is_of_the_users_who_are_judged():
  top = np.array([[0, 1], [2, -1], [3, 3]])
  truth = lists([[0], [5], []])
  found = evaluate_lists(top, truth, [1, 2], num_items=10)
  assert found.coverage == {'coverage@1': 0.2, 'coverage@2': 0.3}
  assert evaluate_lists(top, truth, [1]).coverage == {}


def test_intervals_are_over_users_with_truth():
  top = np.tile(np.arange(3), (31, 1))
  truth = lists([[u % 5] for u in range(30)], 31)
  found = evaluate_lists(top, truth, [3])
  assert (found.users, found.users_without_truth) == (30, 1)
  interval = found.intervals(samples=300)['hr@3']
  assert interval.low < interval.estimate == 0.6 < interval.high
  assert found.means()['hr@3'] == pytest.approx(0.6)
  # Of a share over 30 users: 0.6 ± 1.96 sqrt(0.6 x 0.4 / 30).
  wide = found.intervals(samples=20_000)['hr@3']
  assert wide.low == pytest.approx(0.6 - 0.1753, abs=0.02)
  assert wide.high == pytest.approx(0.6 + 0.1753, abs=0.02)


def test_nobody_with_truth():
  found = evaluate_lists(np.array([[0]]), lists([[]]), [1], num_items=1)
  assert found.users == 0 and math.isnan(found.means()['hr@1'])
  assert math.isnan(found.intervals(samples=10)['hr@1'].low)


def test_rankers_are_compared_user_by_user():
  """Better by a hit for one user in three, whatever the others' level."""
  truth = lists([[u] for u in range(30)])
  first = np.arange(30)[:, None].copy()
  second = first.copy()
  second[::3] = 99
  results = {
    name: evaluate_lists(top, truth, [1])
    for name, top in (('first', first), ('second', second))
  }
  (found,) = ranking.contrasts(results, [('first', 'second')], ['hr@1'])
  assert found.difference.estimate == pytest.approx(1 / 3)
  assert found.verdict == 'higher'
  assert found.comparison.win_rate.estimate == pytest.approx(2 / 3)
  (same,) = ranking.contrasts(results, [('first', 'first')], ['hr@1'])
  assert (same.difference.low, same.difference.high) == (0.0, 0.0)
  with pytest.raises(UserError, match="no scores of 'third'"):
    ranking.contrasts(results, [('first', 'third')], ['hr@1'])
  with pytest.raises(UserError, match="no scores for 'hr@2'"):
    ranking.contrasts(results, [('first', 'second')], ['hr@2'])


@pytest.mark.parametrize(
  'ks, message',
  [
    ([0], 'cut-off k is 0'),
    ([5, -1], 'cut-off k is -1'),
    ([2.5], 'cut-off k is 2.5'),
    ([], 'give a tuple of distinct ones'),
    (3, 'the cut-offs are 3'),
    ([2, 2], 'distinct'),
    ([5], "cut-off 5 is above the lists' 3"),
  ],
)
def test_bad_cutoffs(ks, message):
  top = np.tile(np.arange(3), (30, 1))
  with pytest.raises(UserError, match=message):
    evaluate_lists(top, lists([[0]] * 30), ks)


def test_other_numbers_of_users():
  with pytest.raises(UserError, match='29 ranked lists for 30 users'):
    evaluate_lists(np.zeros((29, 3), int), lists([[0]] * 30), [3])


def test_examples():
  assert doctest.testmod(ranking).failed == 0
