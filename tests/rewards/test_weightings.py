"""Weightings: draws, rounding, and the joint reward of texts with their own."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from p4lm.data.prompts import Prompt, weighted_prompt
from p4lm.errors import UserError
from p4lm.rewards.joint import JointReward, JointRewardConfig
from p4lm.rewards.terms import CallableTerm, RewardRequest
from p4lm.rewards.weightings import Weighted, WeightingConfig

TERMS = ('a', 'b', 'c')


@given(
  st.integers(1, 60),
  st.integers(0, 9),
  st.integers(0, 10**6),
  st.floats(0.05, 20),
)
def test_a_draw_is_whole_parts_and_says_what_it_pays(
  levels, seed, number, concentration
):
  weighted = Weighted(TERMS, levels)
  parts = weighted.drawn(concentration, seed, number)
  assert sum(parts.values()) == levels and min(parts.values()) >= 0
  assert parts == weighted.drawn(concentration, seed, number)
  shares = weighted.shares(parts)
  np.testing.assert_allclose(sum(shares.values()), 1)
  # What a prompt tells is what the shares say, and no rounding drifts.
  assert weighted.of(shares) == parts


@given(
  st.lists(st.floats(0, 1e300), min_size=3, max_size=3).filter(
    lambda weights: max(weights) > 0
  )
)
def test_wanted_weights_are_rounded_by_less_than_a_part(wanted):
  parts = Weighted(TERMS, 10).of(dict(zip(TERMS, wanted)))
  exact = np.array(wanted) / max(wanted)
  exact = 10 * exact / exact.sum()
  assert sum(parts.values()) == 10
  assert np.all(np.abs(np.array(list(parts.values())) - exact) < 1 + 1e-9)


@pytest.mark.parametrize('concentration', [0.3, 1.0, 5.0])
def test_draws_have_the_moments_of_the_dirichlet_distribution(concentration):
  """Mean 1 / K, variance (1 / K) (1 - 1 / K) / (K a + 1)."""
  weighted = Weighted(TERMS, 1000)
  drawn = np.array(
    [
      list(weighted.shares(weighted.drawn(concentration, 7, n)).values())
      for n in range(4000)
    ]
  )
  variance = (1 / 3) * (2 / 3) / (3 * concentration + 1)
  # Four standard errors of a mean and of a variance of 4,000 draws.
  error = np.sqrt(variance / 4000)
  np.testing.assert_allclose(drawn.mean(axis=0), 1 / 3, atol=4 * error)
  np.testing.assert_allclose(drawn.var(axis=0), variance, rtol=0.1)
  # Other seeds and other prompts draw others.
  assert len({tuple(row) for row in drawn}) > 3000
  assert weighted.drawn(1.0, 7, 0) != weighted.drawn(1.0, 8, 0)


def test_words_tell_every_weight_in_order():
  parts = Weighted(('nli', 'appeal'), 4).of({'appeal': 3, 'nli': 1})
  told = weighted_prompt(Prompt('user: pitch:', ('user',)), parts)
  words = 'weights: nli appeal appeal appeal user: pitch:'
  assert told == Prompt(words, ('user',))


@pytest.mark.parametrize(
  'weights,message',
  [
    (None, 'got none: give weights .* of a, b, c'),
    ({}, 'got none'),
    ({'a': 1, 'd': 1, 'e': 1}, 'name d, e, .* trained on a, b, c'),
    ({'a': -1, 'b': 2}, '0 or more and not all 0'),
    ({'a': 0}, 'not all 0'),
    ({'a': float('nan')}, 'finite'),
    ({'a': 'much'}, 'must be numbers'),
    ([1, 2, 3], 'must be {name: number}'),
  ],
)
def test_weights_that_mean_nothing_are_refused(weights, message):
  with pytest.raises(UserError, match=message):
    Weighted(TERMS, 10).of(weights)


def test_configurations_that_mean_nothing_are_refused():
  with pytest.raises(UserError, match='two reward terms or more, got a'):
    Weighted(('a',), 10)
  with pytest.raises(UserError, match='concentration must be above 0'):
    WeightingConfig(concentration=0)
  with pytest.raises(UserError, match='levels must be 1 or more'):
    WeightingConfig(levels=0)


def _joint(values, **options):
  """A joint reward whose term k says values[k][row] of the text of that row."""
  terms = [
    CallableTerm(name, lambda request, k=name: values[k][int(request.text)])
    for name in values
  ]
  return JointReward(terms, JointRewardConfig(**options))


def _requests(*shares):
  return [
    RewardRequest(str(row), 'i', 'u', shares=each)
    for row, each in enumerate(shares)
  ]


def test_each_text_is_paid_by_its_own_shares():
  joint = _joint(
    {'a': [1.0, 1.0, 1.0], 'b': [10.0, 10.0, 10.0]}, weights={'a': 2, 'b': 3}
  )
  found = joint(_requests({'a': 1.0}, {'a': 0.25, 'b': 0.75}, None))
  np.testing.assert_allclose(found.total, [2, 0.5 + 22.5, 32])


def test_a_term_without_a_share_may_have_no_value():
  nan = float('nan')
  joint = _joint({'a': [1.0, nan], 'b': [nan, nan]}, weights={'a': 1, 'b': 1})
  found = joint(_requests({'a': 1.0}, {'a': 1.0}))
  np.testing.assert_array_equal(found.valid, [True, False])
  np.testing.assert_allclose(found.total, [1, 0])
  with pytest.raises(UserError, match="'b' has no finite value"):
    joint(_requests({'a': 1.0}, {'b': 0.1}))


def test_the_batch_normalises_over_the_texts_that_a_term_judged():
  nan = float('nan')
  joint = _joint(
    {'a': [1.0, 3.0, nan]}, weights={'a': 1}, normalisation='batch'
  )
  found = joint(_requests({'a': 1.0}, {'a': 0.5}, {}))
  np.testing.assert_allclose(found.total, [-1, 0.5, 0], atol=1e-5)


def test_the_log_tells_what_shares_do():
  """The slope of 0, 2, 3 over 0, 1/2, 1 is 3; equal shares have none."""
  joint = _joint({'a': [0.0, 2.0, 3.0]}, weights={'a': 1})
  found = joint(_requests({'a': 0.0}, {'a': 0.5}, {'a': 1.0}))
  np.testing.assert_allclose(found.metrics['reward/a/by_share'], 3)
  assert 'reward/a/by_share' not in joint(_requests(None, None)).metrics
