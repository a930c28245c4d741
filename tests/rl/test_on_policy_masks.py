"""What must not touch an update: padding, neighbours, bad rewards."""

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from p4lm.errors import UserError
from p4lm.rl.grpo import GrpoConfig
from p4lm.rl.kl_anchoring import AdaptiveKl, ReferenceConfig
from p4lm.rl.ppo import PpoConfig
from p4lm.rl.rebel import RebelConfig
from p4lm.rl.reinforce import ReinforceConfig, make_reinforce_loss

pytestmark = pytest.mark.usefixtures('float64')

EXACT = {'rtol': 1e-12, 'atol': 1e-14}
CONFIGS = {
  'default': ReinforceConfig(),
  'loss_k3': ReinforceConfig(kl_in='loss', kl_estimator='k3'),
  'standardised': ReinforceConfig(standardise='batch', credit='to_go'),
  'group': ReinforceConfig(standardise='group', ratio_cap=2.0),
  'ppo': PpoConfig(
    baseline='leave_one_out', ratio_cap=2.0, epochs=1, minibatches=1
  ),
  'grpo': GrpoConfig(),
  'rebel': RebelConfig(epochs=1),
  'rebel_neighbours': RebelConfig(
    epochs=1, pairs='neighbours', standardise='batch'
  ),
}


@pytest.fixture(params=CONFIGS, name='config', scope='module')
def _config(request):
  return CONFIGS[request.param]


def _value_and_grad(score_fn, config=None):
  """Of the first update; a plan of a single minibatch is the whole rollout."""
  objective = (config or ReinforceConfig()).objective(score_fn)

  def loss_fn(table, rollout):
    batch = rollout
    if objective.plan is not None:
      frozen_table = jax.lax.stop_gradient(table)
      batches = objective.plan(frozen_table, None, rollout, jax.random.key(0))
      batch = jax.tree.map(lambda x: x[0], batches)
    return objective.loss_fn(table, None, batch, None)[0]

  return jax.jit(jax.value_and_grad(loss_fn))


@pytest.fixture(name='loss_and_gradient', scope='module')
def _loss_and_gradient(mdp, config):
  return _value_and_grad(mdp.score_fn, config)


def _flat(tree):
  """Loss and gradient as one vector."""
  return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def test_invalid_rows_may_hold_anything(mdp, loss_and_gradient):
  valid = jnp.array([True, True, False, True])
  rollout = mdp.rollout(jnp.array([0, 3, 9, 14]), valid=valid)
  poisoned = dataclasses.replace(
    rollout,
    rewards=jnp.where(valid, rollout.rewards, jnp.nan),
    reference_logps=jnp.where(valid[:, None], rollout.reference_logps, jnp.nan),
    behavior_logps=jnp.where(valid[:, None], rollout.behavior_logps, jnp.inf),
  )
  table = jnp.asarray(mdp.start)
  clean, dirty = (loss_and_gradient(table, r) for r in (rollout, poisoned))
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(clean))
  np.testing.assert_allclose(_flat(clean), _flat(dirty), **EXACT)


def test_an_invalid_row_is_as_good_as_absent(mdp, loss_and_gradient, config):
  if isinstance(config, RebelConfig) and config.pairs == 'neighbours':
    pytest.skip('without its neighbour a row has no pair: the test below')
  table = jnp.asarray(mdp.start)
  valid = jnp.array([True, True, False, True])
  masked = loss_and_gradient(
    table, mdp.rollout(jnp.array([0, 3, 9, 14]), valid=valid)
  )
  absent = loss_and_gradient(table, mdp.rollout(jnp.array([0, 3, 14])))
  np.testing.assert_allclose(_flat(masked), _flat(absent), **EXACT)


def test_a_pair_with_an_invalid_row_is_as_good_as_absent(mdp):
  table = jnp.asarray(mdp.start)
  config = RebelConfig(epochs=1, pairs='neighbours')
  update = _value_and_grad(mdp.score_fn, config)
  valid = jnp.array([True, True, False, True])
  masked = update(table, mdp.rollout(jnp.array([0, 3, 9, 14]), valid=valid))
  np.testing.assert_allclose(
    _flat(masked), _flat(update(table, mdp.rollout(jnp.array([0, 3])))), **EXACT
  )


