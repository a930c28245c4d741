"""NDCG of one relevant item, by its published values and by enumeration."""

import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.rewards.ndcg import NDCGTerm
from p4lm.rewards.terms import RewardRequest, evaluate_term

IDS = [f'i{row}' for row in range(40)]


def along_a_line(texts):
  """A text's number; items lie at 40, 39, ... so that i0 is the closest."""
  return np.array([[float(text or 0)] for text in texts])


def term(**options):
  vectors = np.arange(40, 0, -1.0)[:, None]
  return NDCGTerm(along_a_line, IDS, vectors, **options)


def values(items, text='1', **options):
  return evaluate_term(
    term(**options), [RewardRequest(text, item, 'u') for item in items]
  )


def test_published_values():
  found = values(['i0', 'i1', 'i19', 'i20']).values
  np.testing.assert_allclose(found, [1, 0.63093, 0.22767, 0], atol=5e-6)


def test_a_text_that_points_the_other_way_turns_the_ranking():
  found = values(['i39', 'i38', 'i0'], text='-1').values
  np.testing.assert_allclose(found, [1, 1 / np.log2(3), 0], rtol=1e-6)


def test_a_random_ranking_is_worth_its_expectation():
  """The mean over all items is the mean over all ranks."""
  for cutoff in (1, 5, 40):
    found = values(IDS, cutoff=cutoff).values
    ranks = np.arange(1, cutoff + 1)
    np.testing.assert_allclose(
      found.mean(), np.sum(1 / np.log2(1 + ranks)) / 40, rtol=1e-6
    )


def test_ties_go_to_the_lower_row():
  flat = NDCGTerm(along_a_line, IDS, np.ones((40, 1)))
  found = evaluate_term(
    flat, [RewardRequest('1', item, 'u') for item in ('i0', 'i2')]
  )
  np.testing.assert_allclose(found.values, [1, 0.5], rtol=1e-6)


def test_what_cannot_be_ranked_is_masked_and_counted():
  found = evaluate_term(
    term(),
    [
      RewardRequest('1', 'i0', 'u'),
      RewardRequest('', 'i0', 'u'),
      RewardRequest('1', 'elsewhere', 'u'),
    ],
  )
  np.testing.assert_array_equal(found.valid, [True, False, False])
  assert found.counts == {'unknown_items': 1, 'without_meaning': 1}
  assert evaluate_term(term(), []).values.shape == (0,)


def test_bad_choices_are_named():
  with pytest.raises(UserError, match='cutoff must be 1 or more, got 0'):
    term(cutoff=0)
  with pytest.raises(UserError, match='40 item_ids and 2 item_vectors'):
    NDCGTerm(along_a_line, IDS, np.ones((2, 1)))
