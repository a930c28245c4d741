import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.rewards.joint import (
  PAPER_WEIGHTS,
  JointReward,
  JointRewardConfig,
  population_means_of,
)
from p4lm.rewards.terms import CallableTerm, RewardRequest

REQUESTS = [RewardRequest(str(k), 'item', 'user') for k in range(4)]


def _term(name, values):
  return CallableTerm(name, lambda rs: values[: len(rs)], batched=True)


A = [1.0, 2.0, 3.0, 6.0]
B = [10.0, 30.0, -10.0, 10.0]


def _joint(*, a=A, b=B, **config):
  config = {'weights': {'a': 2.0, 'b': 0.1}} | config
  terms = [_term('a', a), _term('b', b)]
  return JointReward(terms, JointRewardConfig(**config))(REQUESTS)


def test_the_paper_weights():
  assert PAPER_WEIGHTS == {
    'nli': 2.0,
    'appeal': 0.1,
    'personalization': 1.0,
    'relevance': 1.0,
  }
  terms = [_term(name, A) for name in PAPER_WEIGHTS]
  np.testing.assert_allclose(
    JointReward(terms)(REQUESTS).total, 4.1 * np.array(A), rtol=1e-6
  )


def test_weighted_sum_and_its_log():
  judged = _joint()
  np.testing.assert_allclose(judged.total, [3, 7, 5, 13], rtol=1e-6)
  np.testing.assert_array_equal(judged.by_term['b'].values, B)
  assert judged.metrics['reward/a/mean'] == 3
  np.testing.assert_allclose(judged.metrics['reward/b/std'], np.std(B))
  assert judged.metrics['reward/total/mean'] == 7
  assert judged.metrics['reward/total/share_valid'] == 1


def test_population_mean_is_subtracted_before_weighting():
  judged = _joint(
    normalisation='population_mean', population_means={'a': 1.0, 'b': 20.0}
  )
  np.testing.assert_allclose(judged.total, [-1, 3, 1, 9], rtol=1e-6)


def test_population_means_of_a_population():
  terms = [_term('a', A), _term('b', [1.0, np.nan, 3.0, np.inf])]
  assert population_means_of(terms, REQUESTS) == {'a': 3.0, 'b': 2.0}


def test_normalise_then_sum_gives_each_term_its_weight():
  judged = _joint(normalisation='batch')
  standard = lambda x: (np.array(x) - np.mean(x)) / np.std(x)
  expected = 2 * standard(A) + 0.1 * standard(B)
  np.testing.assert_allclose(judged.total, expected, rtol=1e-5)


def test_sum_then_normalise_standardises_the_total():
  judged = _joint(normalisation='batch', order='sum_then_normalise')
  total = np.array([3.0, 7.0, 5.0, 13.0])
  np.testing.assert_allclose(
    judged.total, (total - total.mean()) / total.std(), rtol=1e-5
  )


def test_batch_statistics_leave_invalid_rows_out():
  judged = _joint(a=[1.0, np.nan, 3.0, 6.0], normalisation='batch')
  np.testing.assert_array_equal(judged.valid, [True, False, True, True])
  short = JointReward(
    [_term('a', [1.0, 3.0, 6.0]), _term('b', [10.0, -10.0, 10.0])],
    JointRewardConfig(weights={'a': 2.0, 'b': 0.1}, normalisation='batch'),
  )(REQUESTS[:3])
  np.testing.assert_allclose(judged.total[judged.valid], short.total)
  assert judged.total[1] == 0
  assert judged.metrics['reward/a/share_valid'] == 0.75
  assert judged.metrics['reward/total/share_valid'] == 0.75


def test_a_constant_term_standardises_to_zero():
  judged = _joint(a=[5.0] * 4, normalisation='batch')
  standard = (np.array(B) - np.mean(B)) / np.std(B)
  np.testing.assert_allclose(judged.total, 0.1 * standard, rtol=1e-5)


def test_caps_bound_what_counts_but_not_what_is_logged():
  judged = _joint(caps={'b': (0.0, 20.0), 'a': (None, 5.0)})
  np.testing.assert_allclose(judged.total, [3, 6, 6, 11], rtol=1e-6)
  assert judged.by_term['b'].values.max() == 30


def test_a_watched_term_has_no_say():
  judged = _joint(b=[np.nan] * 4, weights={'a': 1.0, 'b': 0.0})
  np.testing.assert_array_equal(judged.total, A)
  assert judged.valid.all()
  assert judged.metrics['reward/b/share_valid'] == 0
  assert 'reward/b/mean' not in judged.metrics


def test_a_weighted_term_without_any_value_stops():
  with pytest.raises(UserError, match="'b' has no finite value for any of 4"):
    _joint(b=[np.nan] * 4)


def test_one_text_is_enough():
  judged = JointReward(
    [_term('a', A)],
    JointRewardConfig(weights={'a': 1.0}, normalisation='batch'),
  )(REQUESTS[:1])
  np.testing.assert_array_equal(judged.total, [0.0])


@pytest.mark.parametrize(
  'config,named',
  [
    ({'weights': {'c': 1.0}}, 'weights name .* c; the terms are a, b'),
    ({'weights': {'a': 0.0}}, 'no reward term has a weight'),
    ({'caps': {'c': (0.0, 1.0)}}, 'caps name'),
    ({'normalisation': 'population_mean'}, 'missing: a, b'),
    ({'normalisation': 'z'}, "batch, got 'z'"),
    ({'order': 'sum'}, "got 'sum'"),
    ({'weights': {'a': np.nan}}, "'a' must be finite"),
    ({'caps': {'a': (2.0, 1.0)}}, '2.0 > 1.0'),
  ],
)
def test_bad_choices_are_named(config, named):
  with pytest.raises(UserError, match=named):
    _joint(**config)


def test_names_are_distinct():
  with pytest.raises(UserError, match='distinct'):
    JointReward([_term('a', A), _term('a', B)])