def test_nothing_valid_is_no_update(mdp, loss_and_gradient):
  nothing = jnp.zeros(4, bool)
  rollout = mdp.rollout(jnp.array([0, 3, 9, 14]), valid=nothing)
  rollout = dataclasses.replace(rollout, rewards=jnp.full(4, jnp.nan))
  loss, gradient = loss_and_gradient(jnp.asarray(mdp.start), rollout)
  assert loss == 0
  assert not np.any(gradient)


def test_masked_positions_may_hold_anything(mdp, loss_and_gradient):
  rollout = mdp.rollout(jnp.array([0, 3, 9, 14]))
  mask = rollout.response_mask
  assert not np.all(mask)
  filled = dataclasses.replace(
    rollout,
    # As if the tokenizer padded with EOS.
    response_tokens=jnp.where(mask, rollout.response_tokens, mdp.eos_id),
    behavior_logps=jnp.where(mask, rollout.behavior_logps, jnp.nan),
    reference_logps=jnp.where(mask, rollout.reference_logps, -jnp.inf),
  )
  table = jnp.asarray(mdp.start)
  np.testing.assert_allclose(
    _flat(loss_and_gradient(table, rollout)),
    _flat(loss_and_gradient(table, filled)),
    **EXACT,
  )


def test_rows_in_another_order_give_the_same_update(mdp, loss_and_gradient):
  table = jnp.asarray(mdp.start)
  first = mdp.rollout(jnp.array([0, 3, 9, 4, 14, 2, 2, 1]), contexts=(0, 1))
  # Neighbours stay neighbours, in the other order.
  second = mdp.rollout(jnp.array([1, 2, 2, 14, 3, 0, 4, 9]), contexts=(1, 0))
  np.testing.assert_allclose(
    _flat(loss_and_gradient(table, first)),
    _flat(loss_and_gradient(table, second)),
    **EXACT,
  )


def test_extreme_rewards_stay_finite(mdp, loss_and_gradient):
  rollout = mdp.rollout(jnp.array([0, 3, 9, 14]))
  rollout = dataclasses.replace(rollout, rewards=1e8 * rollout.rewards)
  loss, gradient = loss_and_gradient(jnp.asarray(mdp.start), rollout)
  assert np.isfinite(loss)
  assert np.isfinite(gradient).all()


def test_more_padding_changes_nothing(mdp):
  """L = 3 and L = 5 give one loss; the extra columns hold rubbish."""

  def padded_score_fn(params, frozen, rollout):
    narrow = dataclasses.replace(
      rollout, response_tokens=rollout.response_tokens[:, :3]
    )
    logps = mdp.score_fn(params, frozen, narrow)
    return jnp.pad(logps, ((0, 0), (0, 2)), constant_values=jnp.nan)

  rollout = mdp.rollout(jnp.array([0, 3, 9, 14]))
  widen = lambda a, fill: jnp.pad(a, ((0, 0), (0, 2)), constant_values=fill)
  wide = dataclasses.replace(
    rollout,
    response_tokens=widen(rollout.response_tokens, mdp.eos_id),
    response_mask=widen(rollout.response_mask, False),
    behavior_logps=widen(rollout.behavior_logps, jnp.nan),
    reference_logps=widen(rollout.reference_logps, jnp.nan),
  )
  table = jnp.asarray(mdp.start)
  narrow_result = _value_and_grad(mdp.score_fn)(table, rollout)
  np.testing.assert_allclose(
    _flat(narrow_result),
    _flat(_value_and_grad(padded_score_fn)(table, wide)),
    **EXACT,
  )


