"""References that move, coefficients that are steered, and their state."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from p4lm.checkpoints.manager import CheckpointStore
from p4lm.errors import UserError
from p4lm.rl.grpo import GrpoConfig
from p4lm.rl.kl_anchoring import (
  AdaptiveKl,
  MovingReference,
  ReferenceConfig,
)
from p4lm.rl.objective import minibatches
from p4lm.rl.reinforce import ReinforceConfig
from p4lm.rl.rollouts import sampled_kl
from p4lm.rl.run_state import RlState
from p4lm.training.state import TrainState


def test_the_controller_multiplies_by_the_clipped_error():
  control = AdaptiveKl(target=2.0, gain=0.5, clip=0.2)
  np.testing.assert_allclose(control.after(1.0, 2.0), 1.0)
  np.testing.assert_allclose(control.after(1.0, 2.2), 1 + 0.5 * 0.1)
  np.testing.assert_allclose(control.after(1.0, 9.0), 1 + 0.5 * 0.2)
  np.testing.assert_allclose(control.after(1.0, -1.0), 1 - 0.5 * 0.2)
  assert control.after(0.3, float('nan')) == 0.3
  assert AdaptiveKl(target=1.0, lowest=0.5).after(0.5, 0.0) == 0.5


def test_the_controller_finds_the_coefficient_of_its_target():
  """KL = 1 / coefficient, a system that it can steer to KL 4."""
  control, coefficient = AdaptiveKl(target=4.0), 3.0
  for _ in range(400):
    coefficient = control.after(coefficient, 1 / coefficient)
  np.testing.assert_allclose(coefficient, 0.25, rtol=0.01)


def test_the_sampled_kl_leaves_out_padding_and_bad_samples():
  mask = np.array([[True, True], [True, False], [True, True]])
  behavior = np.array([[-1.0, -1.0], [-2.0, np.nan], [np.inf, 0.0]])
  reference = np.array([[-2.0, -1.5], [-2.0, 7.0], [0.0, 0.0]])
  valid = np.array([True, True, False])
  assert sampled_kl(behavior, reference, mask, valid) == 0.75
  assert np.isnan(sampled_kl(behavior, reference, mask, valid & False))


def test_a_moving_average_by_hand():
  reference = MovingReference(
    ReferenceConfig('moving_average', decay=0.75), {'w': jnp.array([0.0, 8.0])}
  )
  policy = {'w': jnp.array([4.0, 0.0])}
  reference.before(0, policy)
  np.testing.assert_array_equal(reference.params['w'], [0, 8])
  reference.before(1, policy)
  np.testing.assert_array_equal(reference.params['w'], [1, 6])
  np.testing.assert_array_equal(policy['w'], [4, 0])


def test_the_previous_policy_is_copied_every_so_often():
  reference = MovingReference(
    ReferenceConfig('previous', every=2), {'w': jnp.zeros(1)}
  )
  seen = []
  for iteration in range(5):
    reference.before(iteration, {'w': jnp.full(1, 10.0 + iteration)})
    seen.append(float(reference.params['w'][0]))
  assert seen == [0, 0, 12, 12, 14]


def test_a_penalty_that_would_always_be_zero_is_refused():
  previous = ReferenceConfig('previous')
  with pytest.raises(UserError, match='always 0'):
    previous.check_fits(ReinforceConfig())
  previous.check_fits(GrpoConfig())
  ReferenceConfig('previous', every=2).check_fits(ReinforceConfig())
  ReferenceConfig().check_fits(ReinforceConfig())


class _Learner:
  """Keeps one number."""

  def __init__(self):
    self.number = jnp.zeros(())

  def items(self):
    return {'number': self.number}

  def restore(self, items):
    self.number = items['number']


def _rl_state(params):
  learner = _Learner()
  return learner, RlState(
    learner,
    params,
    0.5,
    ReferenceConfig('moving_average', decay=0.5),
    AdaptiveKl(target=1.0),
  )


def test_the_state_of_rl_comes_back_bit_for_bit(mdp, tmp_path):
  params = {'w': jnp.zeros(2)}
  learner, rl = _rl_state(params)
  state = TrainState.create(
    {'w': jnp.array([1.0, 3.0])}, optax.sgd(0.1), jnp.zeros(2, jnp.uint32)
  )
  rl.begin(dataclasses.replace(state, step=jnp.int32(3)))
  rollout = rl.priced(mdp.rollout(jnp.array([0, 3, 9, 14])))
  np.testing.assert_array_equal(rollout.kl_coefficients, [0.5] * 4)
  learner.number = jnp.float32(0.1)
  assert rl.end(rollout, None) == {'kl_coefficient': 0.5}

  store = CheckpointStore(tmp_path)
  store.save(1, rl.checkpoint_items())
  other_learner, other = _rl_state(params)
  other.restore_items(store.restore(other.checkpoint_items())[1])
  np.testing.assert_array_equal(
    other.reference_params(None)['w'], jnp.array([0.5, 1.5])
  )
  assert other_learner.number == jnp.float32(0.1)
  items = other.checkpoint_items()['rl']
  assert items['counters'] == {'prompts': 1, 'samples': 4}
  assert items['coefficient'] == rl.checkpoint_items()['rl']['coefficient']
  assert items['coefficient'] != 0.5


def test_minibatches_hold_every_prompt_once_an_epoch_with_its_samples():
  prompts = jnp.arange(6)
  batch = {
    'prompts': prompts,
    'samples': jnp.repeat(10 * prompts, 2) + jnp.tile(jnp.arange(2), 6),
    'empty': jnp.zeros((6, 0, 3)),
  }
  cut = minibatches(
    batch, jnp.zeros(2, jnp.uint32), prompts=6, epochs=4, count=3
  )
  assert cut['prompts'].shape == (12, 2)
  assert cut['empty'].shape == (12, 2, 0, 3)
  np.testing.assert_array_equal(
    np.sort(cut['prompts'].reshape(4, 6), axis=1), np.tile(prompts, (4, 1))
  )
  expected = 10 * jnp.repeat(cut['prompts'], 2, axis=1) + jnp.array(
    [[0, 1, 0, 1]]
  )
  np.testing.assert_array_equal(cut['samples'], expected)
  assert len({tuple(row) for row in cut['prompts'].reshape(4, 6).tolist()}) > 1
  with pytest.raises(UserError, match='minibatches=4 does not divide the 6'):
    minibatches(batch, jnp.zeros(2, jnp.uint32), prompts=6, epochs=1, count=4)
