import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.rl.eos import (
  EosContract,
  apply_eos_contract,
  overlong_prices,
  rewards_at_end,
)

REWARDS = np.array([1.5, 2.5, np.nan, np.nan])
VALID = np.array([True, True, False, False])
FINISHED = np.array([True, False, True, False])


@pytest.mark.parametrize(
  'contract,rewards,valid',
  [
    # The paper: a reward sits on EOS only.
    (EosContract(), [1.5, 0, 0, 0], [True, True, False, True]),
    (
      EosContract('penalty', -3.0),
      [1.5, -3, 0, -3],
      [True, True, False, True],
    ),
    (
      EosContract('score_anyway'),
      [1.5, 2.5, 0, 0],
      [True, True, False, False],
    ),
    (EosContract('mask'), [1.5, 2.5, 0, 0], [True, False, False, False]),
  ],
)
def test_rules(contract, rewards, valid):
  found, kept = apply_eos_contract(REWARDS, VALID, FINISHED, contract)
  np.testing.assert_array_equal(kept, valid)
  np.testing.assert_array_equal(found[kept], np.array(rewards)[kept])
  assert found.dtype == np.float32
  assert np.isfinite(found).all()


def test_the_given_arrays_are_left_alone():
  rewards = np.array([1.0, 2.0], np.float32)
  apply_eos_contract(
    rewards, np.ones(2, bool), np.zeros(2, bool), EosContract()
  )
  np.testing.assert_array_equal(rewards, [1, 2])


def test_the_reward_sits_on_the_last_counted_token():
  mask = jnp.array([[True, True, False], [True, True, True], [False] * 3])
  found = rewards_at_end(jnp.array([2.0, -1.0, 5.0]), mask)
  np.testing.assert_array_equal(found, [[0, 2, 0], [0, 0, -1], [0, 0, 0]])


@pytest.mark.parametrize(
  'options,named',
  [
    ({'missing': 'drop'}, "mask, got 'drop'"),
    ({'missing': 'zero', 'penalty': -1.0}, "only missing='penalty'"),
    ({'missing': 'penalty', 'penalty': float('nan')}, 'finite'),
    ({'overlong_from': -1}, 'overlong_from must be 0 or more'),
    ({'overlong_penalty': 1.0}, 'without overlong_from nothing pays'),
    ({'overlong_from': 2, 'overlong_penalty': -1.0}, '0 or more: -1.0'),
  ],
)
def test_bad_choices_are_named(options, named):
  with pytest.raises(UserError, match=named):
    EosContract(**options)


def test_length_costs_from_a_length_on():
  contract = EosContract(overlong_from=2, overlong_penalty=0.6)
  prices = overlong_prices(np.array([1, 2, 3, 5]), 5, contract)
  np.testing.assert_allclose(prices, [0, 0, 0.2, 0.6], rtol=1e-6)
  free = overlong_prices(np.array([1, 5]), 5, EosContract())
  np.testing.assert_array_equal(free, [0, 0])
  with pytest.raises(UserError, match='at most 2 tokens'):
    overlong_prices(np.array([1, 2]), 2, contract)