def test_a_token_that_cannot_be_replayed_drops_its_row(mdp):
  """A sampler kept a token that the learner's truncation dropped."""

  def truncated_score_fn(params, frozen, rollout):
    logps = mdp.score_fn(params, frozen, rollout)
    return logps.at[1, 0].set(-jnp.inf)

  table = jnp.asarray(mdp.start)
  rollout = mdp.rollout(jnp.array([0, 3, 9, 14]))
  loss_fn = make_reinforce_loss(truncated_score_fn)
  (loss, metrics), gradient = jax.jit(
    jax.value_and_grad(lambda t: loss_fn(t, None, rollout, None), has_aux=True)
  )(table)
  without = _value_and_grad(mdp.score_fn)(
    table, mdp.rollout(jnp.array([0, 9, 14]))
  )
  np.testing.assert_allclose(_flat((loss, gradient)), _flat(without), **EXACT)
  assert metrics['share_valid'] == 0.75
  assert all(np.isfinite(m) for m in metrics.values())


def test_group_size_one_needs_another_baseline(mdp):
  rollout = mdp.rollout(jnp.array([4]))
  with pytest.raises(ValueError, match='group_size 1'):
    make_reinforce_loss(mdp.score_fn)(
      jnp.asarray(mdp.start), None, rollout, None
    )


@pytest.mark.parametrize(
  'options,named',
  [
    ({'kl_in': 'loss'}, 'ReinforceConfig: k1 in the loss'),
    ({'baseline': 'value', 'standardise': 'group'}, 'of whole responses'),
    ({'value_decay': 1.5}, 'value_decay'),
    ({'kl_estimator': 'k4'}, 'kl_estimator'),
    ({'baseline': 'mean'}, "leave_one_out, value, got 'mean'"),
    ({'kl_coefficient': -1.0}, 'kl_coefficient'),
    ({'kl_coefficient': float('nan')}, 'kl_coefficient'),
    ({'ratio_cap': 0.5}, 'ratio_cap'),
  ],
)
def test_bad_choices_are_named(options, named):
  with pytest.raises(ValueError, match=named):
    ReinforceConfig(**options)


@pytest.mark.parametrize(
  'config,options,named',
  [
    (PpoConfig, {'clip_low': 1.0}, 'PpoConfig.clip_low'),
    (PpoConfig, {'epochs': 0}, 'epochs must be 1 or more'),
    (GrpoConfig, {'kl_estimator': 'k1'}, 'GrpoConfig: k1 in the loss'),
    (GrpoConfig, {'aggregation': 'mean'}, 'response_mean, token, got'),
    (RebelConfig, {'eta': 0.0}, 'RebelConfig.eta'),
    (RebelConfig, {'pairs': 'best'}, 'pairs must be one of neighbours, all'),
    (ReferenceConfig, {'kind': 'old'}, 'moving_average'),
    (ReferenceConfig, {'decay': 1.0}, 'decay'),
    (AdaptiveKl, {'target': 0.0}, 'target must be above 0'),
    (AdaptiveKl, {'target': 1.0, 'lowest': 200.0}, 'above highest'),
  ],
)
def test_bad_choices_of_the_neighbours_are_named(config, options, named):
  with pytest.raises(UserError, match=named):
    config(**options)


def _run_again_with_four_devices(name):
  given = os.environ.get('XLA_FLAGS', '')
  four = '--xla_force_host_platform_device_count=4'
  assert four not in given, 'the flag gave fewer than 4 devices'
  flags = f'{given} {four}'.strip()
  command = [sys.executable, '-m', 'pytest', '-q', __file__, '-k', name]
  return subprocess.run(
    command,
    env=os.environ | {'XLA_FLAGS': flags},
    capture_output=True,
    text=True,
    check=False,
  )


def test_sharded_rows_give_the_update_of_one_device(mdp):
  """Four devices, one prompt's group of two samples on each."""
  if jax.device_count() < 4:
    done = _run_again_with_four_devices(
      'test_sharded_rows_give_the_update_of_one'
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ('data',))
  rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  rollout = mdp.rollout(
    jnp.array([0, 3, 9, 14, 2, 2, 7, 5]),
    contexts=(0, 1, 1, 0),
    valid=jnp.arange(8) != 5,
  )
  table = jnp.asarray(mdp.start)
  for name in ('default', 'group', 'grpo', 'rebel'):
    update = _value_and_grad(mdp.score_fn, CONFIGS[name])
    np.testing.assert_allclose(
      _flat(update(table, rollout)),
      _flat(update(table, jax.device_put(rollout, rows))),
      **EXACT,
    )
