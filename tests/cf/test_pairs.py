"""What batches of positive pairs take from all of them."""

import collections
import doctest

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p4lm.cf import pairs as pairs_module
from p4lm.cf.pairs import Negatives, PositivePairs
from p4lm.cf.rows import Interactions

PAIRS = [(0, 3), (2, 1), (0, 5), (2, 3), (0, 0), (3, 5)]


def positive_pairs(pairs=PAIRS, users=4, items=6):
  user_rows, item_rows = np.array(pairs, np.int32).T
  return PositivePairs(
    Interactions(user_rows, item_rows, np.ones(len(pairs)), users, items)
  )


def test_examples():
  result = doctest.testmod(pairs_module)
  assert result.attempted and not result.failed


@settings(max_examples=60, deadline=None)
@given(
  st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6)), min_size=1),
  st.lists(st.integers(0, 4), min_size=1, max_size=6),
  st.lists(st.integers(0, 6), min_size=1, max_size=9),
)
def test_known_positives_are_the_pairs(pairs, users, candidates):
  found = positive_pairs(pairs, 5, 7)
  for _ in range(2):  # The second time finds nothing left of the first.
    known = found.known(np.array(users), np.array(candidates))
    expected = [[(u, i) in set(pairs) for i in candidates] for u in users]
    np.testing.assert_array_equal(known, expected)


def test_short_histories_are_whole_but_for_the_pair():
  rows, mask = positive_pairs().histories(
    [0, 2, 3, 1], [3, 0, 5, 2], 4, np.random.default_rng(0)
  )
  assert rows.dtype == np.int32 and rows.shape == mask.shape == (4, 4)
  kept = [sorted(r[m].tolist()) for r, m in zip(rows, mask)]
  assert kept == [[0, 5], [1, 3], [], []]
  assert not rows[~mask].any()


def test_long_histories_are_drawn_evenly():
  """1,000 users of nine items each; the pair's own item 4 is left out."""
  pairs = [(u, i) for u in range(1000) for i in range(9)]
  source = positive_pairs(pairs, 1000, 9)
  rows, mask = source.histories(
    np.arange(1000), np.full(1000, 4), 6, np.random.default_rng(0)
  )
  counts = np.bincount(rows[mask], minlength=9)
  assert counts[4] == 0
  # 6,000 draws, a ninth each: a standard deviation of 24.
  np.testing.assert_allclose(np.delete(counts, 4), 6000 / 9, atol=100)


def test_expected_counts_are_those_of_drawing():
  """In-batch negatives and drawn ones, counted over many batches."""
  item_counts = np.array([6, 3, 1, 0])
  negatives = Negatives.of(item_counts, extra=3, exponent=0.5)
  generator = np.random.default_rng(0)
  drawn = collections.Counter()
  rounds = 20_000
  for _ in range(rounds):
    drawn.update(negatives.draw(generator).tolist())
  in_batch = 4 * item_counts / 10
  seen = in_batch + [drawn[i] / rounds for i in range(4)]
  expected = np.exp(negatives.log_expected_counts(np.arange(4), batch_size=5))
  np.testing.assert_allclose(seen, expected, atol=0.02)
  assert drawn[3] == 0 and expected[3] == 0
  roots = np.sqrt(item_counts)
  np.testing.assert_allclose(
    expected, in_batch + 3 * roots / roots.sum(), rtol=1e-6
  )


def test_uniform_draws_reach_items_without_positives():
  negatives = Negatives.of([5, 0, 0, 0], extra=400)
  drawn = negatives.draw(np.random.default_rng(1))
  assert drawn.dtype == np.int32
  np.testing.assert_allclose(np.bincount(drawn, minlength=4), 100, atol=40)
  counts = np.exp(negatives.log_expected_counts([0, 1], batch_size=3))
  assert counts.tolist() == pytest.approx([2 + 100, 100])
