"""Multipliers of reward thresholds: by hand, and at the constrained optimum."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.rewards.joint import JointValues
from p4lm.rewards.terms import TermValues
from p4lm.rl.run_state import RlState
from p4lm.rl.thresholds import Multipliers, ThresholdConfig


def judged(total, valid=None, **terms):
  """A joint reward of these values by term; NaN has no value."""
  by_term = {}
  for name, values in terms.items():
    values = np.array(values, np.float32)
    known = np.isfinite(values)
    by_term[name] = TermValues(np.where(known, values, 0.0), known)
  total = np.array(total, np.float32)
  valid = np.ones(len(total), bool) if valid is None else np.array(valid)
  return JointValues(total, valid, by_term, {})


def test_multipliers_by_hand():
  """0 + 0.5 (0.6 - 0.2) = 0.2; then 0.2 + 0.5 (0.6 - 1.2) < 0."""
  multipliers = Multipliers(ThresholdConfig({'nli': 0.6}, rate=0.5))
  low = judged([1.0, 2.0, 3.0], nli=[0.1, np.nan, 0.3])
  logged = multipliers.follow(low)
  assert logged == pytest.approx(
    {'threshold/nli/multiplier': 0.0, 'threshold/nli/room': -0.4}
  )
  assert multipliers.values['nli'] == pytest.approx(0.2)
  paid = multipliers.paid(low)
  np.testing.assert_allclose(paid.total, [1 - 0.1, 0, 3 - 0.06], rtol=1e-6)
  assert paid.valid.tolist() == [True, False, True]
  assert low.valid.all()
  multipliers.follow(judged([0.0], nli=[1.2]))
  assert multipliers.values['nli'] == 0
  multipliers.follow(judged([0.0], nli=[np.nan]))
  assert multipliers.values['nli'] == 0


def test_multipliers_stop_at_the_highest():
  config = ThresholdConfig({'nli': 1.0}, rate=10.0, start=1.0, highest=3.0)
  multipliers = Multipliers(config)
  multipliers.follow(judged([0.0], nli=[0.0]))
  assert multipliers.values['nli'] == 3


@pytest.mark.parametrize('share', [-0.3, 0.5])
def test_dual_ascent_ends_at_the_constrained_optimum(mdp, share):
  """Every policy is the closed-form optimum for its multipliers."""
  beta = 0.7
  generator = np.random.default_rng(1)
  kept = generator.normal(size=len(mdp.tokens))
  anchor = np.asarray(mdp.response_logps(jnp.asarray(mdp.reference)))

  def best(multiplier):
    tilted = anchor + (mdp.rewards[0] + multiplier * kept) / beta
    weights = np.exp(tilted - tilted.max())
    return weights / weights.sum()

  free = best(0.0) @ kept
  # Below what the policy gets anyway, and half way to the most.
  threshold = free + share * (kept.max() - free)
  multipliers = Multipliers(ThresholdConfig({'kept': threshold}, rate=0.3))
  for _ in range(2000):
    mean = best(multipliers.values['kept']) @ kept
    multipliers.follow(judged([0.0], kept=[mean]))
  found = multipliers.values['kept']
  if threshold < free:
    assert found == 0
  else:
    assert found > 0.1
    assert best(found) @ kept == pytest.approx(threshold, abs=1e-4)


def test_multipliers_are_part_of_the_checkpoint():
  class NoLearner:
    def items(self):
      return {}

    def restore(self, items):
      assert items == {}

  def state():
    return RlState(
      NoLearner(), {}, 0.1, thresholds=ThresholdConfig({'nli': 0.5, 'per': 1})
    )

  first, second = state(), state()
  first._multipliers.follow(judged([0.0], nli=[0.25], per=[0.0]))
  second.restore_items(first.checkpoint_items())
  values = judged([1.0], nli=[0.3], per=[0.2])
  np.testing.assert_array_equal(
    second.paid(values).total, first.paid(values).total
  )
  assert first.paid(values).total[0] == pytest.approx(
    1 + 0.125 * (0.3 - 0.5) + 0.5 * (0.2 - 1)
  )


def test_no_threshold_leaves_the_reward_and_the_checkpoint():
  class NoLearner:
    def items(self):
      return {}

  state = RlState(NoLearner(), {}, 0.1, thresholds=ThresholdConfig())
  values = judged([1.0], nli=[0.3])
  assert state.paid(values) is values
  assert 'multipliers' not in state.checkpoint_items()['rl']


def test_bad_thresholds_are_told():
  config = ThresholdConfig({'nil': 0.5})
  with pytest.raises(
    UserError, match='names nil, but the reward terms are nli'
  ):
    config.check_terms(['nli', 'appeal'])
  with pytest.raises(UserError, match="threshold of 'nli' must be finite"):
    ThresholdConfig({'nli': float('nan')})
  with pytest.raises(UserError, match='rate must be above 0'):
    ThresholdConfig({'nli': 0.5}, rate=0.0)
  with pytest.raises(UserError, match='start is 30'):
    ThresholdConfig({'nli': 0.5}, start=30.0)
